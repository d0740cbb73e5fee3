package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/servers"
)

// stopPostgres stops the server and makes sure that this takes no longer than limit.
func stopPostgres(t *testing.T, pg *servers.PG, version, mode string, limit time.Duration) {
	t.Helper()
	began := time.Now()
	err := pg.Stop(mode)
	took := time.Since(began)
	t.Logf("Postgres %s: %s stop took %s", version, mode, took.Round(time.Millisecond))
	if err != nil || took > limit {
		t.Errorf("Postgres %s: %s stop took %s, want at most %s: %v", version, mode, took, limit, err)
	}
}

func TestPostgresRestartsUnderLoad(t *testing.T) {
	for _, version := range servers.PostgresVersions() {
		t.Run(version, func(t *testing.T) {
			pg := ownPostgres(t, version, servers.PostgresOptions{})
			w := newWorld(t, pg.DSN("postgres"), nil)
			l := w.startLoad(newSeed(t))
			r := w.run("")
			for _, mode := range []string{"fast", "immediate"} {
				r.awaitState(bridge.Streaming)
				l.more(100)
				stopPostgres(t, pg, version, mode, 4*time.Second) // shutdown_grace, 5 s, is not waited out
				if err := pg.Start(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			l.audit()
		})
	}
}

func TestPostgresStopsWithoutKafka(t *testing.T) {
	const grace = 2 * time.Second
	broker := breakableKafka(t)
	type pair struct {
		version string
		pg      *servers.PG
		w       *world
		r       *running
	}
	var pairs []pair
	for _, version := range servers.PostgresVersions() {
		pg := ownPostgres(t, version, servers.PostgresOptions{})
		w := newWorld(t, pg.DSN("postgres"), func(cfg *config.Config) {
			cfg.Kafka.Brokers = []string{broker.Addr()}
			cfg.Databases[0].ShutdownGrace = grace
		})
		w.insert("k", "0")
		pairs = append(pairs, pair{version, pg, w, w.run("")})
		w.awaitCaughtUp()
	}
	end := outage(t, broker)
	var stops sync.WaitGroup
	for _, p := range pairs {
		for i := range 9 {
			p.w.insert("k", fmt.Sprint(i+1))
		}
		p.r.awaitStall()
		stops.Go(func() { stopPostgres(t, p.pg, p.version, "fast", grace+2*time.Second) })
	}
	stops.Wait()
	for _, p := range pairs {
		if err := p.pg.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	end()
	for _, p := range pairs {
		p.w.reconnect()
		p.w.awaitCaughtUp()
		var got []string
		for _, r := range p.w.records() {
			got = append(got, string(r.Value))
		}
		if p.version < "17" {
			// These keep confirmed_flush_lsn in memory: a slot comes back from any restart with what its
			// last change of other kind wrote to disk.
			got = slices.Compact(got)
		}
		if want := "[0 1 2 3 4 5 6 7 8 9]"; fmt.Sprint(got) != want {
			t.Errorf("Postgres %s: records %v, want %s", p.version, got, want)
		}
	}
}

// awaitStall waits until events are on their way to Kafka and nothing comes back.
func (r *running) awaitStall() {
	r.t.Helper()
	await(r.t, "a stall", func() error {
		if s := r.bridge.Status(); s.State != bridge.Streaming || s.Inflight == 0 || time.Since(s.LastProgress) < 300*time.Millisecond {
			return fmt.Errorf("state %s, %d in flight, last progress %s ago", s.State, s.Inflight, time.Since(s.LastProgress))
		}
		return nil
	})
}

// walsender returns the pid of the backend that serves the world's slot.
func (w *world) walsender() string {
	w.t.Helper()
	return w.query("SELECT coalesce(max(active_pid)::text, '') FROM pg_replication_slots WHERE slot_name = $1", w.prefix)
}

// awaitNoWalsender waits until the walsender has ended, and so has taken the last status update.
func (w *world) awaitNoWalsender() {
	w.t.Helper()
	await(w.t, "the walsender to end", func() error {
		if pid := w.walsender(); pid != "" {
			return errors.New("it lives")
		}
		return nil
	})
}

// awaitWalsender waits for a walsender that is not the one before, and returns its pid.
func (w *world) awaitWalsender(before string) (pid string) {
	w.t.Helper()
	await(w.t, "a new walsender", func() error {
		if pid = w.walsender(); pid == "" || pid == before {
			return fmt.Errorf("the slot's is %q", pid)
		}
		return nil
	})
	return pid
}

func TestWalsenderIsTerminatedAgainAndAgain(t *testing.T) {
	const rounds = 20
	w := newWorld(t, newest(t), nil)
	random := newSeed(t)
	l := w.startLoad(random)
	r := w.run("")
	began := time.Now()
	for pid, round := "", 0; round < rounds; round++ {
		pid = w.awaitWalsender(pid)
		if round%2 == 0 { // else it may be too early for any progress
			w.awaitCaughtUp()
		}
		l.more(random.IntN(20))
		w.query("SELECT pg_terminate_backend($1::int)::text", pid)
	}
	took := time.Since(began)
	t.Logf("%d sessions in %s", rounds, took.Round(time.Millisecond))
	if took > 90*time.Second { // pauses of 5 s would take longer
		t.Errorf("%d sessions took %s: the pauses between them grew although every second one made progress", rounds, took)
	}
	l.audit()
	if s := r.bridge.Status(); s.Sessions <= rounds/2 {
		t.Errorf("%d sessions of %d were streaming", s.Sessions, rounds)
	}
}

func TestSentinelIsTerminated(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	l := w.startLoad(newSeed(t))
	r := w.run("")
	pid := w.awaitWalsender("")
	sentinel := ""
	for range 3 {
		before := sentinel
		await(t, "a sentinel", func() error {
			sentinel = w.query(`SELECT coalesce(max(pid)::text, '') FROM pg_stat_activity
				WHERE datname = $1 AND application_name = 'walferry'`, w.prefix)
			if sentinel == "" || sentinel == before {
				return fmt.Errorf("it is %q", sentinel)
			}
			return nil
		})
		w.query("SELECT pg_terminate_backend($1::int)::text", sentinel)
		l.more(20)
	}
	if n := l.audit(); n != 0 {
		t.Errorf("%d duplicates, want 0", n)
	}
	if s := r.bridge.Status(); s.Sessions != 1 || w.walsender() != pid {
		t.Errorf("%d sessions, walsender %s instead of %s: %s", s.Sessions, w.walsender(), pid, s.LastError)
	}
}

func TestStandbyTakesOverFromAKilledLeader(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	l := w.startLoad(newSeed(t))
	leader := w.daemon("")
	leader.awaitStreaming()
	r := w.run("")
	r.awaitState(bridge.OnStandby)
	l.more(50)
	s := r.bridge.Status()
	if s.Role != "standby" || !s.Ready || !strings.Contains(s.Holder, "pid "+w.walsender()) || !strings.Contains(s.Holder, "walferry/"+w.prefix) {
		t.Errorf("role %q, ready %t, holder %q, want a ready standby that names walsender %s", s.Role, s.Ready, s.Holder, w.walsender())
	}
	leader.kill()
	killed := time.Now()
	r.awaitState(bridge.Streaming)
	took := time.Since(killed)
	t.Logf("took over after %s", took.Round(time.Millisecond))
	if took > 3*time.Second {
		t.Errorf("took over after %s, want at most 3 s", took)
	}
	if s := r.bridge.Status(); s.Role != "leader" || s.Holder != "" || s.Sessions != 1 {
		t.Errorf("role %q, holder %q, %d sessions", s.Role, s.Holder, s.Sessions)
	}
	l.audit()
}

func TestRestartsOfSessionsLeaveNothingBehind(t *testing.T) {
	const rounds = 30
	w := newWorld(t, newest(t), nil)
	w.insert("k", "0")
	w.drainAll()
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	goroutines, files := runtime.NumGoroutine(), descriptors()
	r := w.run("")
	running, open := 0, 0
	for round := range rounds {
		w.insert("k", fmt.Sprint(round))
		w.awaitCaughtUp()
		pid := w.awaitWalsender("")
		if round == 0 {
			running, open = runtime.NumGoroutine(), descriptors()
		}
		w.query("SELECT pg_terminate_backend($1::int)::text", pid)
		await(t, "the session to end", func() error {
			if w.walsender() == pid {
				return fmt.Errorf("walsender %s lives", pid)
			}
			return nil
		})
	}
	w.awaitCaughtUp()
	settled := func(what string, maxGoroutines, maxFiles int) {
		t.Helper()
		await(t, what, func() error {
			if g, f := runtime.NumGoroutine(), descriptors(); g > maxGoroutines || f > maxFiles {
				return fmt.Errorf("%d goroutines and %d files, want at most %d and %d", g, f, maxGoroutines, maxFiles)
			}
			return nil
		})
	}
	settled("a session like the first", running+rounds/3, open+rounds/3) // a leak is one of each session
	if s := r.bridge.Status(); s.Sessions <= rounds {
		t.Errorf("%d sessions, want %d or more", s.Sessions, rounds+1)
	}
	r.drain()
	settled("the state before the bridge", goroutines, files)
	t.Logf("goroutines: %d before, %d in the first session, %d after %d sessions; files: %d, %d, %d",
		goroutines, running, runtime.NumGoroutine(), rounds+1, files, open, descriptors())
}
