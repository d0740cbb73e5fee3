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
// One goroutine calls Begin, Add, Commit and Idle; a Txn's Done may be called from any,
// Flushed and Pending as well.
type Inflight struct {
	flushed atomic.Uint64
	pending atomic.Int64 // events added and not done

	mu     sync.Mutex // guards the following
	window []*Txn     // from head on: transactions with events, and the open one at the end
	head   int
	open   *Txn
	last   LSN    // end LSN of the last commit, or where the stream began
	free   []*Txn // finished transactions for reuse

	room  chan struct{} // tells a Begin that waits that the window is no longer full
	hooks Hooks
}

// windowMax bounds the transactions in the window. Kafka's own bounds count only what is not
// acknowledged: behind one stuck event any number of finished transactions may wait.
const windowMax = 1 << 18

// Hooks are called by an Inflight. They must be quick and must not call back.
type Hooks struct {
	// Failed is called with the error of each event that failed.
	Failed func(error)
	// Finished, if not nil, is called for each transaction with events when it leaves the
	// window, with its commit time by Postgres' clock.
	Finished func(commit time.Time)
}

// Txn is one transaction in the window.
type Txn struct {
	// Done says that the brokers acknowledged one event, or with an error that they never
	// will. It is called exactly once for each Add, from any goroutine. It is made once for
	// each Txn, and Txns are reused, so that passing it on costs nothing.
	Done func(error)

	f *Inflight
	// unfinished counts the events that are not done, plus one until Commit: when it
	// reaches zero the transaction is whole and acknowledged.
	unfinished atomic.Int64
	events     int64
	end        LSN
	time       time.Time
}

// NewInflight returns an empty window of a stream that begins at start, the slot's
// confirmed_flush_lsn.
func NewInflight(start LSN, hooks Hooks) *Inflight {
	f := &Inflight{last: start, hooks: hooks, room: make(chan struct{}, 1)}
	f.flushed.Store(uint64(start))
	return f
}

// Flushed returns the LSN that may be confirmed to Postgres.
func (f *Inflight) Flushed() LSN { return LSN(f.flushed.Load()) }

// Pending returns the number of events that are not acknowledged yet.
func (f *Inflight) Pending() int64 { return f.pending.Load() }

// Begin opens the next transaction at the end of the window. It waits while the window is
// full, and fails only with ctx's cause.
func (f *Inflight) Begin(ctx context.Context) (*Txn, error) {
	f.mu.Lock()
	for f.size() >= windowMax {
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-f.room:
		}
		f.mu.Lock()
	}
	defer f.mu.Unlock()
	if f.open != nil {
		panic("replication: Begin inside of a transaction")
	}
	var t *Txn
	if n := len(f.free); n > 0 {
		t, f.free = f.free[n-1], f.free[:n-1]
		t.events, t.end = 0, 0
	} else {
		t = &Txn{f: f}
		t.Done = t.done
	}
	t.unfinished.Store(1)
	f.open = t
	f.push(t)
	return t, nil
}

// Add announces an event of the open transaction. It must come before the event
// is published, so that Done cannot overtake it.
func (t *Txn) Add() {
	t.events++
	t.unfinished.Add(1)
	t.f.pending.Add(1)
}

func (t *Txn) done(err error) {
	if err != nil {
		t.f.hooks.Failed(err)
		return // unfinished for ever
	}
	t.f.pending.Add(-1)
	switch n := t.unfinished.Add(-1); {
	case n == 0:
		t.f.advance()
	case n < 0:
		panic("replication: more events done than added") // an LSN may be confirmed wrongly: stop at once
	}
}

// Commit closes the open transaction. end is the end LSN of its commit record,
// at the given time of Postgres' clock. It fails when end does not lie behind
// everything confirmed or committed before.
func (f *Inflight) Commit(end LSN, commit time.Time) error {
	f.mu.Lock()
	t := f.open
	if t == nil {
		panic("replication: Commit without a transaction")
	}
	if low := max(f.last, f.Flushed()); end <= low {
		f.mu.Unlock()
		return fmt.Errorf("commit end LSN %s does not lie behind %s: the server repeats or reorders transactions", end, low)
	}
	f.open, f.last = nil, end
	t.end, t.time = end, commit
	if t.events == 0 {
		f.fold(end)
	}
	done := t.unfinished.Add(-1) == 0
	f.mu.Unlock()
	if done {
		f.advance()
	}
	return nil
}

// fold moves the end of an empty last transaction to the one before it, so that
// any number of transactions without events takes no room behind a stuck one.
func (f *Inflight) fold(end LSN) {
	if last := len(f.window) - 1; f.size() > 1 {
		f.free = append(f.free, f.window[last])
		f.window = f.window[:last]
		f.window[last-1].end = end
	}
}

// Idle takes a keepalive's walEnd: the server has sent everything before it.
func (f *Inflight) Idle(walEnd LSN) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.size() == 0 && walEnd > f.Flushed() {
		f.flushed.Store(uint64(walEnd))
	}
}

// advance publishes the end of the finished prefix.
func (f *Inflight) advance() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.size() > 0 {
		t := f.window[f.head]
		if t.unfinished.Load() != 0 {
			return
		}
		if f.size() == windowMax {
			select {
			case f.room <- struct{}{}:
			default: // it has been told
			}
		}
		f.flushed.Store(uint64(t.end))
		f.free = append(f.free, t)
		f.head++
		if f.hooks.Finished != nil && t.events > 0 {
			f.hooks.Finished(t.time)
		}
	}
}

func (f *Inflight) size() int { return len(f.window) - f.head }

// push appends to the window. It moves the window to the front of its memory first when half
// of that is free, for a slice that is only re-sliced would be reallocated over and over.
func (f *Inflight) push(t *Txn) {
	if f.head > cap(f.window)/2 {
		f.window = f.window[:copy(f.window, f.window[f.head:])]
		f.head = 0
	}
	f.window = append(f.window, t)
}
