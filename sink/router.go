package sink

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/decode"
)

// Route says how events of one source become records.
type Route struct {
	// Topic is a topic name in which {aggregatetype} stands for the event's
	// aggregate type; without it every event goes to one topic.
	Topic string
	// TypeHeader names the header that carries the event's type; empty: none does.
	TypeHeader string
}

// Partitioner chooses as Kafka's Java client does: by the murmur2 hash of the key.
func Partitioner() kgo.Partitioner { return kgo.StickyKeyPartitioner(nil) }

const topicPlaceholder = "{aggregatetype}"

// Refused is the event of an error of this package.
type Refused struct {
	Position decode.Position
	Source   int    // as decode.Event.Source
	ID       string // of the event; it is not part of any text
	Topic    string // may be empty
}

// EventError is an error of one event: *PoisonError, *TopicError or *PublishError.
type EventError interface {
	error
	Event() *Refused
	Why() string // without the event
}

// Event returns r.
func (r *Refused) Event() *Refused { return r }

func refuse(ev *decode.Event, topic string) Refused {
	return Refused{ev.Position, ev.Source, string(ev.ID), topic}
}

// PoisonError is an event that cannot become a Kafka record, now or ever.
type PoisonError struct {
	Refused
	Reason string
}

func poison(ev *decode.Event, topic, reason string) *PoisonError {
	return &PoisonError{refuse(ev, topic), reason}
}

// Why returns the reason.
func (e *PoisonError) Why() string { return e.Reason }

func (e *PoisonError) Error() string {
	if e.Topic == "" {
		return fmt.Sprintf("event %s cannot be published: %s", e.Position, e.Reason)
	}
	return fmt.Sprintf("event %s cannot be published to topic %q: %s", e.Position, e.Topic, e.Reason)
}

// router turns events into records. It belongs to the goroutine that publishes.
type router struct {
	routes         []Route // by decode.Event.Source
	positionHeader string
	headers        []kgo.RecordHeader // the last ones of each record
	maxRecord      int
	reserved       []string
	topics         []map[string]string // by source: aggregate type → topic, so that no name is built twice
}

func newRouter(cfg Config) router {
	topics := make([]map[string]string, len(cfg.Routes))
	for i := range topics {
		topics[i] = map[string]string{}
	}
	return router{routes: cfg.Routes, positionHeader: cfg.PositionHeader, headers: cfg.Headers, maxRecord: cfg.MaxRecord, reserved: cfg.Reserved, topics: topics}
}

// Check reports whether ev can be published as far as that can be known without the brokers: its
// errors are *PoisonError.
func Check(cfg Config, ev *decode.Event) error {
	_, err := NewPreview(cfg).Record(ev)
	return err
}

// Preview makes the records of events without publishing them. One goroutine uses it.
type Preview struct {
	router router
	record record
}

// NewPreview needs no brokers.
func NewPreview(cfg Config) *Preview { return &Preview{router: newRouter(cfg)} }

// Record returns the record that ev becomes, which is valid until the next call. Its errors are *PoisonError.
func (p *Preview) Record(ev *decode.Event) (*kgo.Record, error) {
	if err := p.router.fill(&p.record, ev); err != nil {
		return nil, err
	}
	return &p.record.Record, nil
}

// Topic returns the topic that ev goes to. Its errors are *PoisonError.
func (p *Preview) Topic(ev *decode.Event) (string, error) { return p.router.topic(ev) }

// MayPublish reports whether the sources' events may go to a topic. Any number of goroutines may call it.
func (p *Preview) MayPublish(topic string) bool { return p.router.mayPublish(topic) }

