//go:build faults

package integration

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/servers"
)

// killBridge kills the process 50 times, half of them while it starts.
func killBridge(f *faultRun) {
	const kills = 50
	// Linger, so that a killed process takes events with it.
	w := newWorld(f.T, newest(f.T), func(cfg *config.Config) { cfg.Kafka.Linger = 20 * time.Millisecond })
	l := f.load(w)
	began, fault, target := time.Now(), time.Now(), w.insertLSN()
	for round := range kills {
		c := w.daemon("")
		if round%2 == 0 {
			f.recovered(w, fault, target)
			l.more(f.random.IntN(150))
		} else {
			l.more(f.random.IntN(30))
		}
		c.kill()
		fault, target = time.Now(), w.insertLSN()
		w.mustBeCheckpointed()
	}
	w.daemon("")
	f.recovered(w, fault, target)
	took := time.Since(began)
	duplicates := f.verify(l)
	window := time.Duration(float64(duplicates) / kills / float64(f.events) * float64(took))
	f.note("kills=%d, duplicates of %s of traffic each", kills, window.Round(time.Millisecond))
	f.within("the traffic that comes again after a kill", window, time.Second)
	if duplicates == 0 && !f.exactlyOnce() {
		f.Error("no duplicates: no kill has hit anything")
	}
}

// terminateBridge drains the process under load.
func terminateBridge(f *faultRun) {
	w := newWorld(f.T, newest(f.T), nil)
	l := f.load(w)
	longest := time.Duration(0)
	for range 10 {
		c := w.daemon("")
		c.awaitStreaming()
		l.more(100)
		began := time.Now()
		c.terminate()
		longest = max(longest, time.Since(began))
	}
	w.daemon("")
	f.note("10 drains, the longest took %s", short(longest))
	f.within("a drain", longest, 10*time.Second)
	if n := f.verify(l); n != 0 {
		f.Errorf("%d duplicates, want 0", n)
	}
}

// adjacentCommits commits pairs of transactions with nothing between their commit records, so that the second's commit
// LSN is the first's end LSN, and kills the process when the first is confirmed and the second is not: who confirms one
// byte more loses the second.
func adjacentCommits(f *faultRun) {
	w := newWorld(f.T, newest(f.T), func(cfg *config.Config) {
		cfg.Kafka.MaxRecord, cfg.Kafka.MaxBuffered = 1<<10, 4<<10 // the second takes its time
		cfg.Checkpoint.Interval = 100 * time.Millisecond          // and the first is confirmed meanwhile
	})
	const pairs, rows = 5, 20_000
	second, err := pgx.Connect(f.Context(), w.dsn())
	if err != nil {
		f.Fatal(err)
	}
	defer func() { _ = second.Close(context.Background()) }()
	var want []event
	adjacent := 0
	for pair := range pairs {
		f.onSecond(second, "BEGIN")
		f.onSecond(second, `INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
			SELECT 'second', 'k', 'T', to_jsonb(i) FROM generate_series($1::int, $2::int) i`, pair*rows+1, (pair+1)*rows)
		c := w.daemon("")
		w.awaitCaughtUp()
		w.exec("BEGIN")
		want = concat(want, w.order("k", strconv.Itoa(pair)))
		w.exec("COMMIT")
		f.onSecond(second, "COMMIT")
		first := w.insertLSN()
		before := w.confirmed()
		await(f.T, "the first of two to be confirmed", func() error {
			if w.confirmed() == before {
				return errors.New("nothing is")
			}
			return nil
		})
		c.kill()
		if confirmed := w.confirmed(); confirmed < first {
			adjacent++
		}
	}
	w.daemon("")
	w.awaitCaughtUp()
	f.verifyList(w, "order", want)
	missing := map[string]bool{}
	for i := 1; i <= pairs*rows; i++ {
		missing[strconv.Itoa(i)] = true
	}
	for _, e := range w.published("second") {
		f.events++
		if !missing[e.value] {
			f.duplicates++
		}
		delete(missing, e.value)
	}
	if len(missing) > 0 {
		f.Errorf("%d events of second transactions are lost", len(missing))
	}
	f.note("%d of %d kills between two commits", adjacent, pairs)
	if adjacent == 0 {
		f.Error("no kill came between two commits")
	}
}

func (f *faultRun) onSecond(conn *pgx.Conn, sql string, args ...any) {
	f.Helper()
	if _, err := conn.Exec(f.Context(), sql, args...); err != nil {
		f.Fatalf("%s: %v", sql, err)
	}
}

// groupCommits kills the process after acknowledgements while commits come in groups.
func groupCommits(f *faultRun) {
	adjacentCommits(f)
	pg := ownPostgres(f.T, "18", servers.PostgresOptions{Fsync: true, Settings: map[string]string{"commit_delay": "5000", "commit_siblings": "1"}})
	w := newWorld(f.T, pg.DSN("postgres"), nil)
	l := f.load(w)
	for range 15 {
		c := w.daemon("")
		before := w.confirmed()
		await(f.T, "an acknowledgement", func() error {
			if w.confirmed() == before {
				return errors.New("nothing is confirmed")
			}
			return nil
		})
		c.kill()
	}
	w.daemon("")
	f.verify(l)
}

// compressedPayloads has large payloads that are small in the WAL, confirmed before Kafka goes away with small
// transactions right behind them: who adds the length of a message to its LSN confirms those too.
func compressedPayloads(f *faultRun) {
	broker := breakableKafka(f.T)
	w := newWorld(f.T, newest(f.T), on(broker.Addr()))
	var want []event
	for round := range 5 {
		admin := freeAddr(f.T)
		c := w.daemon(admin)
		w.awaitCaughtUp() // with all of the round before
		want = concat(want, w.order("k", `"`+strings.Repeat("x", 200_000)+`"`))
		w.awaitCaughtUp()
		end := outage(f.T, broker)
		for i := range 20 {
			want = concat(want, w.order("k", strconv.Itoa(100*round+i)))
		}
		awaitStatus(f.T, admin, `"in_flight_events":20`)
		c.kill()
		end()
	}
	w.daemon("")
	w.awaitCaughtUp()
	f.verifyList(w, "order", want)
}

// verifyList fails unless the first copies in a topic of one partition are the wanted events in their order.
func (f *faultRun) verifyList(w *world, topic string, want []event) {
	f.Helper()
	seen := map[string]bool{}
	var first []event
	for _, e := range w.published(topic) {
		f.events++
		if seen[e.id] {
			f.duplicates++
			continue
		}
		seen[e.id] = true
		first = append(first, e)
	}
	mustEqual(f.T, topic, first, want)
}
