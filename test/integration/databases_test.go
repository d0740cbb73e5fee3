package integration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
)

// One process, two databases of one server: what stops the one leaves the other alone.
func TestADatabaseThatFailsLeavesTheOtherAlone(t *testing.T) {
	admin := newest(t)
	fine := newWorld(t, admin, nil)
	broken := newWorld(t, admin, func(c *config.Config) { c.Databases[0].Name = "broken" })
	broken.exec("DROP PUBLICATION walferry")
	addr := freeAddr(t)
	var databases strings.Builder
	for _, w := range []*world{fine, broken} {
		db := w.cfg.Databases[0]
		fmt.Fprintf(&databases, "  - {name: %s, dsn: %q, slot: %s, publication: walferry, outbox: [{table: outbox, topic: %q}]}\n",
			db.Name, db.DSN.Reveal(), db.Slot, db.Outbox[0].Topic)
	}
	c := walferry(t, "run", "--config", writeFile(t, fmt.Sprintf("databases:\n%skafka: {brokers: %q}\nadmin: {listen: %q}\nlog: {format: json}\n",
		&databases, strings.Join(shared.kafka, ","), addr)))

	await(t, "one database to fail and the other to stream", func() error {
		status, body := get(t, "http://"+addr+"/readyz")
		ready, failed := "shop ready role=leader\n", "broken not ready: failed: publication \"walferry\" does not exist\n"
		if status != 503 || body != ready+failed {
			return fmt.Errorf("/readyz answers %d: %s", status, body)
		}
		return nil
	})
	fine.insert("k", `{"n": 1}`)
	fine.awaitCaughtUp()
	if got := len(fine.records()); got != 1 {
		t.Errorf("%d records of the database that is fine, want 1", got)
	}
	if status, body := get(t, "http://"+addr+"/healthz"); status != 200 || body != "ok\n" {
		t.Errorf("/healthz answers %d: %s", status, body)
	}

	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_, stderr := c.exit(bridge.Fatal.ExitCode())
	last := stderr[strings.LastIndex(strings.TrimSpace(stderr), "\n")+1:]
	if !strings.HasPrefix(last, "walferry: database broken: ") || !strings.Contains(last, "walferry init") {
		t.Errorf("the process ends with %q, want the error of the database that failed, with its hint", last)
	}
	if got := len(c.logLines("stopped")); got != 1 {
		t.Errorf("%d log lines of bridges that stopped by themselves, want 1", got)
	}
	fine.drainAll()
	if got := len(fine.records()); got != 1 {
		t.Errorf("%d records after the next run, want 1: the process has drained", got)
	}
}

// While a failover is under way no host may be the primary; that passes.
func TestAReadOnlyServerIsWaitedFor(t *testing.T) {
	w := newWorld(t, newest(t), func(c *config.Config) {
		db := &c.Databases[0]
		db.DSN = config.Secret(db.DSN.Reveal() + "&target_session_attrs=read-write")
	})
	w.exec("ALTER DATABASE " + w.prefix + " SET default_transaction_read_only = on")
	r := w.run("")
	r.awaitState(bridge.Waiting)
	if s := r.bridge.Status(); !strings.Contains(s.LastError, "read only connection") {
		t.Errorf("the last error is %q", s.LastError)
	}
	w.exec("ALTER DATABASE " + w.prefix + " RESET default_transaction_read_only")
	r.awaitState(bridge.Streaming)
	r.drain()
}
