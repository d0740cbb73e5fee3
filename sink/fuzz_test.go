package sink

import (
	"bytes"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/walferry/walferry/decode"
)

// FuzzTopic takes any text for an aggregate type: the topic is a name that Kafka takes, and
// neither Kafka's own nor walferry's.
func FuzzTopic(f *testing.F) {
	for _, template := range []string{"outbox.event.{aggregatetype}", "{aggregatetype}", "_{aggregatetype}", "{aggregatetype}-{aggregatetype}", ".", "constant"} {
		for _, aggregateType := range []string{"order", "", ".", "_", "__consumer_offsets", "a b", "ä", "checkpoints", "{aggregatetype}", "a\x00", "\xff", strings.Repeat("x", 249)} {
			f.Add(template, aggregateType)
		}
	}
	f.Fuzz(func(t *testing.T, template, aggregateType string) {
		const reserved = "outbox.event.checkpoints"
		rt := newRouter(Config{Routes: []Route{{Topic: template}}, MaxRecord: 1 << 20, Reserved: []string{"dead", reserved}})
		ev := orderEvent()
		ev.AggregateType = []byte(aggregateType)
		if !strings.Contains(template, topicPlaceholder) {
			// The aggregate type has no part in the name, which the configuration has checked.
			if name, err := rt.topic(ev); name != template || err != nil {
				t.Errorf("topic %q, %v", name, err)
			}
			return
		}
		want := strings.Join(strings.Split(template, "{aggregatetype}"), aggregateType)
		for range 2 { // the second one is remembered
			name, err := rt.topic(ev)
			if legal := kafkaTakes(want) && want != reserved && want != "dead"; legal != (err == nil) {
				t.Fatalf("%q is legal: %t, but %v", want, legal, err)
			}
			if err == nil && name != want {
				t.Errorf("topic %q, want %q", name, want)
			}
			if _, ok := errors.AsType[*PoisonError](err); err != nil && !ok {
				t.Errorf("error %T, want a PoisonError", err)
			}
		}
	})
}

var (
	topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)
	hexForm   = regexp.MustCompile(`^\\x([0-9a-fA-F]{2})*$`)
)

// kafkaTakes is the rule of org.apache.kafka.common.internals.Topic, and that names with __
// are Kafka's own.
func kafkaTakes(name string) bool {
	return topicName.MatchString(name) && len(name) <= 249 &&
		name != "." && name != ".." && !strings.HasPrefix(name, "__")
}

// FuzzFill makes records of any events: key, value and headers are the event's, and still are
// when its bytes have changed.
func FuzzFill(f *testing.F) {
	f.Add([]byte("id-1"), []byte("42"), []byte("OrderPlaced"), []byte(`{"a": 1}`), uint8(0))
	f.Add([]byte(""), []byte(""), []byte(""), []byte(""), uint8(1))
	f.Add([]byte("id"), []byte("k"), []byte("T"), []byte(`\x00ff10`), uint8(hexPayload))
	f.Add([]byte("id"), []byte("k"), []byte("T"), []byte(`\xDEADbeef`), uint8(hexPayload|noPosition|typeHeader))
	f.Add([]byte("id"), []byte("k"), []byte("T"), []byte(`\x0`), uint8(hexPayload))
	f.Add([]byte("id"), []byte("k"), []byte("T"), []byte(`00`), uint8(hexPayload))
	f.Add([]byte("id"), []byte("k"), []byte("T"), bytes.Repeat([]byte("x"), 1000), uint8(typeHeader))
	f.Add([]byte("id"), []byte("k"), []byte("T"), []byte("p"), uint8(noType|noPayload|typeHeader))
	f.Fuzz(func(t *testing.T, id, key, kind, payload []byte, flags uint8) {
		ev := &decode.Event{
			Position: decode.Position{SystemID: "7000", Timeline: 1, CommitLSN: 0x15A1DB3, Index: 2},
			ID:       id, AggregateType: []byte("order"), AggregateID: key, Type: kind, Payload: payload, PayloadHex: flags&hexPayload != 0,
		}
		rt := testRouter()
		if flags&noPosition != 0 {
			rt.positionHeader = ""
		}
		if flags&typeHeader != 0 {
			ev.Source = 1
		}
		if flags&noType != 0 {
			ev.Type = nil
		}
		if flags&noPayload != 0 {
			ev.Payload = nil
		}
		want, legal := naiveRecord(ev, flags)
		r := &record{}
		r.bytes = bytes.Repeat([]byte{0xA5}, 32) // of the record before it
		err := rt.fill(r, ev)
		if err != nil {
			poison, ok := errors.AsType[*PoisonError](err)
			if !ok || legal && want.size() < rt.maxRecord {
				t.Fatalf("%T: %v", err, err)
			}
			if poison.ID != string(id) || poison.Source != ev.Source || poison.Position != ev.Position {
				t.Errorf("the error is of event %q, source %d, position %s", poison.ID, poison.Source, poison.Position)
			}
			return
		}
		if !legal {
			t.Fatal("a payload that is not in hex form was accepted")
		}
		if size := len(r.Key) + len(r.Value) + len(id); size > rt.maxRecord {
			t.Errorf("%d bytes of key, value and id, the limit is %d", size, rt.maxRecord)
		}
		for _, b := range [][]byte{id, key, kind, payload} {
			clear(b)
		}
		want.compare(t, r)
	})
}

