package replay

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
)

// output is where events go.
type output interface {
	// publish hands an event on and returns its topic. With nil done is called once; with an error, as of sink.Kafka, it is not.
	publish(ctx context.Context, ev *decode.Event, at, committed time.Time, done func(error)) (topic string, err error)
	// flush waits until all is done.
	flush(context.Context) error
	close()
}

// output opens what the options say.
func (r *run) output(ctx context.Context) (output, error) {
	cfg := r.SinkConfig()
	cfg.PositionHeader = cmp.Or(cfg.PositionHeader, positionHeader)
	if r.table {
		cfg = r.TableSinkConfig()
	}
	cfg.Headers = append(cfg.Headers, kgo.RecordHeader{Key: bridge.ReplayHeader, Value: []byte(r.id)})
	if !r.Target.InPlace {
		if reason := sink.IllegalTopic(r.Target.Prefix + "x"); reason != "" {
			return nil, replication.Refuse("choose another --topic-prefix", "%q cannot begin the name of a topic: %s", r.Target.Prefix, reason)
		}
		for i := range cfg.Routes {
			cfg.Routes[i].Topic = r.Target.Prefix + cfg.Routes[i].Topic
		}
		cfg.Like = func(topic string) string { return strings.TrimPrefix(topic, r.Target.Prefix) }
	}
	preview := sink.NewPreview(cfg)
	switch {
	case r.DryRun:
		return &counted{preview: preview}, nil
	case r.Lines != nil:
		return &lines{counted{preview: preview}, bufio.NewWriter(r.Lines), cfg.PositionHeader}, nil
	}
	cfg.Created = func(topic string) { r.Say("created topic " + topic) }
	k, err := r.OpenSink(ctx, cfg)
	return &kafka{k, preview}, err
}

// kafka publishes to Kafka.
type kafka struct {
	sink    *sink.Kafka
	preview *sink.Preview
}

func (k *kafka) publish(ctx context.Context, ev *decode.Event, at, _ time.Time, done func(error)) (string, error) {
	topic, err := k.preview.Topic(ev)
	if err == nil {
		err = k.sink.Publish(ctx, ev, at, done)
	}
	return topic, err
}

func (k *kafka) flush(ctx context.Context) error { return k.sink.Flush(ctx) }
func (k *kafka) close()                          { k.sink.Close() }

// counted goes nowhere.
type counted struct{ preview *sink.Preview }

func (c *counted) publish(_ context.Context, ev *decode.Event, _, _ time.Time, done func(error)) (string, error) {
	record, err := c.preview.Record(ev)
	if err != nil {
		return "", err
	}
	done(nil)
	return record.Topic, nil
}

func (*counted) flush(context.Context) error { return nil }
func (*counted) close()                      {}

// lines writes an object of JSON a line.
type lines struct {
	counted
	w              *bufio.Writer
	positionHeader string
}

// line is an event as a line. What is not UTF-8 is in base64, in the field that ends so.
type line struct {
	Position  string            `json:"position,omitempty"`
	Committed time.Time         `json:"committed,omitzero"`
	Topic     string            `json:"topic"`
	Key       *string           `json:"key,omitempty"`
	KeyBase64 []byte            `json:"key_base64,omitempty"`
	Headers   map[string]string `json:"headers"`
	// Value is null for a tombstone.
	Value       *string `json:"value"`
	ValueBase64 []byte  `json:"value_base64,omitempty"`
}

func (l *lines) publish(_ context.Context, ev *decode.Event, _, committed time.Time, done func(error)) (string, error) {
	record, err := l.preview.Record(ev)
	if err != nil {
		return "", err
	}
	if err := l.write(record, ev, committed); err != nil {
		return "", fmt.Errorf("write event %s: %w", ev.Position, err)
	}
	done(nil)
	return record.Topic, nil
}

func (l *lines) write(record *kgo.Record, ev *decode.Event, committed time.Time) error {
	out := line{Committed: committed.UTC(), Topic: record.Topic, Headers: map[string]string{}}
	if l.positionHeader != "" {
		out.Position = ev.Position.String()
	}
	out.Key, out.KeyBase64 = text(record.Key)
	if record.Value != nil {
		out.Value, out.ValueBase64 = text(record.Value)
	}
	for _, h := range record.Headers {
		if h.Key != l.positionHeader && h.Key != bridge.ReplayHeader {
			out.Headers[h.Key] = string(h.Value)
		}
	}
	encoder := json.NewEncoder(l.w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(&out)
}

// text returns what is UTF-8 as a text, anything else as bytes.
func text(b []byte) (*string, []byte) {
	if !utf8.Valid(b) {
		return nil, b
	}
	s := string(b)
	return &s, nil
}

func (l *lines) flush(context.Context) error { return l.w.Flush() }

// close writes what a replay that ends before its time has left: whole lines.
func (l *lines) close() { _ = l.w.Flush() }
