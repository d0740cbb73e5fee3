package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/setup"
	"github.com/walferry/walferry/internal/demo"
)

// options are the flags of the demo.
type options struct {
	events  int
	rate    float64  // events per second; 0: as fast as possible
	dsn     string   // of the user's Postgres; empty: one of the demo's own
	brokers []string // of the user's Kafka; empty: one in this process
	keep    bool
}

func (o options) check() error {
	if o.events < 1 || o.rate < 0 {
		return errors.New("--events must be at least 1, and --rate must not be negative")
	}
	if o.dsn != "" {
		if _, err := pgx.ParseConfig(o.dsn); err != nil { // which can hold the password
			return errors.New("--postgres must be postgres://user@host:port/database or key=value pairs")
		}
	}
	for _, broker := range o.brokers {
		if _, _, err := net.SplitHostPort(broker); err != nil {
			return fmt.Errorf("--kafka must be host:port,...: %w", err)
		}
	}
	return nil
}

const (
	writers = 8
	samples = 5 // records that are shown
)

// runDemo runs the demo and prints the proof as the last line.
func runDemo(ctx context.Context, o options) error {
	scr := newScreen()
	// A reader of our output that goes away, such as head, must not keep us from cleaning up.
	signal.Ignore(syscall.SIGPIPE)
	if o.dsn == "" {
		if err := demo.DropRoot(scr.say); err != nil {
			return err
		}
	}
	scr.say("walferry-demo: %d events from Postgres to Kafka", o.events)
	p, err := newPlace(ctx, o, scr.say)
	var proof demo.Proof
	if err == nil {
		proof, err = newRun(p, scr).prove(ctx)
	}
	if ctx.Err() != nil {
		scr.say("interrupted, cleaning up")
		return errors.Join(errInterrupted, p.leave(ctx))
	}
	if err := errors.Join(err, p.leave(ctx)); err != nil {
		return err
	}
	if o.keep {
		p.sayKept(scr.say)
	}
	scr.say("demo: %s", proof)
	if !proof.Holds() || proof.Committed != o.events {
		return errNotProved
	}
	return nil
}

// run is one run of the demo in its place.
type run struct {
	*place
	screen *screen
	shop   demo.Shop
	ledger *demo.Ledger
	shown  int          // records, by the consumer
	lag    atomic.Int64 // of the last event: nanoseconds from the order service to the consumer
	bridge *bridge.Bridge
}

func newRun(p *place, scr *screen) *run {
	return &run{
		place: p, screen: scr, ledger: demo.NewLedger(),
		shop: demo.Shop{Schema: p.schema, Prefix: p.prefix},
	}
}

// prove sets everything up, runs it, and returns what came of it.
func (r *run) prove(ctx context.Context) (demo.Proof, error) {
	cfg, err := r.config()
	if err != nil {
		return demo.Proof{}, err
	}
	if err := r.furnish(ctx, r.shop, r.screen.say); err != nil {
		return demo.Proof{}, err
	}
	did := func(what string) { r.screen.say("bridge    %s", what) }
	if err := setup.Run(ctx, bridgeOptions(cfg, r.screen), did); err != nil {
		return demo.Proof{}, err
	}
	r.bridge = bridge.New(bridgeOptions(cfg, r.screen))
	consumer, err := demo.NewConsumer(r.brokers, r.topic())
	if err != nil {
		return demo.Proof{}, err
	}
	defer consumer.Close()
	if err := r.carry(ctx, consumer); err != nil {
		r.explain(ctx)
		return demo.Proof{}, err
	}
	// The bridge has stopped: what is not in the topic now will never be.
	ctx, cancel := context.WithTimeout(ctx, stallLimit)
	defer cancel()
	if err := consumer.ReadToEnd(ctx, r.arrived); err != nil {
		return demo.Proof{}, err
	}
	proof := r.ledger.Proof()
	r.report(proof)
	return proof, nil
}

// carry runs order service, bridge and consumer until every event is committed, and the
// bridge says that it has delivered them.
func (r *run) carry(ctx context.Context, consumer *demo.Consumer) error {
	group, ctx := errgroup.WithContext(ctx)
	stop, done := context.WithCancel(ctx) // ends what has no end of its own
	defer done()
	group.Go(func() error { return r.bridge.Run(stop) })
	group.Go(func() error { return consumer.Follow(stop, r.arrived) })
	group.Go(func() error { r.screen.watch(stop, r.progress); return nil })
	group.Go(func() error {
		defer done()
		began := time.Now()
		load := demo.Load{
			Shop: r.shop, DSN: r.dsn, Writers: writers, Orders: min(1000, max(10, r.events/10)),
			Events: r.events, Rate: r.rate, Committed: r.ledger.Committed,
		}
		tally, err := load.Run(ctx)
		if err != nil {
			return err
		}
		if err := r.awaitConfirmed(ctx); err != nil {
			return err
		}
		r.screen.say("service   committed %d transactions, %d of them with logical messages, and rolled %d back on purpose",
			tally.Committed, tally.Messages, tally.RolledBack)
		elapsed := time.Since(began)
		r.screen.say("bridge    confirmed the last of %d events after %.1f s: %.0f events/s",
			r.events, elapsed.Seconds(), float64(r.events)/elapsed.Seconds())
		return nil
	})
	return group.Wait()
}

// arrived takes a record from the consumer.
func (r *run) arrived(a demo.Arrival) {
	r.ledger.Delivered(a.Event)
	r.lag.Store(int64(time.Since(a.WrittenAt)))
	if r.shown < samples {
		r.screen.say("consumer  %s", recordLine(a.Record))
	}
	if r.shown++; r.shown == samples && r.events > samples {
		r.screen.say("consumer  ... and so on")
	}
}

func (r *run) progress() string {
	committed, delivered := r.ledger.Counts()
	return fmt.Sprintf("committed %d/%d  delivered %d  in flight %d  lag %v", committed, r.events, delivered,
		r.bridge.Status().Inflight, time.Duration(r.lag.Load()).Round(100*time.Microsecond))
}

// stallLimit is how long the demo waits while nothing moves.
const stallLimit = time.Minute

// awaitConfirmed waits until Postgres has the bridge's word, confirmed_flush_lsn, that
// everything is delivered that is committed now.
func (r *run) awaitConfirmed(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, r.dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it only read
	var end string
	if err := conn.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&end); err != nil {
		return fmt.Errorf("read the current LSN: %w", err)
	}
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	moved, was := time.Now(), ""
	for {
		var confirmed bool
		var lsn string
		err := conn.QueryRow(ctx, `SELECT confirmed_flush_lsn >= $2::text::pg_lsn, confirmed_flush_lsn::text
			FROM pg_replication_slots WHERE slot_name = $1`, r.slot, end).Scan(&confirmed, &lsn)
		switch {
		case err != nil:
			return fmt.Errorf("read slot %s: %w", r.slot, err)
		case confirmed:
			return nil
		case lsn != was:
			moved, was = time.Now(), lsn
		case time.Since(moved) > stallLimit:
			return fmt.Errorf("slot %s is confirmed up to %s only, not %s, and has not moved for %v", r.slot, lsn, end, stallLimit)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-poll.C:
		}
	}
}
