//go:build faults

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/servers"
)

// stop stops a server and returns how long that took.
func (f *faultRun) stop(pg *servers.PG, mode string, limit time.Duration) time.Duration {
	f.Helper()
	began := time.Now()
	if err := pg.Stop(mode); err != nil {
		f.Fatal(err)
	}
	took := time.Since(began)
	f.within("the "+mode+" stop of Postgres", took, limit)
	return took
}

func (f *faultRun) start(pg *servers.PG) {
	f.Helper()
	if err := pg.Start(context.Background()); err != nil {
		f.Fatal(err)
	}
}

// restartPostgres restarts each version under load, as an upgrade does.
func restartPostgres(f *faultRun) {
	longest := time.Duration(0)
	for _, version := range servers.PostgresVersions() {
		pg := ownPostgres(f.T, version, servers.PostgresOptions{})
		w := newWorld(f.T, pg.DSN("postgres"), nil)
		l := f.load(w)
		w.daemon("").awaitStreaming()
		for range 3 {
			l.more(100)
			longest = max(longest, f.stop(pg, "fast", 2*time.Second))
			f.start(pg)
			back := time.Now()
			w.reconnect()
			f.recovered(w, back, w.insertLSN())
		}
		duplicates := f.verify(l)
		f.note("%s: %d duplicates", version, duplicates)
		if duplicates != 0 {
			f.Errorf("Postgres %s: %d duplicates, want 0: the server waits until all that it has sent is confirmed", version, duplicates)
		}
	}
	f.note("longest stop %s", short(longest))
}

// crashPostgres crashes the server again and again.
func crashPostgres(f *faultRun) {
	for _, version := range []string{"14", "16", "18"} {
		pg := ownPostgres(f.T, version, servers.PostgresOptions{})
		w := newWorld(f.T, pg.DSN("postgres"), nil)
		l := f.load(w)
		w.daemon("").awaitStreaming()
		for round := range 10 {
			l.more(f.random.IntN(60))
			if round%2 == 0 {
				f.stop(pg, "immediate", 2*time.Second)
			} else if err := pg.Kill(); err != nil {
				f.Fatal(err)
			}
			f.start(pg)
			if round%5 == 4 { // else the next crash may come before it
				back := time.Now()
				w.reconnect()
				f.recovered(w, back, w.insertLSN())
			}
		}
		f.verify(l)
	}
}

// stopPostgresWithoutKafka stops each version while nothing is acknowledged.
func stopPostgresWithoutKafka(f *faultRun) {
	broker, longest := breakableKafka(f.T), time.Duration(0)
	for _, version := range servers.PostgresVersions() {
		pg := ownPostgres(f.T, version, servers.PostgresOptions{})
		w := newWorld(f.T, pg.DSN("postgres"), on(broker.Addr()))
		l := f.load(w)
		admin := freeAddr(f.T)
		w.daemon(admin).awaitStreaming()
		l.more(50)
		end := outage(f.T, broker)
		f.awaitStalled(admin)
		longest = max(longest, f.stop(pg, "fast", 6*time.Second)) // shutdown_grace is 5 s
		f.start(pg)
		end()
		back := time.Now()
		w.reconnect()
		f.recovered(w, back, w.insertLSN())
		f.verify(l)
	}
	f.note("longest stop %s", short(longest))
}

// statusOf returns the status of a process, as its admin address has it.
func (f *faultRun) statusOf(admin string) (s bridge.Status) {
	f.Helper()
	var all []bridge.Status
	if code, body := get(f.T, "http://"+admin+"/status"); code != http.StatusOK || json.Unmarshal([]byte(body), &all) != nil || len(all) != 1 {
		return s
	}
	return all[0]
}

// awaitStalled waits until events of a process are on their way to Kafka and nothing comes back.
func (f *faultRun) awaitStalled(admin string) {
	f.Helper()
	await(f.T, "a stall", func() error {
		if s := f.statusOf(admin); s.State != bridge.Streaming || s.Inflight == 0 || time.Since(s.LastProgress) < 300*time.Millisecond {
			return fmt.Errorf("state %q, %d in flight, last progress %s ago", s.State, s.Inflight, time.Since(s.LastProgress))
		}
		return nil
	})
}

