package sink

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/decode"
)

func orderEvent() *decode.Event {
	return &decode.Event{
		Position: decode.Position{SystemID: "7000", Timeline: 1, CommitLSN: 0x15A1DB3, Index: 2},
		ID:       []byte("id-1"), AggregateType: []byte("order"), AggregateID: []byte("42"),
		Type: []byte("OrderPlaced"), Payload: []byte(`{"a": 1}`),
	}
}

func testRouter() router {
	return newRouter(Config{
		Routes: []Route{
			{Topic: "outbox.event.{aggregatetype}"},
			{Topic: "constant", TypeHeader: "eventType"},
		},
		PositionHeader: "walferry-position", MaxRecord: 1000, Reserved: []string{"outbox.event.checkpoints", "outbox.event.dead"},
	})
}

func headersOf(r *record) map[string]string {
	h := map[string]string{}
	for _, header := range r.Headers {
		h[header.Key] = string(header.Value)
	}
	return h
}

// kafka.max_record is exact: a hex digit is half a byte, and a type without a header is none.
func TestTheLargestRecordPasses(t *testing.T) {
	rt, r := testRouter(), &record{}
	ev := orderEvent()
	room := rt.maxRecord - len(ev.AggregateID) - len(ev.ID)
	for name, payload := range map[string]string{"text": strings.Repeat("x", room), "bytea": `\x` + strings.Repeat("00", room)} {
		ev.Payload, ev.PayloadHex = []byte(payload), name == "bytea"
		if err := rt.fill(r, ev); err != nil || len(r.Key)+len(r.Value)+len(ev.ID) != rt.maxRecord {
			t.Errorf("%s: %v", name, err)
		}
		ev.Payload = append(ev.Payload, "00"...)
		if err := rt.fill(r, ev); err == nil {
			t.Errorf("%s: a record that is larger passes", name)
		}
	}
}

// The topic's name comes out of a row: nobody may write checkpoints that way.
func TestNoEventGoesToTheReservedTopic(t *testing.T) {
	rt, r := testRouter(), &record{}
	ev := orderEvent()
	for _, name := range []string{"checkpoints", "dead"} {
		ev.AggregateType = []byte(name)
		err := rt.fill(r, ev)
		if e, ok := errors.AsType[*PoisonError](err); !ok || !strings.Contains(err.Error(), "for walferry alone") || e.ID != "id-1" || e.Source != ev.Source {
			t.Errorf("%s: %v (%+v), want a PoisonError", name, err, e)
		}
	}
}

func TestFillMakesDebeziumsRecord(t *testing.T) {
	rt, r := testRouter(), &record{}
	if err := rt.fill(r, orderEvent()); err != nil {
		t.Fatal(err)
	}
	if r.Topic != "outbox.event.order" || string(r.Key) != "42" || string(r.Value) != `{"a": 1}` {
		t.Errorf("record %s %q %q", r.Topic, r.Key, r.Value)
	}
	h := headersOf(r)
	if len(r.Headers) != 2 || h["id"] != "id-1" || h["walferry-position"] != "7000/1/0/15A1DB3/2" {
		t.Errorf("headers %v", h)
	}
}

func TestFillHeaders(t *testing.T) {
	rt, r := testRouter(), &record{}
	rt.positionHeader = ""
	ev := orderEvent()
	ev.Source = 1
	if err := rt.fill(r, ev); err != nil {
		t.Fatal(err)
	}
	if h := headersOf(r); r.Topic != "constant" || len(h) != 2 || h["eventType"] != "OrderPlaced" {
		t.Errorf("topic %s, headers %v, want id and eventType", r.Topic, h)
	}
	ev.Type = nil
	if err := rt.fill(r, ev); err != nil {
		t.Fatal(err)
	}
	if h := headersOf(r); len(h) != 1 {
		t.Errorf("headers of an event without type: %v", h)
	}
}