// fill makes r the record of ev. It makes the one copy of the event's bytes; r
// aliases nothing of ev. Its errors are *PoisonError.
func (rt *router) fill(r *record, ev *decode.Event) error {
	topic, err := rt.topic(ev)
	if err != nil {
		return err
	}
	// Checked before anything is copied or sent: the brokers' refusal would come too late, for
	// by then later records of the partition may be on their way (docs/adr/0006).
	size := rt.recordSize(ev)
	if size > rt.maxRecord {
		return poison(ev, topic, fmt.Sprintf("the record has %d bytes, kafka.max_record allows %d", size, rt.maxRecord))
	}
	r.position, r.source = ev.Position, ev.Source
	b := slices.Grow(r.bytes[:0], size+decode.MaxPosition)
	b = append(b, ev.AggregateID...)
	key := len(b)
	if b, err = appendPayload(b, ev); err != nil {
		return poison(ev, topic, err.Error())
	}
	value := len(b)
	b = append(b, ev.ID...)
	id := len(b)
	if rt.positionHeader != "" {
		b = ev.Position.AppendText(b)
	}
	position := len(b)
	typeHeader := rt.routes[ev.Source].TypeHeader
	if typeHeader != "" {
		b = append(b, ev.Type...)
	}
	r.bytes = b

	r.Record = kgo.Record{Topic: topic, Key: b[:key:key], Value: b[key:value:value]}
	if ev.Payload == nil {
		r.Value = nil // a tombstone
	}
	headers := append(r.headers[:0], kgo.RecordHeader{Key: "id", Value: b[value:id:id]})
	if rt.positionHeader != "" {
		headers = append(headers, kgo.RecordHeader{Key: rt.positionHeader, Value: b[id:position:position]})
	}
	if typeHeader != "" && ev.Type != nil {
		headers = append(headers, kgo.RecordHeader{Key: typeHeader, Value: b[position:]})
	}
	r.Headers = append(headers, rt.headers...)
	return nil
}

// recordSize returns the bytes of key, value and the headers that the event brings.
func (rt *router) recordSize(ev *decode.Event) int {
	size := len(ev.AggregateID) + len(ev.Payload) + len(ev.ID)
	if ev.PayloadHex && ev.Payload != nil {
		size += (len(ev.Payload)-len(`\x`))/2 - len(ev.Payload)
	}
	if rt.routes[ev.Source].TypeHeader != "" {
		size += len(ev.Type)
	}
	return size
}

// appendPayload appends the record's value: of a bytea its bytes, of any other type
// what Postgres prints.
func appendPayload(b []byte, ev *decode.Event) ([]byte, error) {
	if !ev.PayloadHex || ev.Payload == nil {
		return append(b, ev.Payload...), nil
	}
	digits, ok := bytes.CutPrefix(ev.Payload, []byte(`\x`))
	b, err := hex.AppendDecode(b, digits)
	if !ok || err != nil {
		return b, errors.New("the bytea payload is not in hex form")
	}
	return b, nil
}

// topic returns the name of the topic for ev and refuses one that Kafka would not take, or
// that is Kafka's own: the name comes out of a row that anybody may have written.
func (rt *router) topic(ev *decode.Event) (string, error) {
	template := rt.routes[ev.Source].Topic
	if !strings.Contains(template, topicPlaceholder) {
		return template, nil // and no memory of aggregate types, of which there may be any number
	}
	if name, ok := rt.topics[ev.Source][string(ev.AggregateType)]; ok {
		return name, nil
	}
	name := strings.ReplaceAll(template, topicPlaceholder, string(ev.AggregateType))
	reason := IllegalTopic(name)
	if reason == "" && slices.Contains(rt.reserved, name) {
		reason = "it is a topic for walferry alone, checkpoint.topic or kafka.dead_letter_topic"
	}
	if reason != "" {
		// The name is not shown: it holds data.
		return "", poison(ev, "", "its aggregate type does not make a legal topic name: "+reason)
	}
	rt.topics[ev.Source][string(ev.AggregateType)] = name
	return name, nil
}

// mayPublish reports whether events may go to a topic: no name that topic gives is missed.
func (rt *router) mayPublish(topic string) bool {
	return slices.ContainsFunc(rt.routes, func(r Route) bool {
		parts := strings.Split(r.Topic, topicPlaceholder)
		last := len(parts) - 1
		return r.Topic == topic || last > 0 && strings.HasPrefix(topic, parts[0]) && strings.HasSuffix(topic, parts[last])
	})
}

// IllegalTopic says what is wrong with a topic name, "" if nothing is, by Kafka's own rule
// (org.apache.kafka.common.internals.Topic).
func IllegalTopic(name string) string {
	const longest = 249
	switch {
	case name == "", name == ".", name == "..":
		return "it is empty, . or .."
	case len(name) > longest:
		return fmt.Sprintf("it has %d characters, Kafka allows %d", len(name), longest)
	case strings.HasPrefix(name, "__"):
		return "names that begin with __ are Kafka's own"
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return fmt.Sprintf("the character at byte %d is none of a-z A-Z 0-9 . _ -", i)
		}
	}
	return ""
}
