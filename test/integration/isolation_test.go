package integration

import (
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/servers"
)

// One process with a database of each kind of trouble: those that are well do not notice.
func TestTroubleStaysWithItsDatabase(t *testing.T) {
	cluster, err := servers.KafkaCluster(t.Context(), 3, servers.KafkaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Close() })
	if err := cluster.Brokers[2].Stop(); err != nil {
		t.Fatal(err)
	}
	for _, delivery := range []string{"at_least_once", "exactly_once"} {
		t.Run(delivery, func(t *testing.T) { testIsolation(t, delivery, cluster.Addrs()[:2]) })
	}
}

func testIsolation(t *testing.T, delivery string, brokers []string) {
	f := newFleet(t, newest(t), []string{"well", "stuck", "poisoned", "dropped", "held", "unreachable", "healthy"}, func(c *config.Config) {
		c.Delivery, c.Databases[0].DrainTimeout, c.Kafka.Brokers = delivery, 2*time.Second, brokers
	})
	well, stuck, poisoned, dropped, held, unreachable, healthy := f[0], f[1], f[2], f[3], f[4], f[5], f[6]
	stuck.refuseEvents()
	held.run("").awaitState(bridge.Streaming)
	unreachable.cfg.Databases[0].DSN = config.Secret("postgres://postgres@" + blackHole(t) + "/gone?sslmode=disable")

	addr := freeAddr(t)
	c := f.daemon(addr)
	awaitStates(t, addr, map[string]bridge.State{
		"well": bridge.Streaming, "stuck": bridge.Streaming, "poisoned": bridge.Streaming, "dropped": bridge.Streaming,
		"healthy": bridge.Streaming, "held": bridge.OnStandby, "unreachable": bridge.Starting,
	})
	trickles := []*trickle{well.startTrickle(20 * time.Millisecond), healthy.startTrickle(20 * time.Millisecond)}
	began := time.Now()
	awaitArrivals(t, trickles, began, 100)

	trouble := time.Now()
	stuck.insert("k", "1")
	poisoned.exec("INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('not/a/topic', 'k', 'T', '1')")
	dropped.dropDatabase()
	awaitStates(t, addr, map[string]bridge.State{"well": bridge.Streaming, "poisoned": bridge.Failed, "healthy": bridge.Streaming})
	await(t, "the dropped database to be missed", func() error { // first its slot was gone
		if s := statuses(t, addr)["dropped"]; s.State != bridge.Failed && s.State != bridge.InGap {
			return fmt.Errorf("it is %s", s.State)
		}
		return nil
	})
	await(t, "the stuck database to be stuck", func() error {
		if s := statuses(t, addr)["stuck"]; s.Inflight == 0 || time.Since(s.LastProgress) < time.Second {
			return fmt.Errorf("it has %d events in flight, last progress %s ago", s.Inflight, time.Since(s.LastProgress))
		}
		return nil
	})
	awaitArrivals(t, trickles, time.Now(), 100)

	// A session that begins anew is not held up either, not even by what the stuck one has in Kafka.
	before := healthy.walsender()
	again := time.Now()
	healthy.query("SELECT pg_terminate_backend($1::int)::text", before)
	awaitArrivals(t, trickles, again, 100)
	t.Logf("a session that was ended delivers again after %s", time.Since(again).Round(time.Millisecond))

	readyz := "\n" + awaitAnswer(t, "http://"+addr+"/readyz", 503) // it would say that the stuck one is not ready after 30 s
	for _, line := range []string{
		"well ready role=leader", "poisoned not ready: failed: ", "dropped not ready: ",
		"held ready role=standby", "unreachable not ready: ", "healthy ready role=leader",
	} {
		if !strings.Contains(readyz, "\n"+line) {
			t.Errorf("/readyz does not say %q:%s", line, readyz)
		}
	}
	end := time.Now()
	var twice [2]int
	for i, tr := range trickles {
		limit := 0
		if i == 1 && delivery == atLeastOnce {
			limit = 50 // what the session that was ended had on its way: a second's at most
		}
		if twice[i] = tr.awaitAll(t); twice[i] > limit {
			t.Errorf("database %d: %d duplicates, want at most %d", i, twice[i], limit)
		}
		mustNotBeLater(t, tr.delays(began, trouble), tr.delays(trouble, end), i)
	}
	if got := strings.Count(c.stderr.String(), "\n"); got > 60 {
		t.Errorf("%d lines in the log of a minute with trouble:\n%s", got, &c.stderr)
	}

	stopped := time.Now()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_, stderr := c.exit(bridge.Poison.ExitCode()) // of the first in the configuration that has failed
	if took := time.Since(stopped); took > 30*time.Second {
		t.Errorf("the process took %s to stop, with a drain_timeout of 2s", took)
	}
	for _, part := range []string{"walferry: database poisoned: ", "\ndatabase dropped: "} {
		if !strings.Contains(stderr, part) {
			t.Errorf("the last words do not say %q:\n%s", part, stderr)
		}
	}
	for i, w := range []*world{well, healthy} { // the process has drained them
		w.drainAll()
		if got, want := len(w.records()), trickles[i].written+twice[i]; got != want {
			t.Errorf("database %d: %d records after the next run, want %d", i, got, want)
		}
	}
}