func TestFillPayloads(t *testing.T) {
	for _, c := range []struct {
		name    string
		payload []byte
		hex     bool
		want    []byte
	}{
		{"NULL is a tombstone", nil, false, nil},
		{"NULL bytea is a tombstone", nil, true, nil},
		{"empty is not", []byte{}, false, []byte{}},
		{"bytea is its bytes", []byte(`\x00ff10`), true, []byte{0, 0xff, 0x10}},
		{"empty bytea", []byte(`\x`), true, []byte{}},
		{"text that looks like bytea", []byte(`\x00`), false, []byte(`\x00`)},
	} {
		rt, r, ev := testRouter(), &record{}, orderEvent()
		ev.Payload, ev.PayloadHex = c.payload, c.hex
		if err := rt.fill(r, ev); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if string(r.Value) != string(c.want) || (r.Value == nil) != (c.want == nil) {
			t.Errorf("%s: value %v, want %v", c.name, r.Value, c.want)
		}
	}
}

func TestFillOwnsItsBytes(t *testing.T) {
	rt, r, ev := testRouter(), &record{}, orderEvent()
	if err := rt.fill(r, ev); err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{ev.ID, ev.AggregateType, ev.AggregateID, ev.Type, ev.Payload} {
		clear(b)
	}
	if r.Topic != "outbox.event.order" || string(r.Key) != "42" || string(r.Value) != `{"a": 1}` || headersOf(r)["id"] != "id-1" {
		t.Error("the record changed with the event's bytes")
	}
}

func TestFillRefusesPoison(t *testing.T) {
	const secret = "s3cret"
	long := strings.Repeat("x", 250)
	for _, c := range []struct {
		name, want string
		change     func(*decode.Event)
	}{
		{"empty topic rest", "", func(ev *decode.Event) { ev.AggregateType = []byte("") }},
		{"space", "character at byte 19", func(ev *decode.Event) { ev.AggregateType = []byte(secret + " x") }},
		{"long", "Kafka allows 249", func(ev *decode.Event) { ev.AggregateType = []byte(long) }},
		{"record size", "kafka.max_record allows 1000", func(ev *decode.Event) { ev.Payload = []byte(strings.Repeat(secret, 200)) }},
		{"bytea in escape form", "hex form", func(ev *decode.Event) { ev.Payload, ev.PayloadHex = []byte(secret), true }},
		{"bytea of half a byte", "hex form", func(ev *decode.Event) { ev.Payload, ev.PayloadHex = []byte(`\x0`), true }},
	} {
		rt, r, ev := testRouter(), &record{}, orderEvent()
		c.change(ev)
		err := rt.fill(r, ev)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if _, ok := errors.AsType[*PoisonError](err); !ok || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "7000/1/0/15A1DB3/2") {
			t.Errorf("%s: %v, want a PoisonError with %q and the position", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error shows a value: %v", c.name, err)
		}
	}
}

func TestIllegalTopics(t *testing.T) {
	for _, name := range []string{"", ".", "..", "__consumer_offsets", "a b", "ä", "a/b", "a\x00", strings.Repeat("x", 250)} {
		if IllegalTopic(name) == "" {
			t.Errorf("%q was accepted", name)
		}
	}
	for _, name := range []string{"a", "A.b_c-9", "...", "_a", strings.Repeat("x", 249)} {
		if reason := IllegalTopic(name); reason != "" {
			t.Errorf("%q was refused: %s", name, reason)
		}
	}
}

func TestFillDoesNotAllocate(t *testing.T) {
	rt, r, ev := testRouter(), &record{}, orderEvent()
	if got := testing.AllocsPerRun(1000, func() { _ = rt.fill(r, ev) }); got != 0 {
		t.Errorf("%v allocations a record", got)
	}
}

// A record that is made of something else than the WAL has no position, and says so in headers that come last.
func TestConstantHeadersComeLast(t *testing.T) {
	p := NewPreview(Config{
		Routes: []Route{{Topic: "outbox.event.{aggregatetype}", TypeHeader: "eventType"}}, MaxRecord: 1000,
		Headers: []kgo.RecordHeader{{Key: "walferry-source", Value: []byte("table")}, {Key: "more", Value: []byte("1")}},
	})
	for range 2 { // a record is used again
		r, err := p.Record(orderEvent())
		if err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprintf("%s %s %s", r.Topic, r.Key, r.Headers), "outbox.event.order 42 [{id id-1} {eventType OrderPlaced} {walferry-source table} {more 1}]"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	ev := orderEvent()
	ev.AggregateType = []byte("no topic")
	if _, err := p.Record(ev); err == nil {
		t.Error("an event without a topic has a record")
	}
}
