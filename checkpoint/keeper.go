package checkpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walferry/walferry/replication"
)

// Keeper writes the checkpoints of one session, and says what may be confirmed to Postgres:
// never more than is written.
type Keeper struct {
	Store *Store
	Key   string // of the current checkpoint
	// Interval is the least time between two checkpoints.
	Interval time.Duration
	// Hurry reports that somebody waits: then each progress is written at once.
	Hurry func() bool
	// Progress returns how far the session has come.
	Progress func() replication.Progress
	// Written, if not nil, is called after each checkpoint.
	Written func(*Checkpoint)
	// Events, if not nil, are those of the Store's transaction: a checkpoint commits them.
	Events Events
	// Due tells Run that events wait to be committed. It may be nil.
	Due <-chan struct{}
	// Kept is how long entries of the index are kept, a week at least.
	Kept time.Duration

	resumed replication.Progress
	next    Checkpoint // what is the same in all of a session
	durable atomic.Uint64

	mu        sync.Mutex // guards the following
	candidate snapshot
	snapshot  string // the last one that has become true

	written, tried []byte // values of the last write that came to its end, and of the last one

	last  replication.Progress // that was written
	at    time.Time            // of the last checkpoint
	entry string               // the last of the index
}

// Events are published in the transaction that commits a checkpoint, which so covers all of them.
type Events interface {
	// Pause waits until nobody publishes, and keeps it so until the function that it returns is called. The others are
	// called in between.
	Pause(context.Context) (resume func(), err error)
	// Ahead returns what is reached with all that was published.
	Ahead() replication.Progress
	// Cut says that all of it is going to be committed, and nothing that is published later. Committed says that it is,
	// and that another transaction is open. If it never comes, nothing of either is.
	Cut()
	Committed()
}

// snapshot is true of every position from lsn on.
type snapshot struct {
	text string
	lsn  replication.LSN
}

// tick is how often a Keeper looks for progress.
const tick = 100 * time.Millisecond

// Begin sets where the session goes on. It must be called once, before all others. What the
// topic holds says so already, unless rewrite is true: then Begin writes it.
func (k *Keeper) Begin(ctx context.Context, f Found, r Resume, rewrite bool) error {
	k.next = Checkpoint{Version: version, SystemID: f.SystemID, Timeline: f.Timelines.Current(), Membership: f.Membership}
	k.next.TimelineBegan.LSN = f.Timelines.Began(k.next.Timeline)
	k.resumed, k.last, k.snapshot = r.From, r.From, r.Snapshot
	k.written = k.Store.Values()[k.Key]
	if rewrite {
		return k.write(ctx, r.From)
	}
	k.durable.Store(uint64(r.From.Flushed))
	return nil
}

// Confirmable returns the LSN that may be confirmed.
func (k *Keeper) Confirmable() replication.LSN {
	return min(k.Progress().Flushed, replication.LSN(k.durable.Load()))
}

// Observe takes a look at the slot, for the snapshot in it.
func (k *Keeper) Observe(s *replication.Slot) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.candidate.text == "" { // one that waits must not be replaced, or none would ever be reached
		k.candidate = snapshot{s.Snapshot, s.SnapshotLSN}
	}
}

// Run writes checkpoints until ctx is done; writing ends the write that is under way then. After
// an error nothing more may be written.
func (k *Keeper) Run(ctx, writing context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			if ctx.Err() != nil { // select may choose the tick: what is left is for a last Write
				return nil
			}
			if !k.Hurry() && now.Sub(k.at) < k.Interval {
				continue
			}
		case <-k.Due:
			if ctx.Err() != nil {
				return nil
			}
		}
		if err := k.Write(writing); err != nil {
			return err
		}
	}
}

// Write writes a checkpoint if there is progress. It must not be called while Run runs.
func (k *Keeper) Write(ctx context.Context) error {
	p, err := k.reached(ctx)
	if err != nil || p == k.last {
		return err
	}
	return k.write(ctx, p)
}

// reached returns what the next checkpoint says, and cuts the events that it commits, if there are any.
func (k *Keeper) reached(ctx context.Context) (replication.Progress, error) {
	if k.Events == nil {
		return merge(k.resumed, k.Progress()), nil
	}
	ctx, cancel := k.Store.patient(ctx) // whoever publishes may wait for brokers that do not answer
	defer cancel()
	resume, err := k.Events.Pause(ctx)
	if err != nil {
		return replication.Progress{}, err
	}
	defer resume()
	p := merge(k.resumed, k.Events.Ahead())
	if p != k.last {
		k.Events.Cut()
	}
	return p, nil
}

// committed passes on that the events before the cut are.
func (k *Keeper) committed(ctx context.Context) error {
	if k.Events == nil {
		return nil
	}
	resume, err := k.Events.Pause(ctx)
	if err != nil {
		return err
	}
	defer resume()
	k.Events.Committed()
	return nil
}

func (k *Keeper) write(ctx context.Context, p replication.Progress) error {
	c := k.next
	c.Pos, c.OpenCommit, c.OpenIndex, c.Time = LSN{p.Flushed}, LSN{p.Commit}, p.Index, time.Now().UTC()
	c.Snapshot = k.trueSnapshot(p.Flushed)
	value, err := json.Marshal(&c)
	if err != nil {
		return fmt.Errorf("encode the checkpoint: %w", err)
	}
	k.tried = value
	values := map[string][]byte{k.Key: value}
	entry := minute(c.Time)
	if entry != k.entry {
		k.index(values, &c)
	}
	if err := k.Store.Write(ctx, values); err != nil {
		return err
	}
	k.written, k.last, k.at, k.entry = value, p, c.Time, entry
	if err := k.committed(ctx); err != nil {
		return err
	}
	k.durable.Store(uint64(p.Flushed))
	if k.Written != nil {
		k.Written(&c)
	}
	return nil
}

// Reopen goes on with another Store, after a Write that failed with ErrUnanswered. It fails with
// *FencedError if anybody else has written a checkpoint. It must not be called while Run runs.
func (k *Keeper) Reopen(s *Store) error {
	if found := s.Values()[k.Key]; !bytes.Equal(found, k.written) && !bytes.Equal(found, k.tried) {
		return &FencedError{s.cfg.Topic, s.cfg.TransactionalID, errors.New("the checkpoint is not ours")}
	}
	k.Store = s
	return nil
}

// trueSnapshot returns the last snapshot all of which commits before pos.
func (k *Keeper) trueSnapshot(pos replication.LSN) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.candidate.text != "" && k.candidate.lsn <= pos {
		k.snapshot, k.candidate = k.candidate.text, snapshot{}
	}
	return k.snapshot
}
