package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// run is one contestant's turn at one backlog. Its id names what it gets for itself: a slot and a topic.
type run struct {
	name  string // of the contestant
	id    string
	wal   *wal
	round int // from 1
}

// contestant is a way to drain a backlog.
type contestant struct {
	reads         bool // from a slot
	publishes     bool // to a topic
	transactional bool // so that a topic's offsets do not count its records
	command       func(context.Context, *harness, run) (*exec.Cmd, error)
	// finished, if not nil, returns when the work is done, for one that does not end by itself. first is when the
	// first record was seen in the topic.
	finished func(ctx context.Context, h *harness, r run, first func()) error
}

// contestants returns all of them, by name.
func contestants() map[string]contestant {
	return map[string]contestant{
		recvlogical: {reads: true, command: recvlogicalCommand},
		plainReader: {reads: true, command: readerCommand()},
		coalescer:   {reads: true, command: readerCommand("--pace")},
		producer:    {publishes: true, command: produceCommand},
		walferry:    {reads: true, publishes: true, command: walferryCommand("")},
		exactlyOnce: {reads: true, publishes: true, transactional: true, command: walferryCommand(deliverOnce)},
		debezium:    {reads: true, publishes: true, command: debeziumCommand, finished: awaitRecords},
	}
}

// tools are the programs that others have written.
type tools struct {
	recvlogical string // path, empty: there is none
	debezium    *debeziumServer
}

// findRecvlogical returns the path of pg_recvlogical, "" when there is none. Debian's command of that name is a script
// that takes its time to find the real one, so that one is preferred.
func findRecvlogical() string {
	if path := os.Getenv("PG_RECVLOGICAL"); path != "" {
		return path
	}
	versions, err := filepath.Glob("/usr/lib/postgresql/*/bin/pg_recvlogical")
	if err == nil && len(versions) > 0 {
		return slices.MaxFunc(versions, func(a, b string) int { return majorOf(a) - majorOf(b) })
	}
	path, err := exec.LookPath("pg_recvlogical")
	if err != nil {
		return ""
	}
	return path
}

// majorOf returns the major version in a path of Debian's.
func majorOf(path string) int {
	version, _, _ := strings.Cut(strings.TrimPrefix(path, "/usr/lib/postgresql/"), "/")
	major, err := strconv.Atoi(version)
	if err != nil {
		return 0
	}
	return major
}

func recvlogicalCommand(ctx context.Context, h *harness, r run) (*exec.Cmd, error) {
	return exec.CommandContext(ctx, h.tools.recvlogical, "--dbname", h.bed.pg.DSN(r.wal.database), "--slot", r.id, "--start",
		"-o", "proto_version=1", "-o", "publication_names="+publication, "-o", "messages=true",
		"--endpos", r.wal.until, "--no-loop", "-f", "/dev/null"), nil
}

func readerCommand(more ...string) func(context.Context, *harness, run) (*exec.Cmd, error) {
	return func(ctx context.Context, h *harness, r run) (*exec.Cmd, error) {
		args := append([]string{
			"read", "--dsn", h.bed.pg.DSN(r.wal.database), "--slot", r.id, "--until", r.wal.until,
			"--events", strconv.FormatInt(r.wal.Events, 10),
		}, more...)
		return again(ctx, args...)
	}
}

func produceCommand(ctx context.Context, h *harness, r run) (*exec.Cmd, error) {
	return again(ctx, "produce", "--broker", h.bed.kafka.Addr(), "--topic", r.id, "--sample", r.wal.sample,
		"--events", strconv.FormatInt(r.wal.Events, 10))
}

// again runs this program's subcommands.
func again(ctx context.Context, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, self, args...), nil
}

// deliverOnce is what makes a configuration one of exactly-once.
const deliverOnce = "delivery: exactly_once\n"

// walferryCommand returns the command with more configuration.
func walferryCommand(more string) func(context.Context, *harness, run) (*exec.Cmd, error) {
	return func(ctx context.Context, h *harness, r run) (*exec.Cmd, error) {
		path := filepath.Join(h.bed.dir, r.id+".yaml")
		config := walferryConfig(h.bed.kafka.Addr(), "", bridged{name: "bench", dsn: h.bed.pg.DSN(r.wal.database), slot: r.id, topic: r.id})
		if err := os.WriteFile(path, []byte(config+more), 0o600); err != nil {
			return nil, err
		}
		return exec.CommandContext(ctx, h.bed.walferry, "run", "--config", path, "--until-lsn", r.wal.until, "--adopt-slot"), nil
	}
}

// bridged is a database in walferry's configuration.
type bridged struct{ name, dsn, slot, topic string }

// walferryConfig is a configuration with walferry's defaults, whatever costs something included: checkpoints, position
// header, metrics. Only nothing asks for them. ca is the file of the broker's authority, "" without TLS.
func walferryConfig(broker, ca string, databases ...bridged) string {
	var b strings.Builder
	b.WriteString("databases:\n")
	for _, d := range databases {
		fmt.Fprintf(&b, `  - name: %s
    dsn: %q
    slot: %s
    publication: %s
    outbox: [{table: public.outbox, topic: %q}]
    messages: {prefix: %s, topic: %q}
`, d.name, d.dsn, d.slot, publication, d.topic, messagePrefix, d.topic)
	}
	tls := "false"
	if ca != "" {
		tls = "true, ca_file: " + strconv.Quote(ca)
	}
	fmt.Fprintf(&b, "kafka:\n  brokers: [%q]\n  tls: {enabled: %s}\nadmin: {listen: \"\"}\n", broker, tls)
	return b.String()
}

// errNoContestant is a contestant that this machine does not have.
var errNoContestant = errors.New("not measured")

// available returns why a contestant cannot take part, wrapping errNoContestant.
func (t *tools) available(name string) error {
	switch {
	case name == recvlogical && t.recvlogical == "":
		return fmt.Errorf("pg_recvlogical: %w: it is not installed. It is in Debian's and Ubuntu's package postgresql-client; "+
			"set PG_RECVLOGICAL if it is not on PATH", errNoContestant)
	case name == debezium && t.debezium == nil:
		return fmt.Errorf("debezium: %w: see above", errNoContestant)
	}
	return nil
}