// refuseEvents makes brokers of which one is down refuse the world's events with NOT_ENOUGH_REPLICAS, which the client takes
// for something that will pass.
func (w *world) refuseEvents() {
	w.t.Helper()
	all := "3"
	if _, err := w.kafkaAdmin().CreateTopic(w.t.Context(), 1, 3, map[string]*string{"min.insync.replicas": &all}, w.prefix+".order"); err != nil {
		w.t.Fatal(err)
	}
}

// dropDatabase drops the world's slot and its database under a bridge that streams.
func (w *world) dropDatabase() {
	w.t.Helper()
	root, err := pgx.Connect(w.t.Context(), w.admin)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = root.Close(context.Background()) }()
	await(w.t, "the slot to be dropped", func() error { // the bridge comes again for it
		if _, err := root.Exec(w.t.Context(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", w.prefix); err != nil {
			return err
		}
		_, err := root.Exec(w.t.Context(), "SELECT pg_drop_replication_slot($1)", w.prefix)
		return err
	})
	if _, err := root.Exec(w.t.Context(), "DROP DATABASE "+w.prefix+" WITH (FORCE)"); err != nil {
		w.t.Fatal(err)
	}
}

// blackHole returns an address where connections are accepted and nothing is ever said.
func blackHole(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// awaitStates waits until a process says that of its databases.
func awaitStates(t *testing.T, addr string, want map[string]bridge.State) {
	t.Helper()
	awaitAnswer(t, "http://"+addr+"/healthz", 200)
	await(t, "states of databases", func() error {
		all := statuses(t, addr)
		for name, state := range want {
			if got := all[name].State; got != state {
				return fmt.Errorf("%s is %s, want %s: %s", name, got, state, all[name].LastError)
			}
		}
		return nil
	})
}

// awaitArrivals waits until n events of each that were written from then on have arrived.
func awaitArrivals(t *testing.T, trickles []*trickle, from time.Time, n int) {
	t.Helper()
	await(t, "events to arrive", func() error {
		for _, tr := range trickles {
			if got := len(tr.delays(from, time.Now())); got < n {
				return fmt.Errorf("%d of %d have", got, n)
			}
		}
		return nil
	})
}

// mustNotBeLater compares delays with those before there was any trouble, as far as a busy machine allows.
func mustNotBeLater(t *testing.T, before, after []time.Duration, i int) {
	t.Helper()
	median := func(d []time.Duration) time.Duration { return d[len(d)/2] }
	most := func(d []time.Duration) time.Duration { return d[len(d)-1] }
	t.Logf("database %d: median and most of %d events before: %s, %s, of %d events beside trouble: %s, %s",
		i, len(before), median(before), most(before), len(after), median(after), most(after))
	if median(after) > 5*median(before)+500*time.Millisecond {
		t.Errorf("the median delay is %s, before there was trouble %s", median(after), median(before))
	}
	if most(after) > most(before)+10*time.Second { // an open Kafka transaction, a timeout, are longer
		t.Errorf("an event took %s, before there was trouble %s at most", most(after), most(before))
	}
}