// terminateWalsender ends the walsender every second for a minute.
func terminateWalsender(f *faultRun) {
	w := newWorld(f.T, newest(f.T), nil)
	l := f.load(w)
	c := w.daemon("")
	c.awaitStreaming()
	gap := f.longestGap(w)
	terminated := 0
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range 60 {
		<-tick.C
		if pid := w.walsender(); pid != "" {
			w.query("SELECT pg_terminate_backend($1::int)::text", pid)
			terminated++
		}
	}
	longest := gap()
	f.note("%d terminated, %d sessions, longest time without progress %s", terminated, len(c.logLines("streaming")), short(longest))
	// A session has to decode from restart_lsn on, which moves every 15 s, before it makes progress.
	f.within("the longest time without progress", longest, 30*time.Second)
	if terminated < 30 {
		f.Errorf("only %d walsenders were terminated in a minute: sessions came too seldom", terminated)
	}
	f.verify(l)
}

// longestGap watches confirmed_flush_lsn under load until it is asked for the longest time that it stood still.
func (f *faultRun) longestGap(w *world) (end func() time.Duration) {
	f.Helper()
	ctx, stop := context.WithCancel(context.Background())
	conn, err := pgx.Connect(ctx, w.dsn())
	if err != nil {
		f.Fatal(err)
	}
	result := make(chan time.Duration, 1)
	go func() {
		defer func() { _ = conn.Close(context.Background()) }()
		tick := time.NewTicker(25 * time.Millisecond)
		defer tick.Stop()
		last, since, longest := "", time.Now(), time.Duration(0)
		for ctx.Err() == nil {
			var now string
			if conn.QueryRow(ctx, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.prefix).Scan(&now) == nil && now != last {
				last, since = now, time.Now()
			}
			longest = max(longest, time.Since(since))
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
		result <- longest
	}()
	f.Cleanup(stop)
	return func() time.Duration { stop(); return <-result }
}

// idleTimeout has Postgres 18 throw a slot away that nobody reads.
func idleTimeout(f *faultRun) {
	pg := ownPostgres(f.T, "18", servers.PostgresOptions{Settings: map[string]string{"idle_replication_slot_timeout": "1s"}})
	w := newWorld(f.T, pg.DSN("postgres"), nil)
	w.insert("k", "1")
	await(f.T, "the slot to be invalidated", func() error {
		w.exec("CHECKPOINT")
		if reason := w.query("SELECT coalesce(invalidation_reason, '') FROM pg_replication_slots WHERE slot_name = $1", w.prefix); reason != "idle_timeout" {
			return fmt.Errorf("invalidation_reason is %q", reason)
		}
		return nil
	})
	r := w.mustStop(bridge.Lost, "idle_timeout")
	f.note("%s", r.err)
}

// filler writes WAL that has nothing to do with the outbox.
func (w *world) filler(bytes int64) {
	w.t.Helper()
	w.exec("CREATE TABLE IF NOT EXISTS filler (id int, filler text)")
	for start := w.insertLSN(); int64(w.insertLSN()-start) < bytes; {
		w.exec("INSERT INTO filler SELECT n, repeat('x', 1500) FROM generate_series(1, 40000) n")
		w.exec("TRUNCATE filler")
	}
}

// kept returns how much WAL the slot holds back.
func (w *world) kept() int64 {
	w.t.Helper()
	return int64(w.insertLSN() - w.lsn("SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.prefix))
}

// walPerRow is how much WAL rows 35 and 42 write.
const walPerRow = 2 << 30

// idleOutbox writes WAL elsewhere.
func idleOutbox(f *faultRun) {
	const limit = 100 << 20
	pg := ownPostgres(f.T, "18", servers.PostgresOptions{Settings: map[string]string{"max_wal_size": "512MB"}})
	w := newWorld(f.T, pg.DSN("postgres"), nil)
	c := w.daemon("")
	c.awaitStreaming()
	began, most := time.Now(), int64(0)
	for range walPerRow / limit {
		w.filler(limit)
		w.awaitCaughtUp()
		w.exec("CHECKPOINT")
		await(f.T, "the WAL to be freed", func() error {
			if n := w.kept(); n > limit {
				return fmt.Errorf("%d bytes of WAL are kept", n)
			}
			return nil
		})
		most = max(most, w.kept())
	}
	f.note("%d MiB in %s, at most %d MiB kept", walPerRow>>20, short(time.Since(began)), most>>20)
	f.note("stop %s", short(f.stop(pg, "fast", 2*time.Second)))
	if n := len(c.logLines("streaming")); n != 1 {
		f.Errorf("%d sessions, want 1", n)
	}
}

// coldStart begins far behind, with hardly any event in between.
func coldStart(f *faultRun) {
	const timeout = 5 * time.Second
	pg := ownPostgres(f.T, "18", servers.PostgresOptions{Settings: map[string]string{"max_wal_size": "4GB"}})
	w := newWorld(f.T, pg.DSN("postgres"), func(cfg *config.Config) { senderTimeout(cfg, timeout) })
	want := w.order("k", "0")
	for i := range 4 {
		w.filler(walPerRow / 4)
		want = concat(want, w.order("k", fmt.Sprint(i+1)))
	}
	behind := int64(w.insertLSN() - w.confirmed())
	began := time.Now()
	c := w.daemon("")
	w.awaitCaughtUp()
	took := time.Since(began)
	f.note("%d MiB in %s: %.0f MB/s", behind>>20, short(took), float64(behind)/1e6/took.Seconds())
	if n := len(c.logLines("streaming")); n != 1 {
		f.Errorf("%d sessions, want 1: a status update was missed", n)
	}
	f.within("to catch up", took, 60*time.Second)
	f.verifyList(w, "order", want)
}

// openTransaction holds a transaction open for two minutes.
func openTransaction(f *faultRun) {
	w := newWorld(f.T, newest(f.T), nil)
	w.exec("CREATE TABLE filler (id int, filler text)")
	l := f.load(w)
	admin := freeAddr(f.T)
	w.daemon(admin).awaitStreaming()
	holder, err := pgx.Connect(f.Context(), w.dsn())
	if err != nil {
		f.Fatal(err)
	}
	defer func() { _ = holder.Close(context.Background()) }()
	if _, err := holder.Exec(f.Context(), "BEGIN; INSERT INTO filler VALUES (0)"); err != nil {
		f.Fatal(err)
	}
	gap := f.longestGap(w)
	until := time.After(2 * time.Minute)
	for open := true; open; {
		select {
		case <-until:
			open = false
		default:
			l.more(500)
		}
	}
	longest := gap()
	w.exec("CHECKPOINT")
	var s bridge.Status
	await(f.T, "the two lags to part", func() error {
		if s = f.statusOf(admin); s.RestartLag < 20<<20 || s.ConfirmedLag > s.RestartLag/10 {
			return fmt.Errorf("restart lag %d, confirmed lag %d", s.RestartLag, s.ConfirmedLag)
		}
		return nil
	})
	f.note("longest time without progress %s, restart lag %d MiB, confirmed lag %d KiB", short(longest), s.RestartLag>>20, s.ConfirmedLag>>10)
	f.within("the longest time without progress", longest, 5*time.Second)
	if _, err := holder.Exec(f.Context(), "COMMIT"); err != nil {
		f.Fatal(err)
	}
	l.stop()
	await(f.T, "the WAL to be freed", func() error {
		w.exec("CHECKPOINT") // notes the running transactions
		if s = f.statusOf(admin); s.RestartLag > 1<<20 {
			return fmt.Errorf("restart lag %d", s.RestartLag)
		}
		return nil
	})
	f.verify(l)
}
