package bridge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
)

// DeadLetter is an event that was moved out of the way. Its JSON is the decision that the bridge
// goes by; it has neither payload nor key.
type DeadLetter struct {
	Where     string    `json:"where"`
	Reason    string    `json:"reason"`
	Committed time.Time `json:"committed"` // by Postgres' clock
	Size      int       `json:"size"`      // bytes of the pgoutput message
	Topic     string    `json:"topic"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	Time      time.Time `json:"time"` // when it was moved, by our clock
}

// DeadLetterError is an event that is not moved.
type DeadLetterError struct{ Reason, Hint string }

func (e *DeadLetterError) Error() string { return e.Reason }

var errNeedsCheckpoints = &DeadLetterError{
	"it needs checkpoints, and checkpoint.topic is empty",
	"set checkpoint.topic; until then the log of the bridge names the event, and only what writes such events, or the configuration, can be corrected",
}

// MoveToDeadLetters publishes the original bytes of the event at a position to
// kafka.dead_letter_topic and, when the brokers have confirmed that, notes for the bridge to pass
// over it. An error in between leaves a dead letter too many, never one too few. Nothing
// is confirmed to Postgres.
//
// It moves only what can never be published, or what the bridge has noted that the brokers refuse.
// The slot must be free. Its errors are *Error.
func MoveToDeadLetters(ctx context.Context, o Options, at decode.Position) (*DeadLetter, error) {
	letter, err := moveToDeadLetters(ctx, o, at)
	return letter, Explain(o.Database.Name, err)
}

func moveToDeadLetters(ctx context.Context, o Options, at decode.Position) (*DeadLetter, error) {
	if o.Checkpoint.Topic == "" {
		return nil, errNeedsCheckpoints
	}
	o.AdoptSlot, o.AcceptGap = false, false // that is not decided here
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	s := &session{Bridge: New(o), fail: fail}
	if err := s.open(ctx); err != nil {
		if classify(err).class == Standby {
			return nil, &DeadLetterError{
				fmt.Sprintf("slot %q is held by %s", o.Database.Slot, s.Status().Holder),
				"an event is moved while the bridge of its database has halted; stop what restarts it, or try again when it has halted",
			}
		}
		return nil, err
	}
	defer s.stream.Close(ctx)
	slot, err := replication.ReadSlot(ctx, s.watch.Conn, s.db.Slot)
	defer s.beside(ctx)() // it confirms what the slot has confirmed already, no more
	defer context.AfterFunc(ctx, s.stream.Interrupt)()
	if err == nil && o.ExactlyOnce {
		s.sink, s.batch, err = s.newBatch(ctx)
	}
	if err == nil {
		err = s.resume(ctx)
	}
	if s.store != nil {
		defer func() { s.store.Close() }() // the one that is open then: see abort
	}
	if err == nil {
		err = s.recallPoison(ctx)
	}
	if err != nil {
		return nil, err
	}
	switch {
	case at.SystemID != s.stream.Server.SystemID:
		return nil, &DeadLetterError{fmt.Sprintf("%s is a position of another cluster: this one has the system identifier %s", at, s.stream.Server.SystemID), "choose the database with --database"}
	case s.resumed.Covers(replication.LSN(at.CommitLSN), at.Index):
		return nil, &DeadLetterError{fmt.Sprintf("the checkpoint %s is past event %s: it is published, or was a dead letter before", s.resumed.Flushed, at), ""}
	case slot.ServerLSN <= replication.LSN(at.CommitLSN): // the stream would never come to it
		return nil, s.notThere(at)
	case s.dead[at]:
		return nil, &DeadLetterError{fmt.Sprintf("event %s is a dead letter already", at), "restart walferry: it passes over the event"}
	}
	letter, record, err := s.find(ctx, at)
	if err != nil {
		return nil, err
	}
	return letter, s.move(ctx, at, letter, record)
}

func (s *session) notThere(at decode.Position) error {
	return &DeadLetterError{fmt.Sprintf("there is no outbox event %s in slot %q", at, s.db.Slot), "`walferry poison show` prints the position to give"}
}

// find reads the stream up to the event at a position and makes a record of it.
func (s *session) find(ctx context.Context, at decode.Position) (*DeadLetter, *kgo.Record, error) {
	letter := &DeadLetter{Topic: s.options.Kafka.DeadLetterTopic}
	for {
		m, err := s.stream.Receive()
		switch {
		case ctx.Err() != nil:
			return nil, nil, &DeadLetterError{
				fmt.Sprintf("event %s was not reached in slot %q: %v", at, s.db.Slot, context.Cause(ctx)), "raise --timeout: the stream is read from where the slot stands",
			}
		case err != nil:
			return nil, nil, err
		case m.Keepalive() && m.WALEnd <= replication.LSN(at.CommitLSN):
			continue
		case m.Keepalive():
			return nil, nil, s.notThere(at)
		}
		c, err := s.decoder.Decode(m.Data)
		contract, ok := errors.AsType[*decode.ContractError](err)
		switch {
		case ok && contract.Position == at:
			letter.Where, letter.Reason = contract.Where, strings.TrimSpace(contract.Column+" "+contract.Reason)
			return letter, s.letter(at, letter, m.Data, contract.ID), nil
		case ok:
			continue
		case err != nil:
			return nil, nil, err
		}
		switch c.Kind {
		case decode.Begin:
			letter.Committed = c.CommitTime
			if c.CommitLSN > at.CommitLSN {
				return nil, nil, s.notThere(at)
			}
		case decode.Row, decode.Message:
			if c.Event.Position == at {
				letter.Where = s.decode.Where(c.Event.Source)
				if letter.Reason, err = s.whyPoison(ctx, &c.Event); err != nil {
					return nil, nil, err
				}
				return letter, s.letter(at, letter, m.Data, string(c.Event.ID)), nil
			}
		}
	}
}

// whyPoison says why a well-formed event cannot be published, or fails. What only the brokers can
// tell they are asked: of a batch that they refuse, the bridge can note the first event only.
func (s *session) whyPoison(ctx context.Context, ev *decode.Event) (string, error) {
	if e, ok := errors.AsType[*sink.PoisonError](sink.Check(s.sinkConfig(), ev)); ok {
		return e.Reason, nil
	}
	if s.note == nil || s.note.Position != ev.Position.String() {
		return "", &DeadLetterError{
			fmt.Sprintf("event %s is not moved: it can be published, and the bridge has not noted that the brokers refuse it", ev.Position),
			"`walferry run` publishes it; if it halts there, `walferry poison show` says why",
		}
	}
	err := s.try(ctx, ev)
	if e, ok := errors.AsType[sink.EventError](err); ok && stuck(err) {
		return e.Why(), nil
	}
	if err != nil {
		return "", err
	}
	published := ", and it is published"
	if s.batch != nil {
		published = ""
	}
	return "", &DeadLetterError{
		fmt.Sprintf("event %s is not moved: the brokers take it now%s", ev.Position, published),
		"restart walferry; if it halts there again, the brokers refuse the batch around it: raise max.message.bytes of the topic to kafka.max_record, or lower kafka.max_record",
	}
}

// try publishes an event alone: with exactly-once in a transaction that it aborts.
func (s *session) try(ctx context.Context, ev *decode.Event) error {
	if s.batch == nil {
		k, err := s.openSink(ctx)
		if err != nil {
			return err
		}
		defer k.Close()
		if err := k.Publish(ctx, ev, time.Now(), func(error) {}); err != nil {
			return err
		}
		return k.Flush(ctx)
	}
	err := s.sink.Publish(ctx, ev, time.Now(), func(error) {})
	if err == nil {
		s.sink.Cut()
		err = s.sink.Settle(ctx)
	}
	return cmp.Or(s.abort(ctx), err)
}

// letter makes the record of a dead letter, with what a person needs to read it.
func (s *session) letter(at decode.Position, l *DeadLetter, wal []byte, id string) *kgo.Record {
	l.Size, l.Time = len(wal), time.Now().UTC().Truncate(time.Second)
	r := &kgo.Record{Topic: l.Topic, Key: []byte(at.String()), Value: append([]byte(nil), wal...)}
	add := func(name, value string) {
		if value != "" {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: "walferry-" + name, Value: []byte(value)})
		}
	}
	add("position", at.String())
	add("database", s.db.Name)
	add("slot", s.db.Slot)
	add("where", l.Where)
	add("reason", l.Reason)
	add("committed", l.Committed.UTC().Format(time.RFC3339Nano))
	add("id", id)
	if names := s.decoder.ColumnNames(wal); names != nil {
		columns, _ := json.Marshal(names) // texts can be encoded
		add("columns", string(columns))
	}
	return r
}

// move publishes a dead letter and, when it is confirmed, notes it for the bridge.
func (s *session) move(ctx context.Context, at decode.Position, l *DeadLetter, r *kgo.Record) error {
	client, err := kafkaClient(s.options)
	if err != nil {
		return err
	}
	cfg := s.sinkConfig()
	cfg.Client = client
	if err := sink.PublishDeadLetter(ctx, cfg, r); err != nil {
		return err
	}
	l.Partition, l.Offset = r.Partition, r.Offset
	value, _ := json.Marshal(l) // as in notePoison
	decision := map[string][]byte{checkpointKey(s.db) + deadKey + at.String(): value}
	if s.note != nil && s.note.Position == at.String() {
		decision[checkpointKey(s.db)+noteKey] = nil
	}
	if err := s.store.Write(ctx, decision); err != nil {
		return fmt.Errorf("the event is in topic %q, at offset %d of partition %d, but that the bridge may pass over it could not be noted: %w", l.Topic, l.Offset, l.Partition, err)
	}
	return nil
}
