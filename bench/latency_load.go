package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// latencyWriters is how many connections share the load.
const latencyWriters = 16

// latencyLoad is an open loop: event n is due at a fixed time, however long those before it
// take. The writers share one queue, as those of a connection pool do.
type latencyLoad struct {
	block latencyBlock
	table string // of the outbox rows
	conns []*pgx.Conn
	// publish, if not nil, is called by any writer after its commit.
	publish func(latencyEvent)

	start time.Time    // when event 0 is due
	next  atomic.Int64 // the next event to be taken from the queue
	sent  []time.Time  // of COMMIT, by event; each is written by the writer that has it
	late  atomic.Int64 // ns: the most that a writer began behind the schedule
}

// latencyEvent is an event as an application has it.
type latencyEvent struct{ id, key, payload string }

// newLatencyEvent makes event n. The key is its number, so that its record can be told.
func newLatencyEvent(n int) latencyEvent {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	key := strconv.Itoa(n)
	return latencyEvent{
		id:      fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]),
		key:     key,
		payload: `{"order": ` + key + `, "note": "` + strings.Repeat("two of the blue ones, ", 10) + `"}`,
	}
}

// newLatencyLoad connects the writers. The caller must close it.
func newLatencyLoad(ctx context.Context, dsn string, b latencyBlock) (*latencyLoad, error) {
	l := &latencyLoad{block: b, table: "outbox", sent: make([]time.Time, b.total())}
	if b.contestant == direct {
		l.table = "outbox_unpublished"
	}
	for range latencyWriters {
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("connect a writer: %w", err), l.close(ctx))
		}
		l.conns = append(l.conns, conn)
	}
	return l, nil
}

func (l *latencyLoad) close(ctx context.Context) error {
	var err error
	for _, conn := range l.conns {
		err = errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}
	return err
}

// probe commits event 0 alone: when it has arrived all are at work.
func (l *latencyLoad) probe(ctx context.Context) error {
	l.next.Store(1)
	return l.commit(ctx, l.conns[0], 0)
}

// run commits the events behind the probe when they are due, and returns when all are committed.
func (l *latencyLoad) run(ctx context.Context) error {
	l.start = time.Now()
	writers, ctx := errgroup.WithContext(ctx)
	for _, conn := range l.conns {
		writers.Go(func() error { return l.write(ctx, conn) })
	}
	return writers.Wait()
}

func (l *latencyLoad) write(ctx context.Context, conn *pgx.Conn) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		n := int(l.next.Add(1)) - 1
		if n >= l.block.total() {
			return nil
		}
		due := l.start.Add(dueAfter(n, l.block.rate))
		timer.Reset(time.Until(due))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		}
		raise(&l.late, time.Since(due).Nanoseconds())
		if err := l.commit(ctx, conn, n); err != nil {
			return fmt.Errorf("write event %d: %w", n, err)
		}
	}
}

// dueAfter returns when event n is due, from the start.
func dueAfter(n, rate int) time.Duration {
	return time.Duration(n) * time.Second / time.Duration(rate)
}

// raise makes the maximum at least v.
func raise(maximum *atomic.Int64, v int64) {
	for old := maximum.Load(); v > old; old = maximum.Load() {
		if maximum.CompareAndSwap(old, v) {
			return
		}
	}
}

// commit runs the transaction of event n, in two round trips.
func (l *latencyLoad) commit(ctx context.Context, conn *pgx.Conn, n int) error {
	event := newLatencyEvent(n)
	batch := &pgx.Batch{}
	batch.Queue("BEGIN")
	batch.Queue("INSERT INTO orders (customer, total) VALUES ($1, $2)", "ada", n)
	batch.Queue("INSERT INTO "+l.table+" (id, aggregatetype, aggregateid, type, payload) VALUES ($1, $2, $3, 'OrderPlaced', $4)",
		event.id, l.block.name(), event.key, event.payload)
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	l.sent[n] = time.Now()
	if _, err := conn.Exec(ctx, "COMMIT"); err != nil {
		return err
	}
	if l.publish != nil {
		l.publish(event)
	}
	return nil
}
