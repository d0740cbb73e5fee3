package replication

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
)

// LSN is a byte position in the WAL; see pglogrepl.LSN.
type LSN = pglogrepl.LSN

// Inflight is the ordered acknowledgement window: transactions enter in the order
// of the stream, their events finish in any order, and Flushed is the end of the
// longest finished prefix. It is pure: no I/O, no clock, no goroutine.
// src/backend/replication/logical/worker.c (get_flush_position) follows the same rule.
//
// Invariants:
//
//	I1  commit end LSNs strictly increase (Commit refuses another)
//	I2  Flushed never decreases
//	I3  Flushed is only ever an LSN that the server sent: where the stream began,
//	    a commit's end LSN, or a keepalive's walEnd
//	I4  Flushed does not pass a transaction of which an event is not acknowledged,
//	    nor any transaction behind it
//	I5  a keepalive moves Flushed only when no transaction is open or in the window
//
// A failed event never leaves the window: by I4 and I5 it latches everything behind it.
//
// The unit of the window is a run of events of one transaction, so that Progress says how
// far a large transaction has come. One goroutine calls Begin, Add, Withdraw, EndRun, Commit, Open, Ahead, Added and Idle;
// the functions that Add returns may be called from any, Flushed, Pending and Progress as well.
type Inflight struct {
	flushed atomic.Uint64
	pending atomic.Int64 // events added and not done

	// of the goroutine that adds
	open   bool
	commit LSN       // of the open transaction: the start of its commit record
	index  uint64    // behind the last event added to it
	added  LSN       // commit of the last event added
	time   time.Time // of the open transaction
	run    *run      // the open transaction's last, nil before its first event
	last   LSN       // end LSN of the last commit, or where the stream began

	mu      sync.Mutex // guards the following
	window  []*run     // from head on, those that are not finished
	head    int
	partial Progress // its Commit and Index: runs of an unfinished transaction that have left the window
	free    []*run   // finished, for reuse

	room   chan struct{} // tells an Add that waits that the window is no longer full
	hooks  Hooks
	most   int // runs in the window
	perRun int // runMax, fewer in tests
}

// Progress is how far the finished prefix goes: everything before Flushed is acknowledged,
// and of the transaction that commits at Commit, if that is not 0, the events before Index.
type Progress struct {
	Flushed, Commit LSN
	Index           uint64 // see decode.Position
}

// Covers reports whether p has passed an event of the transaction that commits at commit.
func (p Progress) Covers(commit LSN, index uint64) bool {
	return commit < p.Flushed || commit == p.Commit && index < p.Index
}

// runMax is the events of a run. Fewer would cost more, more would blur Progress.
const runMax = 512

// Hooks are called by an Inflight. They must be quick and must not call back.
type Hooks struct {
	// Failed is called with the error of each event that failed.
	Failed func(error)
	// Finished, if not nil, is called for each transaction with events when it leaves the
	// window, with its commit time by Postgres' clock.
	Finished func(commit time.Time)
}

// run is a run of events of one transaction.
type run struct {
	done func(error) // made once for each run, and runs are reused, so that passing it on costs nothing
	// unfinished counts the events that are not done, plus one until the run is closed: when
	// it reaches zero the run is whole and acknowledged.
	unfinished atomic.Int64
	events     int
	commit     LSN
	index      uint64 // all events before it are of this run or of one before
	end        LSN    // of the transaction, 0 if the run is not its last; guarded by mu
	time       time.Time
}

// NewInflight returns an empty window of a stream that begins at start, the slot's
// confirmed_flush_lsn, for this many runs at most. Kafka's own bounds count only what is not
// acknowledged: behind one stuck event any number of finished runs may wait.
func NewInflight(start LSN, most int, hooks Hooks) *Inflight {
	f := &Inflight{last: start, hooks: hooks, most: most, perRun: runMax, room: make(chan struct{}, 1)}
	f.flushed.Store(uint64(start))
	return f
}

// Flushed returns the LSN that may be confirmed to Postgres.
func (f *Inflight) Flushed() LSN { return LSN(f.flushed.Load()) }

// Pending returns the number of events that are not acknowledged yet.
func (f *Inflight) Pending() int64 { return f.pending.Load() }

// Progress returns how far the finished prefix goes.
func (f *Inflight) Progress() Progress {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Progress{f.Flushed(), f.partial.Commit, f.partial.Index}
}

// Ahead returns the Progress that there will be when every event added so far is done.
func (f *Inflight) Ahead() Progress {
	p := Progress{Flushed: max(f.last, f.Flushed())}
	if f.open && f.index > 0 {
		p.Commit, p.Index = f.commit, f.index
	}
	return p
}

// Added returns the commit LSN of the last event that was added, 0 if none was.
func (f *Inflight) Added() LSN { return f.added }

// Open reports whether a transaction has begun and not committed.
func (f *Inflight) Open() bool { return f.open }

