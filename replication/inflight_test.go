package replication

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// model is Inflight written for the reader: it remembers everything and looks through
// all of it at every question.
type model struct {
	start, idle LSN
	txns        []*modelTxn
}

type modelTxn struct {
	committed bool
	end       LSN
	pending   int
}

func (m *model) finished(t *modelTxn) bool { return t.committed && t.pending == 0 }

func (m *model) flushed() LSN {
	flushed := max(m.start, m.idle)
	for _, t := range m.txns {
		if !m.finished(t) {
			return flushed
		}
		flushed = max(flushed, t.end)
	}
	return flushed
}

func (m *model) keepalive(walEnd LSN) {
	for _, t := range m.txns {
		if !m.finished(t) {
			return
		}
	}
	m.idle = max(m.idle, walEnd)
}

// event is one added, unacknowledged event in both implementations.
type event struct {
	done  func(error)
	model *modelTxn
}

// run plays a random history on both and compares after every step.
func runModel(seed uint64, steps int) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	lsn := LSN(rng.Uint64N(1 << 33))
	m := &model{start: lsn}
	f := NewInflight(lsn, Hooks{Failed: func(error) {}})
	var open *Txn
	var events []event
	failRate := rng.IntN(3) // one run in three has no failures
	for step := range steps {
		lsn += LSN(1 + rng.Uint64N(100))
		switch rng.IntN(6) {
		case 0:
			if open == nil {
				open, _ = f.Begin(context.Background())
				m.txns = append(m.txns, &modelTxn{})
			}
		case 1, 2:
			if open != nil {
				open.Add()
				t := m.txns[len(m.txns)-1]
				t.pending++
				events = append(events, event{open.Done, t})
			}
		case 3:
			if open != nil {
				if err := f.Commit(lsn, time.Time{}); err != nil {
					return fmt.Errorf("step %d: %w", step, err)
				}
				t := m.txns[len(m.txns)-1]
				t.committed, t.end, open = true, lsn, nil
			}
		case 4:
			if n := len(events); n > 0 {
				i := rng.IntN(n)
				e := events[i]
				events[i] = events[n-1]
				events = events[:n-1]
				if failRate > 0 && rng.IntN(200) == 0 {
					e.done(errors.New("failed"))
					break
				}
				e.done(nil)
				e.model.pending--
			}
		case 5:
			// Now and then a keepalive that is older than what is known.
			walEnd := lsn - LSN(rng.Uint64N(2)*rng.Uint64N(50))
			f.Idle(walEnd)
			m.keepalive(walEnd)
		}
		if got, want := f.Flushed(), m.flushed(); got != want {
			return fmt.Errorf("step %d: Flushed %s, the model says %s", step, got, want)
		}
	}
	return nil
}

