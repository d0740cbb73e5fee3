package integration

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/servers"
)

func TestPostgresRestartsUnderLoad(t *testing.T) {
	const grace = 2 * time.Second
	broker := breakableKafka(t)
	for _, version := range servers.PostgresVersions() {
		t.Run(version, func(t *testing.T) {
			pg := ownPostgres(t, version, servers.PostgresOptions{})
			w := newWorld(t, pg.DSN("postgres"), func(cfg *config.Config) {
				cfg.Kafka.Brokers = []string{broker.Addr()}
				cfg.Databases[0].ShutdownGrace = grace
			})
			l := w.startLoad(newSeed(t))
			r := w.run("")
			restart := func(mode string, limit time.Duration) {
				t.Helper()
				began := time.Now()
				if err := pg.Stop(mode); err != nil {
					t.Fatal(err)
				}
				took := time.Since(began)
				t.Logf("%s stop took %s", mode, took.Round(time.Millisecond))
				if took > limit {
					t.Errorf("%s stop took %s, want at most %s", mode, took, limit)
				}
				if err := pg.Start(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			for _, mode := range []string{"fast", "immediate"} {
				r.awaitState(bridge.Streaming)
				l.more(100)
				restart(mode, 2*time.Second)
			}
			r.awaitState(bridge.Streaming)
			l.more(20)
			end := outage(t, broker)
			r.awaitInflight()
			restart("fast", grace+2*time.Second)
			end()
			l.audit()
		})
	}
}

// awaitInflight waits until events are on their way to Kafka.
func (r *running) awaitInflight() {
	r.t.Helper()
	await(r.t, "events in flight", func() error {
		if s := r.bridge.Status(); s.State != bridge.Streaming || s.Inflight == 0 {
			return fmt.Errorf("state %s, %d in flight", s.State, s.Inflight)
		}
		return nil
	})
}

// walsender returns the pid of the backend that serves the world's slot.
func (w *world) walsender() string {
	w.t.Helper()
	return w.query("SELECT coalesce(max(active_pid)::text, '') FROM pg_replication_slots WHERE slot_name = $1", w.prefix)
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
		start := w.confirmed()
		pid = w.awaitWalsender(pid)
		if round%2 == 0 { // else it may be too early for any progress
			await(t, "progress", func() error {
				if w.confirmed() == start {
					return fmt.Errorf("%s is still confirmed", start)
				}
				return nil
			})
		}
		l.more(random.IntN(20))
		w.query("SELECT pg_terminate_backend($1::int)::text", pid)
	}
	t.Logf("%d sessions in %s", rounds, time.Since(began).Round(time.Millisecond))
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
		pid := w.awaitWalsender("")
		w.insert("k", fmt.Sprint(round))
		w.awaitCaughtUp()
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
	w.awaitWalsender("")
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
	if s := r.bridge.Status(); s.Sessions != rounds+1 {
		t.Errorf("%d sessions, want %d", s.Sessions, rounds+1)
	}
	r.drain()
	settled("the state before the bridge", goroutines, files)
	t.Logf("goroutines: %d before, %d in the first session, %d after %d sessions; files: %d, %d, %d",
		goroutines, running, runtime.NumGoroutine(), rounds+1, files, open, descriptors())
}
