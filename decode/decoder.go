package decode

import (
	"fmt"
	"strings"
	"time"
)

// Kind says what a WAL message means to the bridge.
type Kind uint8

const (
	// Skip is a message without an event: another table, another prefix, a
	// change that is not an insert, an origin or type announcement.
	Skip Kind = iota
	// Begin opens a committed transaction; Change.CommitLSN and CommitTime are set.
	Begin
	// Row is an insert into an outbox table; Change.Event is set.
	Row
	// Message is a transactional logical message with the outbox prefix; Change.Event is set.
	Message
	// Commit closes the transaction; Change.EndLSN is the LSN that may be
	// confirmed once all of its events are acknowledged.
	Commit
	// NonTransactional is a logical message with the outbox prefix that is not part
	// of a transaction. It is not an event: it is sent even when its transaction aborts.
	NonTransactional
)

// Change is what one WAL message turned out to be. It belongs to the Decoder:
// it and every byte slice in it are valid until the next Decode, and the slices
// may alias the bytes that were given to Decode. What Kind does not name is left over from earlier messages.
type Change struct {
	Kind       Kind
	CommitLSN  LSN       // Begin only: start of the commit record
	EndLSN     LSN       // Commit only: end of the commit record, the confirmable LSN
	CommitTime time.Time // Begin and Commit: by Postgres' clock
	Event      Event
}

// Event is an outbox row or message, ready to be routed. See Change for who owns its bytes.
type Event struct {
	Position Position
	Source   int // index in Config.Tables, len(Config.Tables) for logical messages

	ID, AggregateType, AggregateID []byte // never nil
	Type                           []byte // nil: NULL or not mapped
	Payload                        []byte // nil: NULL, a tombstone
	// PayloadHex says that Payload is Postgres' hex form of a bytea (\x…), of
	// which the event's value is the bytes.
	PayloadHex bool
}

// ContractError is a row or message that is not an outbox event although it
// should be: it is poison, it can never be published as it stands.
// Its text has names and coordinates, never values.
type ContractError struct {
	Position Position
	Where    string // outbox table or message prefix
	Column   string // column or JSON member, may be empty
	Reason   string
	ID       string // of the event, empty if it cannot be read
}

func (e *ContractError) Error() string {
	where := e.Where
	if e.Column != "" {
		where += "." + e.Column
	}
	return fmt.Sprintf("event %s breaks the outbox contract: %s: %s", e.Position, where, e.Reason)
}

// Config is what a Decoder must know of the world.
type Config struct {
	Tables []Table
	// OIDs are those of Tables now: rows that were written before a table was renamed carry its
	// old name, but its OID. Rows of a table that has had neither are not events.
	OIDs     []uint32
	Prefix   string // of logical messages that are events; empty: none are
	SystemID string
	// Timeline returns the timeline that a commit LSN lies on. It is called once
	// per transaction.
	Timeline func(LSN) uint32
}

// Decoder reads the messages of one replication connection, in order. It is not
// safe for concurrent use, and a new connection needs a new one: Postgres
// describes each relation afresh.
type Decoder struct {
	cfg       Config
	relations map[uint32]*relation
	domains   map[uint32]bool // OIDs of domains over bytea
	open      bool            // between BEGIN and COMMIT
	pos       Position
	change    Change
	scratch   []byte // unescaped JSON strings of the current message
}

// NewDecoder returns a Decoder at the start of a stream.
func NewDecoder(cfg Config) *Decoder {
	return &Decoder{cfg: cfg, relations: map[uint32]*relation{}, domains: map[uint32]bool{}, pos: Position{SystemID: cfg.SystemID}}
}

// Decode reads one pgoutput message. Its errors are *MalformedError and *ContractError. After a
// ContractError the next message may follow, for the event has been counted; after any other
// error the Decoder must not be used again.
func (d *Decoder) Decode(wal []byte) (*Change, error) {
	r := reader{b: wal}
	d.change.Kind = Skip
	kind := r.uint8()
	if !d.open && strings.IndexByte(inTransaction, kind) >= 0 {
		return nil, r.malformed("it stands outside of a transaction")
	}
	var err error
	switch kind {
	case msgBegin:
		err = d.begin(&r)
	case msgCommit:
		err = d.commit(&r)
	case msgRelation:
		err = d.readRelation(&r)
	case msgType:
		err = d.readType(&r)
	case msgInsert:
		err = d.insert(&r)
		d.pos.Index++
	case msgMessage:
		err = d.message(&r)
	case msgUpdate, msgDelete, msgTruncate:
		d.pos.Index++
	case msgOrigin:
	default:
		err = r.malformed("unknown type in protocol version 1")
	}
	if err != nil {
		return nil, err
	}
	return &d.change, nil
}

// inTransaction are the types that stand between BEGIN and COMMIT only.
const inTransaction = string(msgCommit) + string(msgInsert) + string(msgUpdate) + string(msgDelete) + string(msgTruncate)

func (d *Decoder) begin(r *reader) error {
	lsn, micros := LSN(r.uint64()), r.uint64()
	r.uint32() // xid
	if err := r.end(); err != nil {
		return err
	}
	if d.open {
		return r.malformed("a transaction begins inside another")
	}
	d.open = true
	d.pos.CommitLSN, d.pos.Index = lsn, 0
	if d.cfg.Timeline != nil {
		d.pos.Timeline = d.cfg.Timeline(lsn)
	}
	d.change.Kind, d.change.CommitLSN, d.change.CommitTime = Begin, lsn, pgTime(micros)
	return nil
}