// Bits of FuzzFill's flags.
const (
	hexPayload = 1 << iota
	noPosition
	typeHeader
	noType
	noPayload
)

// naive is what a record must have.
type naive struct {
	topic, key, value, kind string
	tombstone               bool
	headers                 [][2]string
}

// size counts an event's type also when no header carries it, as kafka.max_record does.
func (n naive) size() int { return len(n.key) + len(n.value) + len(n.headers[0][1]) + len(n.kind) + 1 }

// naiveRecord reports false for a bytea that is not in hex form.
func naiveRecord(ev *decode.Event, flags uint8) (n naive, legal bool) {
	n = naive{
		topic: "outbox.event.order", key: string(ev.AggregateID), value: string(ev.Payload), kind: string(ev.Type),
		tombstone: ev.Payload == nil, headers: [][2]string{{"id", string(ev.ID)}},
	}
	if flags&noPosition == 0 {
		n.headers = append(n.headers, [2]string{"walferry-position", "7000/1/0/15A1DB3/2"})
	}
	if flags&typeHeader != 0 {
		n.topic = "constant"
		if ev.Type != nil {
			n.headers = append(n.headers, [2]string{"eventType", string(ev.Type)})
		}
	}
	if !ev.PayloadHex || n.tombstone {
		return n, true
	}
	if !hexForm.Match(ev.Payload) {
		return n, false
	}
	digits := n.value[2:]
	n.value = ""
	for ; digits != ""; digits = digits[2:] {
		b, err := strconv.ParseUint(digits[:2], 16, 8)
		if err != nil {
			return n, false
		}
		n.value += string([]byte{byte(b)})
	}
	return n, true
}

func (n naive) compare(t *testing.T, r *record) {
	t.Helper()
	if r.Topic != n.topic || r.Key == nil || string(r.Key) != n.key || string(r.Value) != n.value || (r.Value == nil) != n.tombstone {
		t.Errorf("record %s %q %q (tombstone %t), want %+v", r.Topic, r.Key, r.Value, r.Value == nil, n)
	}
	if len(r.Headers) != len(n.headers) {
		t.Fatalf("headers %v, want %v", r.Headers, n.headers)
	}
	for i, h := range n.headers {
		if r.Headers[i].Key != h[0] || string(r.Headers[i].Value) != h[1] {
			t.Errorf("header %s=%q, want %s=%q", r.Headers[i].Key, r.Headers[i].Value, h[0], h[1])
		}
	}
	if got := r.position.String(); got != "7000/1/0/15A1DB3/2" {
		t.Errorf("position %s", got)
	}
}
