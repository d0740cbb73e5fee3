package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/walferry/walferry/internal/servers"
)

// latencyExperiment is what --only chooses it by.
const latencyExperiment = "latency"

// direct is walferry's contestant: an application that publishes by itself.
const direct = "direct"

// latencyCase is what both contestants are measured at.
type latencyCase struct {
	rate     int // events per second
	tls      bool
	draining bool
}

func (c latencyCase) String() string {
	s := fmt.Sprintf("%d events/s", c.rate)
	if c.tls {
		s += " with TLS"
	}
	if c.draining {
		s += " during a drain"
	}
	return s
}

// latencyPlan is what is measured for how long.
type latencyPlan struct {
	cases    []latencyCase
	rounds   int
	jit      time.Duration // of load by each contestant on each broker beforehand, for its JVM to compile what they use
	warmup   time.Duration // of a block: its events do not count
	measured time.Duration
}

func newLatencyPlan(quick bool) latencyPlan {
	tls, draining := latencyCase{rate: 1000, tls: true}, latencyCase{rate: 1000, draining: true}
	if quick {
		return latencyPlan{
			cases: []latencyCase{{rate: 1000}, tls, draining}, rounds: 1,
			jit: 10 * time.Second, warmup: time.Second, measured: 3 * time.Second,
		}
	}
	return latencyPlan{
		cases: []latencyCase{{rate: 100}, {rate: 1000}, {rate: 3000}, tls, draining}, rounds: 5,
		jit: 45 * time.Second, warmup: 2 * time.Second, measured: 10 * time.Second,
	}
}

// latencyBlock is one stretch of load on one contestant.
type latencyBlock struct {
	latencyCase
	contestant string
	round      int // from 1
	warmup     int // events that do not count, the probe among them
	events     int // events that count, behind them
}

func (b latencyBlock) total() int { return b.warmup + b.events }

// name is the block's aggregate type, and part of its topic.
func (b latencyBlock) name() string {
	name := fmt.Sprintf("%s-%d", b.contestant, b.rate)
	if b.tls {
		name += "-tls"
	}
	if b.draining {
		name += "-draining"
	}
	return fmt.Sprintf("%s-%d", name, b.round)
}

// blocks returns the blocks of a case. The contestants take turns, and in going first as well.
func (p latencyPlan) blocks(c latencyCase) []latencyBlock {
	var blocks []latencyBlock
	contestants := []string{walferry, direct}
	if c == (latencyCase{rate: 1000}) {
		contestants = append(contestants, exactlyOnce)
	}
	for round := 1; round <= p.rounds; round++ {
		for _, contestant := range contestants {
			blocks = append(blocks, latencyBlock{
				latencyCase: c, contestant: contestant, round: round,
				warmup: 1 + eventsIn(p.warmup, c.rate), events: eventsIn(p.measured, c.rate),
			})
		}
		slices.Reverse(contestants)
	}
	return blocks
}

// eventsIn returns how many events are due within d.
func eventsIn(d time.Duration, rate int) int { return int(d.Seconds() * float64(rate)) }

