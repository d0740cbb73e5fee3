package replication

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Config says which stream to open.
type Config struct {
	Conn        *pgx.ConnConfig
	Slot        string
	Publication string
	Tables      []Table // that the publication must publish
	ReadBuffer  int     // bytes; 0: ReadBuffer
}

// Stream is an open logical replication stream. The slot is ours as long as it lives.
// One goroutine calls Receive; Feedback writes; Interrupt may come from anywhere.
type Stream struct {
	Server      Server
	Publication *Publication
	Timelines   Timelines
	Start       LSN // confirmed_flush_lsn when the stream began
	WALEnd      LSN // pg_current_wal_insert_lsn() then

	conn    *pgconn.PgConn
	frames  *frames
	paced   *paced // nil: reads are not
	slot    string
	message Message
	opened  time.Time
	updated atomic.Int64 // time since opened, in nanoseconds, when the last status update was written
	commit  int64        // of the current transaction, microseconds since 2000 by the server's clock
	sent    int64        // of the last message, the same
	asked   atomic.Bool  // the server wants a status update
}

// Message is one message of the walsender. It belongs to the Stream and is valid,
// with its Data, until the next Receive.
type Message struct {
	// Data is an output plugin's message; nil for a keepalive.
	Data []byte
	// WALEnd is, in a keepalive, the end of the last record that the server has decoded.
	WALEnd LSN
	// At is when it was read from the network: one clock reading serves all that came together.
	At time.Time
}

// Keepalive reports whether the message carries no data.
func (m *Message) Keepalive() bool { return m.Data == nil }

var (
	// ErrStreamEnded is the regular end of a stream: the server is shutting down.
	ErrStreamEnded = errors.New("the server ended the stream")
	// ErrStoodStill is a process that was frozen, or starved, for longer than wal_sender_timeout: the server has given
	// the slot up, and somebody else may have it. What was received meanwhile is not ours to publish.
	ErrStoodStill = errors.New("this process stood still for longer than wal_sender_timeout: another may have the slot")
	// ErrInterrupted is a Receive that Interrupt woke up. The stream is whole.
	ErrInterrupted = errors.New("receive was interrupted")
)

// pinned makes the text form of values independent of the role's and the
// database's defaults.
var pinned = map[string]string{
	"client_encoding":     "UTF8",
	"DateStyle":           "ISO, MDY",
	"TimeZone":            "UTC",
	"IntervalStyle":       "postgres",
	"extra_float_digits":  "1",
	"bytea_output":        "hex",
	"client_min_messages": "warning", // what Postgres 18 says when it skips a publication
}

// Open checks server, publication and slot over sql and starts streaming where
// the slot stands. Errors are *PreconditionError, *SlotLostError, ErrNoSlot, the
// server's *pgconn.PgError (55006: somebody else holds the slot) and network errors.
func Open(ctx context.Context, cfg Config, sql *pgx.Conn) (*Stream, error) {
	s, err := newStream(ctx, cfg, sql)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx, cfg, sql); err != nil {
		s.Close(ctx)
		return nil, err
	}
	return s, nil
}

// newStream checks and connects, and starts nothing.
func newStream(ctx context.Context, cfg Config, sql *pgx.Conn) (*Stream, error) {
	server, err := ReadServer(ctx, sql)
	if err != nil {
		return nil, err
	}
	publication, err := CheckPublication(ctx, sql, cfg.Publication, cfg.Tables)
	if err != nil {
		return nil, err
	}
	slot, err := ReadSlot(ctx, sql, cfg.Slot)
	if err != nil {
		return nil, err
	}
	if err := slot.Check(server.Database); err != nil {
		return nil, err
	}
	s := &Stream{Server: server, Publication: publication, slot: cfg.Slot, opened: time.Now(), WALEnd: slot.SnapshotLSN}
	if err := s.connect(ctx, cfg.Conn, cmp.Or(cfg.ReadBuffer, ReadBuffer)); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Stream) connect(ctx context.Context, cfg *pgx.ConnConfig, buffer int) (err error) {
	c := cfg.Copy()
	maps.Copy(c.RuntimeParams, pinned)
	c.RuntimeParams["replication"] = "database"
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "walferry/" + s.slot
	}
	dial := Paced(s.ending(c.DialFunc), buffer, s.Patience)
	c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		s.paced, _ = conn.(*paced) // of the last attempt, which is the one that succeeds
		return conn, err
	}
	c.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		s.frames = newFrames(r, buffer)
		return pgproto3.NewFrontend(s.frames, w)
	}
	if s.conn, err = pgconn.ConnectConfig(ctx, &c.Config); err != nil {
		return fmt.Errorf("connect to Postgres for replication: %w", err)
	}
	return nil
}

