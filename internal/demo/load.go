package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// Load makes a Shop work.
type Load struct {
	Shop    Shop
	DSN     string
	Writers int     // connections that work at the same time
	Orders  int     // different orders
	Events  int     // to be committed, exactly; 0: no end
	Rate    float64 // events per second; 0: as fast as possible
	// Committed is called by any writer after each commit, with its events.
	Committed func([]Event)
}

// Tally counts transactions.
type Tally struct {
	Committed  int
	RolledBack int // on purpose
	Messages   int // committed, with logical messages instead of outbox rows
}

// Run works until Events are committed, or ctx is done: then it returns ctx's error.
func (l Load) Run(ctx context.Context) (Tally, error) {
	s := &schedule{start: time.Now(), orders: l.Orders, left: l.Events, endless: l.Events == 0, rate: l.Rate}
	writers, ctx := errgroup.WithContext(ctx)
	for range l.Writers {
		writers.Go(func() error { return l.write(ctx, s) })
	}
	err := writers.Wait()
	return s.tally, err
}

func (l Load) write(ctx context.Context, s *schedule) error {
	conn, err := pgx.Connect(ctx, l.DSN)
	if err != nil {
		return fmt.Errorf("order service: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // every transaction has ended
	for {
		work, due, ok := s.next()
		if !ok {
			return nil
		}
		if err := wait(ctx, time.Until(due)); err != nil {
			return err
		}
		events, err := l.Shop.Do(ctx, conn, work)
		if err != nil {
			return errors.Join(ctx.Err(), fmt.Errorf("order service: %w", err))
		}
		l.Committed(events)
	}
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// schedule deals the work out to the writers.
type schedule struct {
	start   time.Time
	orders  int
	endless bool
	rate    float64

	mu           sync.Mutex // guards the following
	left         int        // events to be committed
	dealt        int        // events to be committed by the work that was dealt out
	transactions int
	tally        Tally // of what was dealt out
}

// next returns the work for one transaction and when it is due. It is not ok when there is
// no more. The mix repeats: one in 10 transactions uses logical messages, one in 8 makes
// three changes, one in 17 is rolled back, one in 23 rolls back to a savepoint.
func (s *schedule) next() (w Work, due time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left == 0 && !s.endless {
		return Work{}, time.Time{}, false
	}
	n := s.transactions
	s.transactions++
	w = Work{
		Order:   fmt.Sprintf("order-%04d", 1+rand.IntN(s.orders)),
		Changes: 1, Message: n%10 == 3, Savepoint: n%23 == 10, Rollback: n%17 == 4,
	}
	if n%8 == 5 {
		w.Changes = 3
	}
	if s.rate > 0 {
		due = s.start.Add(time.Duration(float64(s.dealt) / s.rate * float64(time.Second)))
	}
	if w.Rollback {
		s.tally.RolledBack++
		return w, due, true
	}
	if !s.endless {
		w.Changes = min(w.Changes, s.left)
		s.left -= w.Changes
	}
	s.dealt += w.Changes
	s.tally.Committed++
	if w.Message {
		s.tally.Messages++
	}
	return w, due, true
}
