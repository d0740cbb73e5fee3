package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	idleExperiment = "idle"
	idleDatabases  = 20
	idleFor        = time.Minute
)

// measureIdle measures one bridge on databases in which nothing happens.
func (h *harness) measureIdle(ctx context.Context) error {
	h.say("creating %d idle databases", idleDatabases)
	var databases []bridged
	for i := range idleDatabases {
		name := fmt.Sprintf("idle_%d", i)
		if err := h.createIdle(ctx, name); err != nil {
			return err
		}
		databases = append(databases, bridged{name: name, dsn: h.bed.pg.DSN(name), slot: name, topic: "idle"})
	}
	path := filepath.Join(h.bed.dir, "idle.yaml")
	if err := os.WriteFile(path, []byte(walferryConfig(h.bed.kafka.Addr(), "", databases...)), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, h.bed.walferry, "run", "--config", path, "--adopt-slot")
	explain, err := logged(cmd, filepath.Join(h.bed.dir, "idle.log"))
	if err != nil {
		return err
	}
	d := Drain{Backlog: idleExperiment, Contestant: walferry, Round: 1, Seconds: idleFor.Seconds(), Load: load1()}
	used, err := measure(ctx, cmd, func(ctx context.Context) error { return h.watchIdle(ctx, cmd, &d) })
	if err := explain(err); err != nil {
		return err
	}
	d.PeakRSS = used.peakRSS
	h.results.Backlogs = append(h.results.Backlogs, Backlog{Name: idleExperiment})
	h.results.Drains = append(h.results.Drains, d)
	h.say("%s", describeDrain(d))
	return nil
}

// createIdle makes a database with an empty outbox and a slot.
func (h *harness) createIdle(ctx context.Context, name string) error {
	if _, err := h.watch.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return err
	}
	return execute(ctx, h.bed.pg.DSN(name), schema, fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", name))
}

// watchIdle waits until all slots are taken and the start is over, and measures the CPU time from then on.
func (h *harness) watchIdle(ctx context.Context, cmd *exec.Cmd, d *Drain) error {
	err := poll(ctx, 100*time.Millisecond, func() (bool, error) {
		var held int
		err := h.watch.QueryRow(ctx, "SELECT count(*) FROM pg_replication_slots WHERE active AND slot_name LIKE 'idle%'").Scan(&held)
		return held == idleDatabases, err
	})
	if err != nil {
		return err
	}
	if err := wait(ctx, 5*time.Second); err != nil {
		return err
	}
	before, err := processCPU(cmd.Process.Pid)
	if err != nil {
		return err
	}
	if err := wait(ctx, idleFor); err != nil {
		return err
	}
	after, err := processCPU(cmd.Process.Pid)
	d.User, d.Sys = after.user-before.user, after.sys-before.sys
	return err
}

// poll returns when done reports so, with its error if it fails, or with ctx's cause.
func poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	for {
		if over, err := done(); over || err != nil {
			return err
		}
		if err := wait(ctx, every); err != nil {
			return err
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