// measureLatency measures the time from a commit to the record at a consumer, with
// synchronous_commit = on and a Postgres that flushes its WAL to disk: through walferry, and
// with an application that publishes by itself directly after its commit.
//
// Both run the same transaction, of a business row and an outbox row, on the same
// connections of the same server; the outbox row of the direct application lies in a table
// that is not published. Time counts, for both, from just before COMMIT is sent (t0) to when
// a consumer in this process has polled the record (t1). Not from COMMIT's answer: walferry may
// well have published before the application knows that it has committed, and a contestant
// that publishes itself cannot begin before; the wait for the disk is part of what both have to
// offer. And not from when the event was due: what a late writer waited for its connection is
// the load's doing, and is reported beside the result. Where the machine cannot keep up the
// two wait in different places, the application's events before COMMIT and walferry's behind
// it: only figures of writers that were hardly late can be compared.
//
// Each block has a topic of its own. An event that does not arrive exactly once is an error,
// not a number. report is told how it goes, a line at a time.
func measureLatency(ctx context.Context, t *testbed, quick bool, report func(string)) (_ []Latency, err error) {
	options := postgresOptions()
	options.Fsync = true
	pg, err := servers.Postgres(ctx, "18", options)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pg.Close()) }()
	plain, err := newLatencySite(ctx, t, pg, "latency", pg.DSN("latency"), t.kafka.Addr(), latencyTLS{})
	if err != nil {
		return nil, fmt.Errorf("prepare the latency: %w", err)
	}
	defer plain.close()
	plan := newLatencyPlan(quick)
	if err := plain.warm(ctx, plan.jit); err != nil {
		return nil, err
	}
	var results []Latency
	for _, c := range plan.cases {
		var found []Latency
		switch {
		case c.tls:
			found, err = measureWithTLS(ctx, t, pg, plan, plan.blocks(c), report)
		case c.draining:
			found, err = measureWhileDraining(ctx, t, pg, plain, (plan.warmup + plan.measured).Seconds(), plan.blocks(c), report)
		default:
			found, err = plain.measureAll(ctx, plan.blocks(c), report)
		}
		if err != nil {
			return nil, fmt.Errorf("latency at %s: %w", c, err)
		}
		results = append(results, found...)
	}
	return results, nil
}

// warm lets each contestant put load on the broker for d, and measures nothing.
func (s *latencySite) warm(ctx context.Context, d time.Duration) error {
	c := latencyCase{rate: 2000, tls: s.tls.client != nil}
	for _, contestant := range []string{direct, walferry} {
		b := latencyBlock{latencyCase: c, contestant: contestant, warmup: 1, events: eventsIn(d, c.rate)}
		if _, _, err := s.measure(ctx, b); err != nil {
			return fmt.Errorf("warm up the broker: %w", err)
		}
	}
	return nil
}

// measureAll measures the blocks one after another.
func (s *latencySite) measureAll(ctx context.Context, blocks []latencyBlock, report func(string)) ([]Latency, error) {
	var results []Latency
	for _, b := range blocks {
		l, late, err := s.measure(ctx, b)
		if err != nil {
			return nil, fmt.Errorf("%s, round %d: %w", b.contestant, b.round, err)
		}
		report(describeLatency(b, l, late))
		results = append(results, l)
	}
	return results, nil
}

// describeLatency is a line about a block. late is the most that a writer was behind the schedule.
func describeLatency(b latencyBlock, l Latency, late time.Duration) string {
	return fmt.Sprintf("latency at %s, round %d, %s: p50 %.2f ms, p90 %.2f, p99 %.2f, p99.9 %.2f, max %.2f (%d events; writers at most %.2f ms late; %.2f cores busy)",
		b.latencyCase, b.round, b.contestant, l.P50, l.P90, l.P99, l.P999, l.Max, l.Events, milliseconds(late), l.Cores)
}

// summarize returns the quantiles of the durations, which it sorts.
func summarize(b latencyBlock, took []time.Duration) Latency {
	slices.Sort(took)
	return Latency{
		Contestant: b.contestant, Rate: b.rate, TLS: b.tls, Draining: b.draining, Round: b.round, Events: len(took),
		P50: quantile(took, 0.5), P90: quantile(took, 0.9), P99: quantile(took, 0.99), P999: quantile(took, 0.999),
		Max: milliseconds(took[len(took)-1]),
	}
}

// quantile returns the smallest duration, in milliseconds, that at least the share q of the
// sorted durations does not exceed: no interpolation, so it is one that was measured.
func quantile(sorted []time.Duration, q float64) float64 {
	for i, d := range sorted {
		if float64(i+1) >= q*float64(len(sorted)) {
			return milliseconds(d)
		}
	}
	return 0
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
