//go:build faults

package integration

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/servers"
)

// soak is a world under load whose parts break in turn.
type soak struct {
	*faultRun
	w       *world
	l       *load
	pg      *servers.PG
	cluster *servers.Cluster
	network *proxy   // before Postgres
	process *command // the bridge
}

// TestSoak breaks things at random for MINUTES (2), with the delivery that DELIVERY names. SEED repeats the choices of a run
// before, though not their timing. FAULTS, a part of their names, chooses among the faults.
func TestSoak(t *testing.T) {
	minutes, seed := envNumber(t, "MINUTES", 2), envNumber(t, "SEED", int(time.Now().UnixMilli()))
	shared.delivery = cmp.Or(os.Getenv("DELIVERY"), atLeastOnce)
	fmt.Printf("soak: SEED=%d MINUTES=%d DELIVERY=%s\n", seed, minutes, shared.delivery)
	f := &faultRun{T: t, env: &faultEnv{t: t}}
	f.random = rand.New(rand.NewPCG(uint64(seed), 0))
	s := newSoak(f)
	type kind struct {
		name string
		do   func()
	}
	faults := []kind{
		{"kill -9 of the bridge", s.killBridge},
		{"SIGTERM", s.terminateBridge},
		{"Postgres fast restart", s.restartPostgres},
		{"kill -9 of Postgres", s.killPostgres},
		{"walsender terminated", s.terminateWalsender},
		{"kill -9 of a broker", s.killBroker},
		{"restart of a broker", s.restartBroker},
		{"reset", func() { s.network.reset() }},
		{"reset in a message", func() { s.network.resetAfter(s.random.IntN(64 << 10)) }},
		{"black hole", s.blackHole},
		{"latency", func() { s.carryFor(late(100 * time.Millisecond)) }},
		{"slices", func() { s.carryFor(sliced) }},
	}
	faults = slices.DeleteFunc(faults, func(k kind) bool { return !strings.Contains(k.name, os.Getenv("FAULTS")) })
	counts, began, n := map[string]int{}, time.Now(), 0
	for ; time.Since(began) < time.Duration(minutes)*time.Minute; n++ {
		fault := faults[s.random.IntN(len(faults))]
		counts[fault.name]++
		fault.do()
		s.settle(n%3 != 2) // else the next fault meets the one before
	}
	s.l.stop()
	a := f.verifyBut(s.l, "")
	if f.exactlyOnce() && a.duplicates() > 0 {
		t.Errorf("%d duplicates, want none", a.duplicates())
	}
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		shared.summary += fmt.Sprintf("soak: %4d x %s\n", counts[name], name)
	}
	shared.summary += fmt.Sprintf("soak: SEED=%d, %s, %s: %d events, %d faults: %d lost, %d phantom, %d altered, %d out of order, %d duplicated, %s\n",
		seed, shared.delivery, time.Since(began).Round(time.Second), len(a.first), n,
		a.faults["lost"], a.faults["phantom"], a.faults["altered"], a.faults["order"], a.duplicates(), f)
}

func envNumber(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func newSoak(f *faultRun) *soak {
	s := &soak{faultRun: f, cluster: f.threeBrokers()}
	s.pg = ownPostgres(f.T, "18", servers.PostgresOptions{})
	s.network = newProxy(f.T, net.JoinHostPort("127.0.0.1", strconv.Itoa(s.pg.Port())))
	s.w = newWorld(f.T, s.pg.DSN("postgres"), func(cfg *config.Config) {
		on(s.cluster.Addrs()...)(cfg)
		senderTimeout(cfg, 4*time.Second)
	})
	db := &s.w.cfg.Databases[0]
	db.DSN = config.Secret(strings.Replace(string(db.DSN), fmt.Sprint(":", s.pg.Port()), s.network.listener.Addr().String()[len("127.0.0.1"):], 1))
	s.l = f.load(s.w)
	s.process = s.w.daemon("")
	s.process.awaitStreaming()
	return s
}

// settle waits until the bridge has recovered, or only for some load.
func (s *soak) settle(whole bool) {
	s.Helper()
	select {
	case <-s.process.done:
		s.Fatalf("the bridge has ended by itself: %s\n%s", s.process.cmd.ProcessState, &s.process.stderr)
	default:
	}
	if whole {
		s.recovered(s.w, time.Now(), s.w.insertLSN())
	}
	s.l.more(s.random.IntN(100))
}

func (s *soak) killBridge() {
	s.process.kill()
	s.process = s.w.daemon("")
}

func (s *soak) terminateBridge() {
	s.process.terminate()
	s.process = s.w.daemon("")
}

func (s *soak) restartPostgres() {
	s.stop(s.pg, "fast", 6*time.Second)
	s.start(s.pg)
	s.w.reconnect()
}

func (s *soak) killPostgres() {
	if err := s.pg.Kill(); err != nil {
		s.Fatal(err)
	}
	s.start(s.pg)
	s.w.reconnect()
}

func (s *soak) terminateWalsender() {
	s.w.query("SELECT count(pg_terminate_backend(active_pid))::text FROM pg_replication_slots WHERE slot_name = $1 AND active", s.w.prefix)
}

func (s *soak) someBroker() *servers.Broker {
	return s.cluster.Brokers[s.random.IntN(len(s.cluster.Brokers))]
}

func (s *soak) killBroker() {
	end := outage(s.T, s.someBroker())
	s.l.more(s.random.IntN(500))
	end()
	s.awaitReplicas(s.w, s.cluster)
}

func (s *soak) restartBroker() {
	b := s.someBroker()
	if err := b.Stop(); err != nil {
		s.Fatal(err)
	}
	if err := b.Start(context.Background()); err != nil {
		s.Fatal(err)
	}
	s.awaitReplicas(s.w, s.cluster)
}

func (s *soak) blackHole() {
	s.network.blackHole()
	<-time.After(time.Duration(s.random.IntN(6000)) * time.Millisecond)
	s.network.heal()
}

func (s *soak) carryFor(c carrier) {
	s.network.carryBy(c)
	s.l.more(s.random.IntN(100))
	s.network.carryBy(nil)
}
