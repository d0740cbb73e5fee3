package decode_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pglogrepl"

	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/internal/pgoutput"
)

// FuzzStream feeds a capture, which any bytes are, through one decoder: it must never panic,
// and whatever it accepts must follow the protocol and be what a naive reading by pglogrepl says.
func FuzzStream(f *testing.F) {
	for _, c := range captures(f) {
		if len(c.bytes) < 8<<10 { // larger ones only make the fuzzer slow
			f.Add(c.bytes)
		}
	}
	begin, commit := pgoutput.AppendBegin(nil, 0x2000, commitTime, 7), pgoutput.AppendCommit(nil, 0, 0x2000, 0x2030, commitTime)
	described := relation(outboxOID, "outbox", jsonbOID)
	noPayload := pgoutput.AppendRelation(nil, pgoutput.Relation{ID: outboxOID, Namespace: "public", Name: "outbox", ReplicaIdentity: 'd', Columns: []pgoutput.Column{
		column("id", textOID), column("aggregatetype", textOID), column("aggregateid", textOID), column("type", textOID),
	}})
	event, foreign := row(outboxOID, "i", "order", "x", "k", "T", "{}"), row(otherOID, "a")
	body := message(`{"id":"i","aggregatetype":"o","aggregateid":"k","payload":1}`)
	for _, messages := range [][][]byte{
		{begin, described, event, body, event, commit, begin, event, commit},
		{begin, begin},
		{commit},
		{event},
		{body},
		{begin, event},
		{begin, foreign, commit},
		{begin, commit, commit},
		{begin, commit, event},
		{begin, pgoutput.AppendCommit(nil, 0, 0x2001, 0x2030, commitTime)},
		{begin, pgoutput.AppendCommit(nil, 0, 0x2000, 0x2000, commitTime)},
		{pgoutput.AppendMessage(nil, false, 1, "outbox", nil), begin, pgoutput.AppendMessage(nil, true, 1, "other", nil), body, commit},
		{begin, relation(outboxOID, "other", jsonbOID), event, described, event, commit},
		{begin, described, relation(outboxOID, "renamed", jsonbOID), event, commit},
		{begin, pgoutput.AppendType(nil, 99, "", "bytea"), relation(outboxOID, "outbox", 99), event, commit},
		{begin, pgoutput.AppendDelete(nil, 1, pgoutput.OldRow{}), pgoutput.AppendTruncate(nil, 0, 1), pgoutput.AppendOrigin(nil, 1, "o"), described, event, commit},
		{begin, described, row(outboxOID, "i", "NULL", "x", "k", "T", "{}"), event, message(`{"id":1}`), message("[]"), event, commit},
		{begin, noPayload, row(outboxOID, "i", "order", "k", "T"), commit},
		{begin, described, row(outboxOID, "i", "NULL", "x", "k", "T", "{}"), commit},
	} {
		var stream []byte
		for _, m := range messages {
			stream = pgoutput.AppendCaptured(stream, m)
		}
		f.Add(stream)
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		d, reference := newWALDecoder(), newModel()
		for i, message := range pgoutput.SplitCapture(stream) {
			c, err := d.Decode(message)
			if err != nil {
				resume, err := reference.refuses(message, err)
				if err != nil {
					t.Fatalf("message %d: %v", i, err)
				}
				if !resume {
					return
				}
				continue
			}
			if err := reference.compare(message, c); err != nil {
				t.Fatalf("message %d (%q): %v", i, message[0], err)
			}
		}
	})
}

// model is the naive reading of a stream: pglogrepl parses, maps remember.
type model struct {
	open      bool
	begin     decode.LSN
	xid       uint32
	index     uint64
	relations map[uint32]*pglogrepl.RelationMessage
	domains   map[uint32]bool // over bytea
	bytea     map[uint32]bool // by OID of a relation: its payload is one
}

func newModel() *model {
	return &model{relations: map[uint32]*pglogrepl.RelationMessage{}, domains: map[uint32]bool{17: true}, bytea: map[uint32]bool{}}
}

// reading is what the model makes of one message.
type reading struct {
	kind   decode.Kind
	index  uint64
	source int
	values values
	hex    bool
}

// errPoison is a row or message that breaks the contract, any other error breaks the protocol.
var errPoison = errors.New("the contract is broken")

// refuses checks the reason for which the decoder has refused a message, and says whether
// it may be given the next one.
func (m *model) refuses(message []byte, refusal error) (resume bool, err error) {
	if malformed, ok := errors.AsType[*decode.MalformedError](refusal); ok {
		if malformed.Size != len(message) {
			return false, fmt.Errorf("%w, but it has %d bytes", refusal, len(message))
		}
		return false, nil // it is stricter than pglogrepl; TestCapturedWAL says that it is not too strict
	}
	contract, ok := errors.AsType[*decode.ContractError](refusal)
	if !ok {
		return false, fmt.Errorf("an error of type %T", refusal)
	}
	at := m.position(m.index)
	r, err := m.read(message)
	if !errors.Is(err, errPoison) {
		return false, fmt.Errorf("%w, the model says %s", refusal, fmt.Sprint(err))
	}
	if contract.Position != at {
		return false, fmt.Errorf("%w, want position %s", refusal, at)
	}
	if message[0] == 'I' && contract.ID != string(r.values[0]) {
		return false, fmt.Errorf("%w, of the event %q, want %q", refusal, contract.ID, r.values[0])
	}
	return true, nil
}

