package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

// harness measures everything on one testbed.
type harness struct {
	bed         *testbed
	tools       tools
	contestants map[string]contestant
	client      *kgo.Client // for topics and offsets
	watch       *pgx.Conn   // for looking at slots while they are drained
	results     *Results
	out         io.Writer
	began       time.Time
	runs        int // so far, for names
}

// benchmark measures what o asks for, says how it goes, and writes the report.
func benchmark(ctx context.Context, o options, out io.Writer) (err error) {
	specs, err := plan(o)
	if err != nil {
		return err
	}
	h := &harness{contestants: contestants(), out: out, began: time.Now()}
	h.results = &Results{Commit: commitOf(ctx), Time: h.began.UTC(), Quick: o.quick}
	h.findTools(ctx, o)
	h.say("starting Postgres and Kafka")
	if h.bed, err = newTestbed(ctx, o.walferry); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.bed.close()) }()
	if err := h.connect(ctx); err != nil {
		return err
	}
	defer h.disconnect(ctx)
	if h.results.Machine, err = h.machine(ctx); err != nil {
		return err
	}
	h.say("%s", describeMachine(h.results.Machine))
	if err := h.measureAll(ctx, specs, o); err != nil {
		return err
	}
	if cores := othersCores(h.results.Drains); cores > quiet {
		h.note(fmt.Sprintf("the machine was not quiet: others used %.1f cores beside the median drain, so these numbers say little", cores))
	}
	h.results.Verdicts = judge(h.results)
	if err := h.report(o.out); err != nil {
		return err
	}
	if n := len(h.results.Failures); n > 0 {
		return fmt.Errorf("%d runs failed, see above", n)
	}
	return nil
}

// measureAll measures one backlog after another, and then the rest.
func (h *harness) measureAll(ctx context.Context, specs []spec, o options) error {
	warmups := 4 // the broker's JVM compiles for about as many drains
	if o.quick {
		warmups = 2
	}
	for _, s := range specs {
		if err := h.measureBacklog(ctx, s, warmups); err != nil {
			return err
		}
		warmups = 0
	}
	if o.growth && o.wants(idleExperiment) {
		h.attempt(ctx, idleExperiment, func() error { return h.measureIdle(ctx) })
	}
	if o.latency && o.wants(latencyExperiment) {
		h.attempt(ctx, latencyExperiment, func() error {
			var err error
			h.results.Latencies, err = measureLatency(ctx, h.bed, o.quick, func(line string) { h.say("%s", line) })
			return err
		})
	}
	return context.Cause(ctx)
}

// wants reports whether --only allows it.
func (o options) wants(name string) bool {
	return len(o.only) == 0 || slices.Contains(o.only, name)
}

// attempt does what may fail without ending the benchmark.
func (h *harness) attempt(ctx context.Context, what string, do func() error) {
	if err := do(); err != nil && ctx.Err() == nil {
		failure := fmt.Sprintf("%s: %v", what, err)
		h.results.Failures = append(h.results.Failures, failure)
		h.say("FAILED %s", failure)
	}
}

// measureBacklog writes a backlog and has everybody drain it, a round after the other. The warm-ups come first, for the
// broker: its JVM compiles what is used often.
func (h *harness) measureBacklog(ctx context.Context, s spec, warmups int) (err error) {
	h.say("writing backlog %s", s.name)
	w, err := h.bed.writeBacklog(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.bed.drop(context.WithoutCancel(ctx), w)) }()
	h.results.Backlogs = append(h.results.Backlogs, w.Backlog)
	h.say("backlog %s: %d events, payloads of %d bytes, %d MB of WAL", w.Name, w.Events, w.Payload, w.WALBytes/1e6)

	var names []string
	for _, name := range s.contestants {
		if h.tools.available(name) == nil {
			names = append(names, name)
		}
	}
	for range warmups {
		for _, name := range names {
			if h.contestants[name].publishes && name != debezium {
				h.attempt(ctx, "warm-up of "+name, func() error { _, err := h.drain(ctx, w, name, 0); return err })
			}
		}
	}
	for round := range s.rounds {
		for _, name := range rotated(names, round) {
			h.attempt(ctx, fmt.Sprintf("%s, round %d, %s", w.Name, round+1, name), func() error {
				d, err := h.drain(ctx, w, name, round+1)
				if err == nil {
					h.results.Drains = append(h.results.Drains, d)
					h.say("%s", describeDrain(d))
				}
				return err
			})
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// findTools looks for the programs of others, and notes which are missing.
func (h *harness) findTools(ctx context.Context, o options) {
	h.tools.recvlogical = findRecvlogical()
	if err := h.tools.available(recvlogical); err != nil {
		h.note(err.Error())
	}
	if !o.peers {
		return
	}
	var err error
	if h.tools.debezium, err = findDebezium(ctx, o.cache, h.say); err != nil {
		h.note(fmt.Sprintf("debezium: not measured: %v", err))
	}
}

// quiet is how many cores others may use: Postgres' other processes and the harness need some.
const quiet = 0.25

// othersCores returns how many cores others used during the median drain.
func othersCores(drains []Drain) float64 {
	var cores []float64
	for _, d := range drains {
		cores = append(cores, d.OtherCPU/d.Seconds)
	}
	return seriesOf(cores).median
}

func (h *harness) note(text string) {
	h.results.Notes = append(h.results.Notes, text)
	h.say("NOTE   %s", text)
}

func (h *harness) connect(ctx context.Context) (err error) {
	if h.watch, err = pgx.Connect(ctx, h.bed.pg.DSN("postgres")); err != nil {
		return err
	}
	h.client, err = kgo.NewClient(kgo.SeedBrokers(h.bed.kafka.Addr()), kgo.MetadataMinAge(50*time.Millisecond))
	return err
}

func (h *harness) disconnect(ctx context.Context) {
	_ = h.watch.Close(context.WithoutCancel(ctx)) // it has only read
	h.client.Close()
}

// say writes a line about how it goes.
func (h *harness) say(format string, args ...any) {
	since := time.Since(h.began)
	_, _ = fmt.Fprintf(h.out, "%2d:%02d  %s\n", int(since.Minutes()), int(since.Seconds())%60, fmt.Sprintf(format, args...))
}

// describeDrain is a line about a run.
func describeDrain(d Drain) string {
	line := fmt.Sprintf("%-6s round %d  %-14s %6.2f s", d.Backlog, d.Round, d.Contestant, d.Seconds)
	if d.Events > 0 {
		line += fmt.Sprintf("  %8s events/s  %5.2f µs CPU/event", thousands(d.rate()), d.cpuPerEvent())
	} else {
		line += fmt.Sprintf("  %.2f s CPU", d.User+d.Sys)
	}
	return line + fmt.Sprintf("  %4.0f MB  walsender %.2f+%.2f s  broker %.2f s  others %.2f s",
		float64(d.PeakRSS)/1e6, d.WalsenderUser, d.WalsenderSys, d.BrokerCPU, d.OtherCPU)
}
