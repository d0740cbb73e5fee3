package demo

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestScheduleDealsExactlyWhatIsAsked(t *testing.T) {
	for _, events := range []int{1, 2, 7, 2000} {
		s := &schedule{orders: 10, left: events}
		dealt, rolledBack := 0, 0
		for {
			w, _, ok := s.next()
			if !ok {
				break
			}
			if w.Changes < 1 {
				t.Fatalf("%d events: a transaction without changes", events)
			}
			if w.Rollback {
				rolledBack++
				continue
			}
			dealt += w.Changes
		}
		if dealt != events || s.tally.RolledBack != rolledBack {
			t.Errorf("got %d events and %d of %d rollbacks, want %d events", dealt, s.tally.RolledBack, rolledBack, events)
		}
	}
}

// TestScheduleMix checks that a run of the usual length does everything worth showing.
func TestScheduleMix(t *testing.T) {
	s := &schedule{orders: 10, left: 200}
	seen := map[string]int{}
	for {
		w, _, ok := s.next()
		if !ok {
			break
		}
		for name, is := range map[string]bool{
			"rolled back rows":                w.Rollback && !w.Message,
			"committed messages":              w.Message && !w.Rollback,
			"several messages at once":        w.Message && w.Changes > 1 && !w.Rollback,
			"several rows at once":            !w.Message && w.Changes > 1 && !w.Rollback,
			"a savepoint, then a commit":      w.Savepoint && !w.Rollback,
			"rolled back messages":            w.Rollback && w.Message,
			"messages abandoned, then commit": w.Savepoint && w.Message && !w.Rollback,
		} {
			if is {
				seen[name]++
			}
		}
	}
	for _, name := range []string{
		"rolled back rows", "rolled back messages", "committed messages", "several messages at once",
		"several rows at once", "a savepoint, then a commit", "messages abandoned, then commit",
	} {
		if seen[name] == 0 {
			t.Errorf("never: %s", name)
		}
	}
}

func TestScheduleKeepsTheRate(t *testing.T) {
	start := time.Now()
	s := &schedule{start: start, orders: 1, endless: true, rate: 100}
	dealt := 0
	for range 1000 {
		want := start.Add(time.Duration(dealt) * 10 * time.Millisecond)
		w, due, ok := s.next()
		if !ok || due.Sub(want).Abs() > time.Microsecond {
			t.Fatalf("after %d events: due after %v, want %v", dealt, due.Sub(start), want.Sub(start))
		}
		if !w.Rollback {
			dealt += w.Changes
		}
	}
}

func TestWaitEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := wait(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if err := wait(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("nothing to wait for: got %v, want %v", err, context.Canceled)
	}
}
