package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
)

// PoisonNote is what a bridge notes, beside its checkpoint, of the event that it halted before. It
// has neither payload nor key.
type PoisonNote struct {
	Position string    `json:"position"`
	Where    string    `json:"where"`        // outbox table or message prefix
	ID       string    `json:"id,omitempty"` // of the event, shortened to maxNotedID; empty if it cannot be read
	Reason   string    `json:"reason"`
	Time     time.Time `json:"time"` // when the bridge halted, by our clock
}

// Poisoned is what the checkpoints of a slot say of events that cannot be published.
type Poisoned struct {
	Note         *PoisonNote       // nil if the bridge is not known to have halted on one
	DeadLettered []decode.Position // of events that are dead letters and that it has not passed yet
}

const (
	noteKey = "/poison"
	deadKey = "/dead/" // followed by the position
	// maxNotedID bounds the bytes of an id in a note: anybody may have written it.
	maxNotedID = 100
)

// ReadPoison returns what is known of poison in one slot. It needs neither Postgres nor the slot.
func ReadPoison(ctx context.Context, o Options) (*Poisoned, error) {
	if o.Checkpoint.Topic == "" {
		return nil, errNeedsCheckpoints
	}
	c, values, err := readCheckpoints(ctx, o)
	if err != nil || c == nil {
		return &Poisoned{}, err
	}
	p, _, err := poisoned(values, checkpointKey(o.Database), c.SystemID, c.Progress())
	return p, err
}

// poisoned reads the notes in values that progress has not passed, and returns those that it
// has passed, or that are of another cluster, as keys to remove. A note for people that cannot be
// read goes too; a decision that cannot be read is an error.
func poisoned(values map[string][]byte, key, systemID string, progress replication.Progress) (_ *Poisoned, passed map[string][]byte, err error) {
	p, passed := &Poisoned{}, map[string][]byte{}
	for k, value := range values {
		text, dead := strings.CutPrefix(k, key+deadKey)
		var note PoisonNote
		if k == key+noteKey {
			_ = json.Unmarshal(value, &note)
			text = note.Position
		} else if !dead {
			continue
		}
		at, err := decode.ParsePosition(text)
		switch {
		case err != nil && dead:
			return nil, nil, &checkpoint.CorruptError{Reason: fmt.Sprintf("key %q: %v", k, err)}
		case err != nil, at.SystemID != systemID, progress.Covers(replication.LSN(at.CommitLSN), at.Index):
			passed[k] = nil
		case dead:
			p.DeadLettered = append(p.DeadLettered, at)
		default:
			p.Note = &note
		}
	}
	return p, passed, nil
}

// recallPoison reads which events the session has to pass over, after resume, and forgets
// what lies behind it.
func (s *session) recallPoison(ctx context.Context) error {
	if s.store == nil {
		return nil
	}
	p, passed, err := poisoned(s.store.Values(), checkpointKey(s.db), s.stream.Server.SystemID, s.resumed)
	if err != nil {
		return err
	}
	s.note = p.Note
	for _, at := range p.DeadLettered {
		if s.dead == nil {
			s.dead = map[decode.Position]bool{}
		}
		s.dead[at] = true
	}
	if len(passed) == 0 {
		return nil
	}
	return s.store.Write(ctx, passed)
}

// passes reports whether the event at p is published, or a dead letter, already.
func (s *session) passes(p *decode.Position) bool {
	if s.resumed.Covers(replication.LSN(p.CommitLSN), p.Index) {
		s.skipped.Inc()
		return true
	}
	if s.dead == nil || !s.dead[*p] {
		return false
	}
	s.metrics.deadLetters.WithLabelValues(s.db.Name).Inc()
	s.log.Info().Stringer("position", p).Msg("passed over an event that is a dead letter")
	return true
}

// passesOver reports whether err is of one event that passes.
func (s *session) passesOver(err error) bool {
	e, ok := errors.AsType[*decode.ContractError](err)
	return ok && s.passes(&e.Position)
}

// stuck reports whether err is of one event that waiting does not bring on its way: poison, or an
// event whose topic is missing or may not be written to.
func stuck(err error) bool {
	if err == nil {
		return false
	}
	_, event := errors.AsType[sink.EventError](err)
	class := classify(err).class
	return class == Poison || event && class == Fatal
}

// notePoison writes down on what the bridge halts, for `walferry poison show`. The log has it too.
func (s *session) notePoison(ctx context.Context, err error) {
	if s.keeper.Load() == nil || !stuck(err) {
		return
	}
	note := PoisonNote{Time: time.Now().UTC().Truncate(time.Second)}
	if e, ok := errors.AsType[*decode.ContractError](err); ok {
		note.Position, note.Where, note.ID = e.Position.String(), e.Where, e.ID
		note.Reason = strings.TrimSpace(e.Column + " " + e.Reason)
	} else if e, ok := errors.AsType[sink.EventError](err); ok {
		ev := e.Event()
		note.Position, note.Where, note.ID, note.Reason = ev.Position.String(), s.decode.Where(ev.Source), ev.ID, e.Why()
	}
	note.ID = note.ID[:min(len(note.ID), maxNotedID)]
	value, _ := json.Marshal(&note) // texts and a time can be encoded
	if err := s.writeNote(ctx, map[string][]byte{checkpointKey(s.db) + noteKey: value}); err != nil {
		s.log.Warn().Err(err).Msg("the halt could not be noted in checkpoint.topic: `walferry poison show` does not know of it")
	}
}

// writeNote writes beside the checkpoint, not in a transaction that has an event which failed.
func (s *session) writeNote(ctx context.Context, note map[string][]byte) error {
	if s.batch.spoiled() {
		if err := s.abort(ctx); err != nil {
			return err
		}
	}
	return s.store.Write(ctx, note)
}

// abort aborts the transaction by opening the checkpoints once more, from then on without events.
func (s *session) abort(ctx context.Context) error {
	cfg, err := s.options.checkpoints(s.stream.Server.SystemID)
	if err != nil {
		return err
	}
	s.store.Close()
	store, err := checkpoint.Open(ctx, cfg)
	if err != nil {
		return err
	}
	s.store = store
	return nil
}
