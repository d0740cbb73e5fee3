package decode_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/internal/pgoutput"
)

// FuzzDecode feeds any bytes as one message into an open transaction: the decoder must
// never panic, never touch what lies behind its input, and, whatever it accepts, read the
// same from it as pglogrepl.
func FuzzDecode(f *testing.F) {
	for _, m := range [][]byte{
		{},
		pgoutput.AppendBegin(nil, 0x2000, commitTime, 7),
		pgoutput.AppendCommit(nil, 0, 0x2000, 0x2030, commitTime),
		relation(outboxOID, "outbox", jsonbOID),
		relation(outboxOID, "renamed", jsonbOID),
		row(outboxOID, "i", "order", "x", "k", "T", `{"a": 1}`),
		row(outboxOID, "i", "NULL", "x", "", "T", "NULL"),
		row(otherOID, "a"),
		message(`{"id":"i","aggregatetype":"o","aggregateid":"k","payload":"\ud83d\ude00"}`),
		message("{\"id\":\"\xff\"}"),
		pgoutput.AppendMessage(nil, false, 1, "outbox", nil),
		pgoutput.AppendTruncate(nil, 0, outboxOID),
		pgoutput.AppendOrigin(nil, 1, "o"),
		pgoutput.AppendType(nil, 99, "public", "mood"),
		// Lengths that are negative, enormous, or one too many.
		[]byte("I\x00\x00\x40\x10N\x00\x06t\xff\xff\xff\xff"),
		[]byte("I\x00\x00\x40\x10N\x00\x06t\x7f\xff\xff\xff"),
		[]byte("I\x00\x00\x40\x10N\xff\xff"),
		[]byte("M\x01\x00\x00\x00\x00\x00\x00\x00\x01outbox\x00\x80\x00\x00\x00"),
		[]byte("R\x00\x00\x40\x10public\x00outbox\x00d\xff\xff"),
	} {
		f.Add(m)
	}
	for _, capture := range captures(f) {
		for _, m := range capture.messages {
			if len(m) < 2<<10 { // larger ones only make the fuzzer slow
				f.Add(m)
			}
		}
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		d := newDecoder()
		if len(input) == 0 || input[0] != 'B' {
			d = begun(t)
		}
		// Behind the input lies a guard: what is read there would show in the result.
		guarded := append(bytes.Clone(input), bytes.Repeat([]byte{0xA5}, 64)...)
		c, err := d.Decode(guarded[:len(input)])
		if err != nil {
			return
		}
		if err := agree(c, input); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(guarded[:len(input)], input) {
			t.Error("the input was changed")
		}
	})
}

// agree compares a change with what pglogrepl reads in the same bytes.
func agree(c *decode.Change, input []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("accepted what pglogrepl panics at: %v", p)
		}
	}()
	switch c.Kind {
	case decode.Skip: // the decoder does not look into these
		return nil
	case decode.Begin, decode.Commit, decode.Row, decode.Message, decode.NonTransactional:
	}
	parsed, err := pglogrepl.Parse(input)
	if err != nil {
		return fmt.Errorf("accepted what pglogrepl refuses: %w", err)
	}
	switch m := parsed.(type) {
	case *pglogrepl.BeginMessage:
		if c.CommitLSN != decode.LSN(m.FinalLSN) || !sameTime(c.CommitTime, m.CommitTime) {
			return fmt.Errorf("BEGIN %+v, pglogrepl reads %+v", c, m)
		}
	case *pglogrepl.CommitMessage:
		if c.EndLSN != decode.LSN(m.TransactionEndLSN) || !sameTime(c.CommitTime, m.CommitTime) {
			return fmt.Errorf("COMMIT %+v, pglogrepl reads %+v", c, m)
		}
	case *pglogrepl.InsertMessage:
		return agreeRow(&c.Event, m)
	case *pglogrepl.LogicalDecodingMessage:
		return agreeMessage(c, m)
	default:
		return fmt.Errorf("kind %d, pglogrepl reads %T", c.Kind, m)
	}
	return nil
}

// sameTime leaves out times for which pglogrepl's nanoseconds overflow.
func sameTime(got, reference time.Time) bool {
	return got.Year() < 1680 || got.Year() > 2260 || got.Equal(reference)
}

func agreeRow(ev *decode.Event, m *pglogrepl.InsertMessage) error {
	for _, f := range []struct {
		column int // in relation()
		got    []byte
	}{{0, ev.ID}, {1, ev.AggregateType}, {3, ev.AggregateID}, {4, ev.Type}, {5, ev.Payload}} {
		want := m.Tuple.Columns[f.column]
		if null := want.DataType == 'n'; null != (f.got == nil) || !bytes.Equal(f.got, want.Data) {
			return fmt.Errorf("column %d: %q, pglogrepl reads %q %q", f.column, f.got, want.DataType, want.Data)
		}
	}
	return nil
}

// agreeMessage compares with pglogrepl's framing and encoding/json's members.
func agreeMessage(c *decode.Change, m *pglogrepl.LogicalDecodingMessage) error {
	if m.Transactional != (c.Kind == decode.Message) || m.Prefix != "outbox" {
		return fmt.Errorf("kind %d of %+v", c.Kind, m)
	}
	if !m.Transactional {
		return nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(m.Content, &members); err != nil {
		return fmt.Errorf("accepted what encoding/json refuses: %w", err)
	}
	for name, got := range map[string][]byte{
		"id": c.Event.ID, "aggregatetype": c.Event.AggregateType, "aggregateid": c.Event.AggregateID, "payload": c.Event.Payload,
	} {
		want := []byte(members[name])
		if len(want) > 0 && want[0] == '"' {
			var text string
			if err := json.Unmarshal(want, &text); err != nil {
				return err
			}
			want = []byte(text)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s: %q, encoding/json reads %q", name, got, want)
		}
	}
	return nil
}