// ending returns dial with connections that end when the server must have given up on them: at the latest wal_sender_timeout
// after the last status update that it has got, and the next comes a third of that later.
func (s *Stream) ending(dial pgconn.DialFunc) pgconn.DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if timeout := s.Server.SenderTimeout; err == nil && timeout > 0 {
			endUnanswered(conn, timeout*2/3)
		}
		return conn, err
	}
}

func (s *Stream) start(ctx context.Context, cfg Config, sql *pgx.Conn) error {
	var err error
	if s.Timelines, err = readTimelines(ctx, s.conn, s.Server); err != nil {
		return err
	}
	s.updatedAt(time.Now()) // the server waits for the first update from the start on
	err = pglogrepl.StartReplication(ctx, s.conn, cfg.Slot, 0, options(cfg.Publication))
	// Only now is the slot ours: whoever held it before may have moved it since Open looked.
	slot, readErr := ReadSlot(ctx, sql, cfg.Slot)
	switch {
	case err != nil && readErr == nil && slot.Check(s.Server.Database) != nil:
		return slot.Check(s.Server.Database) // says more than the server's 55000
	case err != nil:
		return fmt.Errorf("start replication from slot %q: %w", cfg.Slot, err)
	case readErr != nil:
		return readErr
	}
	s.Start, s.WALEnd = slot.ConfirmedFlush, slot.SnapshotLSN
	switch {
	case slot.ActivePID != "" && !s.holds(slot): // if nobody has it, the stream itself says why
		return s.gone()
	case s.lapsed(time.Now()):
		return fmt.Errorf("slot %q: %w", s.slot, ErrStoodStill)
	}
	return nil
}

// options ask for protocol 1 without streaming: only committed transactions, whole (docs/adr/0001).
func options(publication string) pglogrepl.StartReplicationOptions {
	return pglogrepl.StartReplicationOptions{
		Mode:       pglogrepl.LogicalReplication,
		PluginArgs: []string{"proto_version '1'", "publication_names " + QuoteLiteral(QuoteIdentifier(publication)), "messages 'true'"},
	}
}

// Holds fails with ErrStreamEnded, or because it cannot look, unless the stream still has the slot.
func (s *Stream) Holds(ctx context.Context, sql *pgx.Conn) error {
	slot, err := ReadSlot(ctx, sql, s.slot)
	switch {
	case errors.Is(err, ErrNoSlot): // here: another host of the DSN may have answered
		return s.gone()
	case err != nil:
		return err
	case !s.holds(slot):
		return s.gone()
	}
	return nil
}

func (s *Stream) holds(slot *Slot) bool {
	return slot.ActivePID == strconv.FormatUint(uint64(s.conn.PID()), 10)
}

func (s *Stream) gone() error {
	return fmt.Errorf("slot %q is not held by this session any more: %w", s.slot, ErrStreamEnded)
}

// Ending returns why a stream has ended that does not hold the slot any more: what the server has said, behind what it has
// sent, or ErrStreamEnded. Nothing can be received behind it.
func (s *Stream) Ending() error {
	s.setReadDeadline(time.Now().Add(time.Second))
	for {
		switch _, err := s.Receive(); {
		case errors.Is(err, ErrInterrupted): // it has said nothing
			return s.gone()
		case err != nil:
			return err
		}
	}
}

// Receive returns the next message. It fails with ErrInterrupted after Interrupt,
// ErrStreamEnded at a regular end, ErrStoodStill, *PreconditionError when the server says that it
// leaves out a publication, else with the server's or the network's error.
func (s *Stream) Receive() (*Message, error) {
	for {
		kind, body, err := s.frames.next()
		switch {
		case err == nil && s.lapsed(s.frames.last):
			err = ErrStoodStill
		case err == nil && kind == 'd': // CopyData
			return s.parse(body)
		case err == nil:
			err = s.other(kind, body)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, ErrInterrupted
		}
		if err != nil {
			return nil, fmt.Errorf("read from slot %q: %w", s.slot, err)
		}
	}
}

// lapsed reports whether the server may have given up on us before at. It counts from our last status update, and so at
// least as long as the server, which counts from when it got it. No update comes behind that: it stays so.
func (s *Stream) lapsed(at time.Time) bool {
	timeout := s.Server.SenderTimeout
	return timeout > 0 && at.Sub(s.opened)-time.Duration(s.updated.Load()) > timeout
}

// updatedAt notes when a status update was written.
func (s *Stream) updatedAt(at time.Time) { s.updated.Store(int64(at.Sub(s.opened))) }

// other takes what a server may send beside data.
func (s *Stream) other(kind byte, body []byte) error {
	switch kind {
	case 'E':
		var m pgproto3.ErrorResponse
		if err := m.Decode(body); err != nil {
			return &MalformedError{Size: len(body)}
		}
		return Withheld(pgconn.ErrorResponseToPgError(&m))
	case 'N':
		var m pgproto3.NoticeResponse
		if err := m.Decode(body); err != nil {
			return &MalformedError{Size: len(body)}
		}
		return notice(&m)
	case 'S': // ParameterStatus: the server has read its configuration again
		return nil
	case 'c', 'C', 'Z': // CopyDone, CommandComplete, ReadyForQuery
		return ErrStreamEnded
	}
	return fmt.Errorf("unexpected message %q in a replication stream", kind)
}