// Begin opens the next transaction: the start of its commit record, and its time by
// Postgres' clock.
func (f *Inflight) Begin(commit LSN, at time.Time) {
	if f.open {
		panic("replication: Begin inside of a transaction")
	}
	f.open, f.commit, f.index, f.time = true, commit, 0, at
}

// Add announces an event of the open transaction, its index in it, and must come before the
// event is published. The function that it returns says that the brokers acknowledged the
// event, or with an error that they never will; it must be called exactly once, from any
// goroutine. Add waits while the window is full, and fails only with ctx's cause.
func (f *Inflight) Add(ctx context.Context, index uint64) (done func(error), err error) {
	if !f.open {
		panic("replication: Add without a transaction")
	}
	if f.run == nil || f.run.events == f.perRun {
		if err := f.next(ctx); err != nil {
			return nil, err
		}
	}
	f.run.events++
	f.run.index, f.index, f.added = index+1, index+1, f.commit
	f.run.unfinished.Add(1)
	f.pending.Add(1)
	return f.run.done, nil
}

// Withdraw takes back the last Add, of the event at index: it was not published, and done is not
// going to be called.
func (f *Inflight) Withdraw(index uint64) {
	f.run.events--
	f.run.index, f.index = index, index
	f.run.unfinished.Add(-1) // the run is not closed: not the last
	f.pending.Add(-1)
}

// next begins a run at the end of the window.
func (f *Inflight) next(ctx context.Context) error {
	f.EndRun()
	f.mu.Lock()
	for f.size() >= f.most {
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-f.room:
		}
		f.mu.Lock()
	}
	defer f.mu.Unlock()
	if n := len(f.free); n > 0 {
		f.run, f.free = f.free[n-1], f.free[:n-1]
	} else {
		r := &run{}
		r.done = func(err error) { f.done(r, err) }
		f.run = r
	}
	r := f.run
	r.events, r.commit, r.end, r.time = 0, f.commit, 0, f.time
	r.unfinished.Store(1)
	f.push(r)
	return nil
}

func (f *Inflight) done(r *run, err error) {
	if err != nil {
		f.hooks.Failed(err)
		return // unfinished for ever
	}
	f.pending.Add(-1)
	switch n := r.unfinished.Add(-1); {
	case n == 0:
		f.advance()
	case n < 0:
		panic("replication: more events done than added") // an LSN may be confirmed wrongly: stop at once
	}
}

// EndRun says that the open transaction's last run gets no more events, as Commit does: Progress
// can pass it before it is full.
func (f *Inflight) EndRun() {
	if r := f.run; r != nil {
		f.run = nil
		if r.unfinished.Add(-1) == 0 {
			f.advance()
		}
	}
}

// Commit closes the open transaction. end is the end LSN of its commit record. It fails when
// end does not lie behind everything confirmed or committed before.
func (f *Inflight) Commit(end LSN) error {
	if !f.open {
		panic("replication: Commit without a transaction")
	}
	if low := max(f.last, f.Flushed()); end <= low {
		return fmt.Errorf("commit end LSN %s does not lie behind %s: the server repeats or reorders transactions", end, low)
	}
	f.open, f.last = false, end
	f.mu.Lock()
	switch {
	case f.run != nil:
		f.run.end = end
	case f.size() > 0: // without events it takes no room behind a stuck one, but ends with it
		f.window[len(f.window)-1].end = end
	default:
		f.partial = Progress{}
		f.flushed.Store(uint64(end))
	}
	f.mu.Unlock()
	f.EndRun()
	return nil
}

// Idle takes a keepalive's walEnd: the server has sent everything before it.
func (f *Inflight) Idle(walEnd LSN) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.open && f.size() == 0 && walEnd > f.Flushed() {
		f.flushed.Store(uint64(walEnd))
	}
}

// advance publishes the end of the finished prefix.
func (f *Inflight) advance() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.size() > 0 {
		r := f.window[f.head]
		if r.unfinished.Load() != 0 {
			return
		}
		if f.size() == f.most {
			select {
			case f.room <- struct{}{}:
			default: // it has been told
			}
		}
		f.head++
		f.free = append(f.free, r)
		if r.events > 0 { // none if its first was withdrawn
			f.partial = Progress{Commit: r.commit, Index: r.index}
		}
		if r.end != 0 {
			f.partial = Progress{}
			f.flushed.Store(uint64(r.end))
			if f.hooks.Finished != nil {
				f.hooks.Finished(r.time)
			}
		}
	}
}

func (f *Inflight) size() int { return len(f.window) - f.head }

// push appends to the window. It moves the window to the front of its memory first when half
// of that is free, for a slice that is only re-sliced would be reallocated over and over.
func (f *Inflight) push(r *run) {
	if f.head > cap(f.window)/2 {
		f.window = f.window[:copy(f.window, f.window[f.head:])]
		f.head = 0
	}
	f.window = append(f.window, r)
}