func TestInflightAgainstModel(t *testing.T) {
	const seeds, steps = 3000, 200
	for seed := range uint64(seeds) {
		if err := runModel(seed, steps); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	t.Logf("%d seeds of %d steps", seeds, steps)
}

func TestInflightPublishesOnlyTheFinishedPrefix(t *testing.T) {
	f := NewInflight(100, Hooks{})
	var done []func(error)
	for end := LSN(200); end <= 400; end += 100 {
		txn, _ := f.Begin(context.Background())
		txn.Add()
		done = append(done, txn.Done)
		if err := f.Commit(end, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		finish int
		want   LSN
	}{{2, 100}, {0, 200}, {1, 400}} {
		done[step.finish](nil)
		if got := f.Flushed(); got != step.want {
			t.Errorf("after transaction %d: Flushed %s, want %s", step.finish, got, step.want)
		}
	}
}

func TestInflightLatchesBehindAFailure(t *testing.T) {
	var failed error
	f := NewInflight(100, Hooks{Failed: func(err error) { failed = err }})
	first, _ := f.Begin(context.Background())
	first.Add()
	if err := f.Commit(200, time.Time{}); err != nil {
		t.Fatal(err)
	}
	second, _ := f.Begin(context.Background())
	second.Add()
	if err := f.Commit(300, time.Time{}); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	first.Done(boom)
	second.Done(nil)
	f.Idle(400)
	if f.Flushed() != 100 {
		t.Errorf("Flushed passed a failed event: %s", f.Flushed())
	}
	if !errors.Is(failed, boom) {
		t.Errorf("the failure was reported as %v", failed)
	}
	if got := f.Pending(); got != 1 {
		t.Errorf("Pending %d, want the failed event", got)
	}
}

func TestInflightIdleOnlyWhenNothingIsPending(t *testing.T) {
	f := NewInflight(100, Hooks{})
	f.Idle(150)
	if got := f.Flushed(); got != 150 {
		t.Errorf("idle: Flushed %s, want 0/96", got)
	}
	f.Idle(120)
	if got := f.Flushed(); got != 150 {
		t.Errorf("an older keepalive moved Flushed back to %s", got)
	}
	txn, _ := f.Begin(context.Background())
	f.Idle(200)
	txn.Add()
	f.Idle(200)
	if err := f.Commit(180, time.Time{}); err != nil {
		t.Fatal(err)
	}
	f.Idle(200)
	if got := f.Flushed(); got != 150 {
		t.Errorf("a keepalive moved Flushed to %s past a pending transaction", got)
	}
	txn.Done(nil)
	if got := f.Flushed(); got != 180 {
		t.Errorf("Flushed %s, want exactly the commit's end LSN", got)
	}
}

func TestInflightEmptyTransactionsTakeNoRoomBehindAStuckOne(t *testing.T) {
	f := NewInflight(0, Hooks{})
	stuck, _ := f.Begin(context.Background())
	stuck.Add()
	if err := f.Commit(10, time.Time{}); err != nil {
		t.Fatal(err)
	}
	const last = 1_000_000
	for end := LSN(11); end <= last; end++ {
		_, _ = f.Begin(context.Background())
		if err := f.Commit(end, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	if got := f.size(); got != 1 {
		t.Errorf("%d transactions in the window, want 1", got)
	}
	stuck.Done(nil)
	if got := f.Flushed(); got != last {
		t.Errorf("Flushed %s, want the last empty transaction's end %s", got, LSN(last))
	}
}

// Behind a stuck event the window fills up to its bound, and no further.
func TestInflightBeginWaitsWhileTheWindowIsFull(t *testing.T) {
	f := NewInflight(0, Hooks{})
	var stuck *Txn
	for end := LSN(1); end <= windowMax; end++ {
		txn, err := f.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		txn.Add()
		if err := f.Commit(end, time.Time{}); err != nil {
			t.Fatal(err)
		}
		if stuck == nil {
			stuck = txn
			continue
		}
		txn.Done(nil)
	}
	full, cancel := context.WithCancelCause(t.Context())
	boom := errors.New("boom")
	cancel(boom)
	if _, err := f.Begin(full); !errors.Is(err, boom) {
		t.Fatalf("Begin in a full window: %v, want the context's cause", err)
	}
	began := make(chan error)
	go func() {
		_, err := f.Begin(t.Context())
		began <- err
	}()
	stuck.Done(nil)
	if err := <-began; err != nil {
		t.Error(err)
	}
	if got := f.Flushed(); got != windowMax {
		t.Errorf("Flushed %s, want %s", got, LSN(windowMax))
	}
}

func TestInflightRefusesRepeatedCommits(t *testing.T) {
	f := NewInflight(100, Hooks{})
	for _, end := range []LSN{100, 50} {
		_, _ = f.Begin(context.Background())
		if err := f.Commit(end, time.Time{}); err == nil {
			t.Errorf("a commit that ends at %s was taken behind 0/64", end)
		}
		f.mu.Lock()
		f.open = nil
		f.mu.Unlock()
	}
}

func TestInflightPanicsWhenMoreIsDoneThanAdded(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	f := NewInflight(0, Hooks{})
	txn, _ := f.Begin(context.Background())
	txn.Done(nil)
	txn.Done(nil)
}

func TestInflightIsSafeForConcurrentDone(t *testing.T) {
	var finished int
	f := NewInflight(0, Hooks{Finished: func(time.Time) { finished++ }})
	events := make(chan func(error), 1024)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for done := range events {
				done(nil)
			}
		})
	}
	const txns = 20_000
	var last LSN
	for i := range txns {
		txn, _ := f.Begin(context.Background())
		for range 1 + i%3 {
			txn.Add()
			events <- txn.Done
		}
		last = LSN(i + 1)
		if err := f.Commit(last, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	close(events)
	wg.Wait()
	if got := f.Flushed(); got != last || f.Pending() != 0 || finished != txns {
		t.Errorf("Flushed %s, pending %d, %d finished; want %s, 0, %d", got, f.Pending(), finished, last, txns)
	}
}

func TestInflightDoesNotAllocate(t *testing.T) {
	f := NewInflight(0, Hooks{})
	end := LSN(0)
	allocs := testing.AllocsPerRun(10_000, func() {
		txn, _ := f.Begin(context.Background())
		txn.Add()
		end++
		if err := f.Commit(end, time.Time{}); err != nil {
			t.Fatal(err)
		}
		txn.Done(nil)
	})
	if allocs != 0 {
		t.Errorf("%v allocations for a transaction of one event", allocs)
	}
}

func BenchmarkInflight(b *testing.B) {
	f := NewInflight(0, Hooks{})
	end := LSN(0)
	b.ReportAllocs()
	for b.Loop() {
		txn, _ := f.Begin(context.Background())
		txn.Add()
		end++
		_ = f.Commit(end, time.Time{})
		txn.Done(nil)
	}
}
