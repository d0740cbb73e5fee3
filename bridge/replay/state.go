package replay

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/replication"
)

// State is a replay that has not come to its end: what it needs to go on. It lies beside the checkpoint.
type State struct {
	ID     string `json:"id"`
	Range  Range  `json:"range"`
	Target Target `json:"target"`
	// SystemID and Timeline are of the server that Reached and Range are positions of.
	SystemID string    `json:"system_id"`
	Timeline uint32    `json:"timeline"`
	Started  time.Time `json:"started"`
	Time     time.Time `json:"time"` // when this was written
	// Reached, OpenCommit and OpenIndex are as in a checkpoint.
	Reached    checkpoint.LSN `json:"reached"`
	OpenCommit checkpoint.LSN `json:"open_commit_lsn,omitzero"`
	OpenIndex  uint64         `json:"open_index,omitempty"`
}

// replayKey is of replays, behind the checkpoint's key, followed by their ID.
const replayKey = "/replay/"

// keepEvery is how often what is reached is kept: after a kill so much comes again.
const keepEvery = time.Second

// state returns a replay that was interrupted.
func (k *known) state(id string) (*State, error) {
	value := k.values[k.cfg.Key+replayKey+id]
	if value == nil {
		return nil, replication.Refuse("`walferry replay window` lists those that can be", "there is no replay %q to resume: it came to its end, or never began", id)
	}
	var s State
	if err := json.Unmarshal(value, &s); err != nil || s.ID != id {
		return nil, &checkpoint.CorruptError{Reason: fmt.Sprintf("what is known of replay %q cannot be read", id)}
	}
	return &s, nil
}

// goesOn refuses to go on with a replay whose positions mean something else by now, or are not kept any more.
func (s *State) goesOn(w *Window, found checkpoint.Found) error {
	left, shared := found.Timelines.End(s.Timeline)
	switch {
	case s.SystemID != found.SystemID || !shared || max(s.Reached.LSN, s.Range.To.LSN) > left:
		return replication.Refuse("start another one", "replay %s was of %s to %s on timeline %d, which this server does not have, or not so far", s.ID, s.Range.From, s.Range.To, s.Timeline)
	case s.Reached.LSN < w.From.LSN:
		return outside(w, "replay %s, which has come to %s,", s.ID, s.Reached)
	}
	return nil
}

// states returns all replays that were interrupted, the oldest first.
func (k *known) states() (states []*State) {
	for _, key := range slices.Sorted(maps.Keys(k.values)) {
		if id, ok := strings.CutPrefix(key, k.cfg.Key+replayKey); ok {
			if s, err := k.state(id); err == nil {
				states = append(states, s)
			}
		}
	}
	return states
}

// resumable returns the replay's ID if it can be resumed.
func (r *run) resumable() string {
	if r.DryRun || r.Lines != nil || r.inflight == nil {
		return ""
	}
	return r.id
}

// keep writes what is reached.
func (r *run) keep(ctx context.Context) error {
	if r.resumable() == "" {
		return nil
	}
	p := checkpoint.Merge(r.from, r.inflight.Progress())
	s := State{
		ID: r.id, Range: r.rng, Target: r.Target, Started: r.started, Time: time.Now().UTC(),
		SystemID: r.stream.Server.SystemID, Timeline: r.stream.Server.Timeline,
		Reached: checkpoint.LSN{LSN: p.Flushed}, OpenCommit: checkpoint.LSN{LSN: p.Commit}, OpenIndex: p.Index,
	}
	value, err := json.Marshal(&s)
	if err != nil {
		return fmt.Errorf("encode the state of the replay: %w", err)
	}
	return r.notes.Put(ctx, r.known.cfg.Key+replayKey+r.id, value)
}

// keepOn keeps what is reached until ctx is done.
func (r *run) keepOn(ctx context.Context) error {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := r.keep(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// forget removes the state of a replay that has come to its end.
func (r *run) forget(ctx context.Context) error {
	if r.resumable() == "" {
		return nil
	}
	return r.notes.Put(ctx, r.known.cfg.Key+replayKey+r.id, nil)
}