// compare checks a message that the decoder has accepted.
func (m *model) compare(message []byte, c *decode.Change) error {
	want, err := m.read(message)
	if err != nil {
		return fmt.Errorf("accepted, the model says: %w", err)
	}
	if c.Kind != want.kind {
		return fmt.Errorf("kind %d, want %d", c.Kind, want.kind)
	}
	if c.Kind != decode.Row && c.Kind != decode.Message {
		return nil // agree checks their fields in FuzzDecode
	}
	if at := m.position(want.index); c.Event.Position != at {
		return fmt.Errorf("position %s, want %s", c.Event.Position, at)
	}
	if c.Event.Source != want.source || c.Event.PayloadHex != want.hex {
		return fmt.Errorf("source %d, hex %t, want %d, %t", c.Event.Source, c.Event.PayloadHex, want.source, want.hex)
	}
	if got := valuesOf(&c.Event); !got.equal(want.values) {
		return fmt.Errorf("event %s, want %s", got, want.values)
	}
	return nil
}

func (m *model) position(index uint64) decode.Position {
	return decode.Position{SystemID: "7000", Timeline: walTimeline(m.begin), CommitLSN: m.begin, Index: index}
}

func (m *model) read(wal []byte) (r reading, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("pglogrepl panics: %v", p)
		}
	}()
	r.index = m.index
	switch wal[0] {
	case 'O':
		return r, nil
	case 'I', 'U', 'D', 'T':
		if !m.open {
			return r, errors.New("a change outside of a transaction")
		}
		m.index++
		if wal[0] != 'I' {
			return r, nil
		}
		// pglogrepl would look into rows of other tables too.
		rel := m.relations[binary.BigEndian.Uint32(wal[1:])]
		if rel == nil {
			return r, errors.New("a row of an unknown relation")
		}
		if r.source = outboxOf(rel); r.source < 0 {
			return r, nil
		}
		if lacks(rel, columnsOf(r.source)) {
			return r, errPoison
		}
	}
	parsed, err := pglogrepl.Parse(wal)
	if err != nil {
		return r, err
	}
	return r, m.apply(&r, parsed)
}

func (m *model) apply(r *reading, parsed pglogrepl.Message) error {
	switch p := parsed.(type) {
	case *pglogrepl.BeginMessage:
		if m.open {
			return errors.New("BEGIN inside of a transaction")
		}
		m.open, m.begin, m.xid, m.index = true, decode.LSN(p.FinalLSN), p.Xid, 0
		r.kind = decode.Begin
	case *pglogrepl.CommitMessage:
		if !m.open || decode.LSN(p.CommitLSN) != m.begin || p.TransactionEndLSN <= p.CommitLSN {
			return errors.New("COMMIT without its BEGIN, or that ends before it begins")
		}
		m.open = false
		r.kind = decode.Commit
	case *pglogrepl.TypeMessage:
		if p.Namespace == "" && p.Name == "bytea" {
			m.domains[p.DataType] = true
		}
	case *pglogrepl.RelationMessage:
		m.relations[p.RelationID] = p
		m.bytea[p.RelationID] = slices.ContainsFunc(p.Columns, func(c *pglogrepl.RelationMessageColumn) bool {
			return outboxOf(p) >= 0 && c.Name == columnsOf(outboxOf(p))[4] && m.domains[c.DataType]
		})
	case *pglogrepl.InsertMessage:
		return m.row(r, p)
	case *pglogrepl.LogicalDecodingMessage:
		return m.message(r, p)
	default:
		return fmt.Errorf("a message of type %T", p)
	}
	return nil
}

func (m *model) row(r *reading, p *pglogrepl.InsertMessage) error {
	rel := m.relations[p.RelationID]
	if len(p.Tuple.Columns) != len(rel.Columns) {
		return errors.New("the row has another number of columns than its relation")
	}
	for i, name := range columnsOf(r.source) {
		for j, c := range p.Tuple.Columns {
			switch {
			case c.DataType != 'n' && c.DataType != 't':
				return fmt.Errorf("a value of kind %q", c.DataType)
			case name == "" || rel.Columns[j].Name != name:
			case c.DataType == 'n':
				r.values[i] = nil
			default:
				r.values[i] = append([]byte{}, c.Data...)
			}
		}
	}
	r.kind, r.hex = decode.Row, m.bytea[p.RelationID]
	if r.values[0] == nil || r.values[1] == nil || r.values[2] == nil {
		return errPoison
	}
	return nil
}

func (m *model) message(r *reading, p *pglogrepl.LogicalDecodingMessage) (err error) {
	ours := p.Prefix == "outbox"
	switch {
	case !p.Transactional && ours:
		r.kind = decode.NonTransactional
	case !p.Transactional:
	case !m.open:
		return errors.New("a transactional message outside of a transaction")
	case ours:
		m.index++
		r.kind, r.source = decode.Message, len(walTables)
		if r.values, err = readBody(p.Content); err != nil {
			return fmt.Errorf("%w: %w", errPoison, err)
		}
	default:
		m.index++
	}
	return nil
}

// outboxOf returns the table's index in walTables, -1 for any other table.
func outboxOf(rel *pglogrepl.RelationMessage) int {
	namespace := rel.Namespace
	if namespace == "" {
		namespace = "pg_catalog"
	}
	return slices.IndexFunc(walTables, func(t decode.Table) bool { return t.Schema == namespace && t.Name == rel.RelationName })
}

// lacks reports whether one of the mapped columns is missing.
func lacks(rel *pglogrepl.RelationMessage, names [5]string) bool {
	for _, name := range names {
		has := slices.ContainsFunc(rel.Columns, func(c *pglogrepl.RelationMessageColumn) bool { return c.Name == name })
		if name != "" && !has {
			return true
		}
	}
	return false
}

func columnsOf(source int) [5]string {
	c := &walTables[source].Columns
	return [5]string{c.ID, c.AggregateType, c.AggregateID, c.Type, c.Payload}
}
