package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
)

// drain gives one contestant its turn. What lost or duplicated an event is an error, not a number.
func (h *harness) drain(ctx context.Context, w *wal, name string, round int) (_ Drain, err error) {
	c := h.contestants[name]
	h.runs++
	r := run{name: name, id: fmt.Sprintf("bench_%d_%s_%s", h.runs, w.Name, name), wal: w, round: round}
	if c.publishes {
		if err := h.createTopic(ctx, r.id); err != nil {
			return Drain{}, err
		}
		defer func() { err = errors.Join(err, h.deleteTopic(ctx, r.id)) }()
	}
	if c.reads {
		if err := w.copySlot(ctx, r.id); err != nil {
			return Drain{}, err
		}
		defer func() { err = errors.Join(err, w.dropSlot(ctx, r.id)) }()
	}
	d, err := h.timed(ctx, c, r)
	if err != nil || !c.publishes {
		return d, err
	}
	count := countRecords
	if c.transactional {
		count = countCommitted
	}
	records, err := count(ctx, h.client, r.id)
	if err == nil && records != w.Events {
		err = fmt.Errorf("topic %s has %d records, want %d", r.id, records, w.Events)
	}
	return d, err
}

// timed runs the contestant and samples whom it keeps busy.
func (h *harness) timed(ctx context.Context, c contestant, r run) (Drain, error) {
	cmd, err := c.command(ctx, h, r)
	if err != nil {
		return Drain{}, err
	}
	explain, err := logged(cmd, filepath.Join(h.bed.dir, r.id+".log"))
	if err != nil {
		return Drain{}, err
	}
	d := Drain{Backlog: r.wal.Name, Contestant: r.name, Round: r.round, Events: r.wal.Events, Load: load1()}
	var walsender sampledWalsender
	if c.reads {
		walsender.start(ctx, h.watch, r.id)
	}
	before, err := h.cpu()
	if err != nil {
		return Drain{}, err
	}
	var done func(context.Context) error
	var first atomic.Int64 // nanoseconds after start
	start := time.Now()
	if c.finished != nil {
		done = func(ctx context.Context) error {
			return c.finished(ctx, h, r, func() { first.Store(int64(time.Since(start))) })
		}
	}
	used, err := measure(ctx, cmd, done)
	sender := walsender.stop()
	after, cpuErr := h.cpu()
	if err := errors.Join(explain(err), cpuErr); err != nil {
		return Drain{}, err
	}
	d.Seconds, d.User, d.Sys, d.PeakRSS = used.elapsed.Seconds(), used.cpu.user, used.cpu.sys, used.peakRSS
	d.WalsenderUser, d.WalsenderSys = sender.user, sender.sys
	d.BrokerCPU = after.broker - before.broker
	d.OtherCPU = max(0, after.machine-before.machine-d.BrokerCPU-used.cpu.total()-sender.total())
	d.FirstRecord = time.Duration(first.Load()).Seconds()
	return d, nil
}

// cpuSeconds is CPU time so far.
type cpuSeconds struct{ broker, machine float64 }

func (h *harness) cpu() (cpuSeconds, error) {
	broker, err := processCPU(h.bed.kafka.PID())
	if err != nil {
		return cpuSeconds{}, err
	}
	machine, err := machineCPU()
	return cpuSeconds{broker.total(), machine.total()}, err
}

// sampledWalsender follows the CPU time of the walsender that holds a slot.
type sampledWalsender struct {
	over chan struct{} // closed when the contestant has ended
	done sync.WaitGroup
	cpu  cpuTime
}

// start looks for the walsender until it has found it, and then at it until it is gone. Nobody else may use conn.
func (s *sampledWalsender) start(ctx context.Context, conn *pgx.Conn, slot string) {
	s.over = make(chan struct{})
	s.done.Go(func() {
		tick := time.NewTicker(sampling)
		defer tick.Stop()
		over := s.over
		var limit <-chan time.Time
		pid := 0
		for {
			select {
			case <-ctx.Done():
				return
			case <-over:
				over, limit = nil, time.After(5*time.Second)
				if pid == 0 {
					return
				}
			case <-limit:
				return
			case <-tick.C:
			}
			if pid == 0 {
				pid = activePID(ctx, conn, slot)
				continue
			}
			cpu, err := processCPU(pid)
			if err != nil {
				return // it has ended
			}
			s.cpu = cpu
		}
	})
}

// stop returns what the walsender had used when it was last seen, zeros if there was none.
func (s *sampledWalsender) stop() cpuTime {
	if s.over != nil {
		close(s.over)
		s.done.Wait()
	}
	return s.cpu
}

// activePID returns the process that holds the slot, 0 if there is none yet.
func activePID(ctx context.Context, conn *pgx.Conn, slot string) int {
	var pid int
	err := conn.QueryRow(ctx, "SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = $1", slot).Scan(&pid)
	if err != nil {
		return 0
	}
	return pid
}

// createTopic returns when the topic can be written to.
func (h *harness) createTopic(ctx context.Context, topic string) error {
	if _, err := kadm.NewClient(h.client).CreateTopic(ctx, partitions, 1, nil, topic); err != nil {
		return fmt.Errorf("create topic %s: %w", topic, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var last error
	err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
		_, last = countRecords(ctx, h.client, topic)
		return last == nil, nil
	})
	return errors.Join(err, last)
}

func (h *harness) deleteTopic(ctx context.Context, topic string) error {
	_, err := kadm.NewClient(h.client).DeleteTopic(context.WithoutCancel(ctx), topic)
	return err
}