// Begin says when the transaction that begins now was committed, by Postgres' clock.
func (s *Stream) Begin(commit time.Time) { s.commit = commit.UnixMicro() - pgEpoch }

// Patience returns how long what was received last may wait for what comes behind it: what is late
// comes an eighth later at most, and what is in time does not wait. Both times are Postgres'
// own: that of the commit, and when the message was sent.
func (s *Stream) Patience() time.Duration {
	const late = 10 * time.Millisecond
	if behind := time.Duration(s.sent-s.commit) * time.Microsecond; behind >= late {
		return behind / 8
	}
	return 0
}

// More reports whether the next Receive returns without reading.
func (s *Stream) More() bool { return s.frames.more() }

// pgEpoch is 2000-01-01 in microseconds of Unix time.
const pgEpoch = 946684800 * 1_000_000

// parse reads the two messages of "Streaming Replication Protocol" that a
// walsender sends.
func (s *Stream) parse(b []byte) (*Message, error) {
	const xLogData, keepalive = 25, 18 // bytes of their headers
	switch {
	case len(b) > xLogData && b[0] == pglogrepl.XLogDataByteID:
		s.message = Message{Data: b[xLogData:], At: s.frames.last}
		s.sent = int64(binary.BigEndian.Uint64(b[17:]))
	case len(b) == keepalive && b[0] == pglogrepl.PrimaryKeepaliveMessageByteID:
		s.message = Message{WALEnd: LSN(binary.BigEndian.Uint64(b[1:])), At: s.frames.last}
		if b[17] != 0 {
			s.asked.Store(true)
		}
	default:
		return nil, &MalformedError{Size: len(b)}
	}
	return &s.message, nil
}

// MalformedError is a replication message that is neither WAL data nor a keepalive.
type MalformedError struct{ Size int }

func (e *MalformedError) Error() string {
	return fmt.Sprintf("malformed replication message of %d bytes", e.Size)
}

// notice turns Postgres 18's warning that it skips a publication, and with it every
// event of that period, into an error (pgoutput.c, LoadPublications). The source file
// tells it from other warnings with the same SQLSTATE; texts are translated.
func notice(n *pgproto3.NoticeResponse) error {
	if n.Code == "55000" && n.File == "pgoutput.c" {
		return Refuse("events of that period are not decodable: recreate the slot after the publication and publish what the table still holds",
			"the server leaves out the publication, for it did not exist when this WAL was written")
	}
	return nil
}

// Withheld takes out texts that may quote data: those of SQLSTATE class 22, data exceptions.
func Withheld(err *pgconn.PgError) *pgconn.PgError {
	if strings.HasPrefix(err.Code, "22") {
		err.Message, err.Detail, err.Where = "data exception, its text is withheld for it may quote data", "", ""
	}
	return err
}

// Interrupt makes the current and every later Receive fail with ErrInterrupted
// until Resume. Nothing is lost: a half-read message is finished after Resume.
func (s *Stream) Interrupt() { s.setReadDeadline(time.Unix(1, 0)) }

// Resume ends what Interrupt began.
func (s *Stream) Resume() { s.setReadDeadline(time.Time{}) }

// Both fail on a closed connection only, as Receive and send will.
func (s *Stream) setReadDeadline(t time.Time)  { _ = s.conn.Conn().SetReadDeadline(t) }
func (s *Stream) setWriteDeadline(t time.Time) { _ = s.conn.Conn().SetWriteDeadline(t) }

// send tells the server that everything before lsn is safe.
//
// It writes to the connection itself and not through pgconn, whose own goroutine may write
// to the same buffer once a Receive has failed.
func (s *Stream) send(lsn LSN, reply bool, timeout time.Duration) error {
	now := time.Now()
	if s.lapsed(now) {
		return fmt.Errorf("slot %q: %w", s.slot, ErrStoodStill)
	}
	s.setWriteDeadline(now.Add(timeout))
	if _, err := s.conn.Conn().Write(statusUpdate(lsn, now, reply)); err != nil {
		return fmt.Errorf("confirm %s to slot %q: %w", lsn, s.slot, err)
	}
	s.updatedAt(now)
	return nil
}

// Close ends the stream and frees the slot. It takes a second at most.
func (s *Stream) Close(ctx context.Context) { closeConn(ctx, s.conn) }

// closeConn closes a replication connection, within a second.
func closeConn(ctx context.Context, conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = conn.Close(ctx) // there is nothing left to lose on it
}