func (d *Decoder) commit(r *reader) error {
	r.uint8() // flags, unused
	lsn, end, micros := LSN(r.uint64()), LSN(r.uint64()), r.uint64()
	if err := r.end(); err != nil {
		return err
	}
	if lsn != d.pos.CommitLSN {
		return r.malformed(fmt.Sprintf("COMMIT %s does not belong to BEGIN %s", lsn, d.pos.CommitLSN))
	}
	if end <= lsn {
		return r.malformed(fmt.Sprintf("commit record %s ends at %s", lsn, end))
	}
	d.open = false
	d.change.Kind, d.change.EndLSN, d.change.CommitTime = Commit, end, pgTime(micros)
	return nil
}

func (d *Decoder) insert(r *reader) error {
	oid := r.uint32()
	if r.short {
		return r.end()
	}
	rel := d.relations[oid]
	if rel == nil {
		return r.malformed(fmt.Sprintf("row of relation %d, which was never described", oid))
	}
	if rel.source < 0 {
		return nil
	}
	if rel.missing != "" {
		return d.contract(rel.source, rel.missing, "the table has no such column")
	}
	values, err := readTuple(r, rel)
	if err != nil {
		return err
	}
	return d.event(Row, rel.source, &values, rel.bytea)
}

// event makes the change an event of the values, and refuses one that could not be routed or
// told from others.
func (d *Decoder) event(kind Kind, source int, values *[roleCount][]byte, hex bool) error {
	for _, is := range [...]role{roleID, roleAggregateType, roleAggregateID} {
		if values[is] == nil {
			err := d.contract(source, d.columns(source).name(is), "is NULL or missing")
			err.ID = string(values[roleID])
			return err
		}
	}
	d.change.Kind = kind
	d.change.Event = Event{
		Position: d.pos, Source: source,
		ID: values[roleID], AggregateType: values[roleAggregateType], AggregateID: values[roleAggregateID],
		Type: values[roleType], Payload: values[rolePayload], PayloadHex: hex,
	}
	return nil
}

// readTuple returns the values by role; nil is NULL, an empty value is not nil.
func readTuple(r *reader, rel *relation) (values [roleCount][]byte, err error) {
	if kind := r.uint8(); kind != 'N' && !r.short {
		return values, r.malformed(fmt.Sprintf("unexpected tuple kind %q", kind))
	}
	if n := int(r.uint16()); n != len(rel.roles) && !r.short {
		return values, r.malformed(fmt.Sprintf("%d columns where the relation has %d", n, len(rel.roles)))
	}
	for _, role := range rel.roles {
		switch kind := r.uint8(); {
		case kind == valueText:
			values[role] = r.next(int(int32(r.uint32())))
		case kind == valueNull:
			values[role] = nil
		case r.short:
			return values, r.end()
		case kind == valueUnchanged:
			return values, r.malformed("an insert with an unchanged TOAST value")
		default:
			return values, r.malformed(fmt.Sprintf("unexpected value kind %q", kind))
		}
	}
	return values, r.end()
}

func (d *Decoder) message(r *reader) error {
	m, err := readMessage(r)
	if err != nil {
		return err
	}
	ours := d.cfg.Prefix != "" && string(m.prefix) == d.cfg.Prefix
	switch {
	case m.transactional && !d.open:
		return r.malformed("a transactional message outside of a transaction")
	case !m.transactional:
		if ours {
			d.change.Kind = NonTransactional
		}
		return nil
	}
	defer func() { d.pos.Index++ }()
	if !ours {
		return nil
	}
	values, err := d.readJSON(m.content)
	if err != nil {
		return err
	}
	return d.event(Message, len(d.cfg.Tables), &values, false)
}

func (d *Decoder) columns(source int) *Columns {
	if source < len(d.cfg.Tables) {
		return &d.cfg.Tables[source].Columns
	}
	return &DefaultColumns
}

func (d *Decoder) contract(source int, column, reason string) *ContractError {
	return &ContractError{Position: d.pos, Where: d.cfg.Where(source), Column: column, Reason: reason}
}

// Where names the outbox table or the message prefix that an Event.Source stands for.
func (c *Config) Where(source int) string {
	if source < len(c.Tables) {
		return c.Tables[source].Schema + "." + c.Tables[source].Name
	}
	return "logical message " + c.Prefix
}

// ColumnNames returns the names of the columns of the outbox row that Decode has just read from
// wal, in the order of its values; nil for any other message.
func (d *Decoder) ColumnNames(wal []byte) []string {
	if r := (reader{b: wal}); r.uint8() == msgInsert {
		if rel := d.relations[r.uint32()]; rel != nil {
			return rel.names
		}
	}
	return nil
}

// pgEpoch is Postgres' zero time, 2000-01-01 UTC, in microseconds since Unix'.
const pgEpoch = 946684800 * 1_000_000

func pgTime(micros uint64) time.Time { return time.UnixMicro(int64(micros) + pgEpoch) }
