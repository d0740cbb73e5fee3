//go:build faults

package integration

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/servers"
)

// together runs tests of the ordinary suite as parts of a row.
func together(tests map[string]func(*testing.T)) func(*faultRun) {
	return func(f *faultRun) {
		for name, test := range tests {
			f.Run(name, test)
		}
	}
}

// largeTransactions kills the process in the middle of large transactions and many small ones, and measures its memory.
func largeTransactions(f *faultRun) {
	for _, c := range []struct {
		name  string
		rows  int
		one   bool // transaction
		write func(w *world, rows int)
	}{
		{"1 GB in one transaction", 1_000_000, true, func(w *world, rows int) {
			w.exec(`INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
				SELECT 'bulk', 'k', 'T', jsonb_build_object('n', i, 'pad', repeat(md5(i::text), 31)) FROM generate_series(1, $1::int) i`, rows)
		}},
		{"transactions of 1 row", 100_000, false, func(w *world, rows int) {
			w.exec(fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP
				INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('bulk', 'k', 'T', jsonb_build_object('n', i, 'pad', ''));
				COMMIT; END LOOP; END $$`, rows))
		}},
		{"rows of one COPY", 500_000, true, func(w *world, rows int) { w.copyBulk(rows) }},
	} {
		w := newWorld(f.T, newest(f.T), nil)
		c.write(w, c.rows)
		killed := w.daemon("")
		awaitWithin(f.T, 4*patience, "a third of the events", func() error {
			if n := w.delivered("bulk"); n < int64(c.rows/3) {
				return fmt.Errorf("%d are there", n)
			}
			return nil
		})
		peak := highWater(killed.cmd.Process.Pid)
		killed.kill()
		if c.one {
			w.mustBeInside()
		}
		began := time.Now()
		last := walferry(f.T, "run", "--config", w.configFile(""), "--until-lsn", w.walEnd())
		awaitWithin(f.T, 4*patience, "the rest", func() error {
			peak = max(peak, highWater(last.cmd.Process.Pid))
			select {
			case <-last.done:
				return nil
			default:
				return errors.New("it runs")
			}
		})
		last.exit(0)
		took := time.Since(began)
		duplicates := f.verifyBulk(w, c.rows)
		f.note("%s: %d rows, %d again after kill -9, %s, VmHWM %d MiB;", c.name, c.rows, duplicates, short(took), peak>>20)
		if peak > maxRSS {
			f.Errorf("%s: peak memory %d bytes, want at most %d", c.name, peak, maxRSS)
		}
		w.exec("TRUNCATE outbox")
	}
}

// mustBeInside fails unless the checkpoint lies inside of a transaction.
func (w *world) mustBeInside() {
	w.t.Helper()
	c, err := bridge.ReadCheckpoint(w.t.Context(), w.options("", zerolog.Disabled))
	if err != nil {
		w.t.Fatal(err)
	}
	if c == nil || c.OpenIndex == 0 {
		w.t.Errorf("the checkpoint is %+v, want one inside of the transaction", c)
	}
}

// copyBulk writes events of one key by COPY.
func (w *world) copyBulk(rows int) {
	w.t.Helper()
	from, to := io.Pipe()
	go func() {
		for i := 1; i <= rows; i++ {
			if _, err := fmt.Fprintf(to, "bulk\tk\tT\t{\"n\": %d, \"pad\": \"\"}\n", i); err != nil {
				return
			}
		}
		_ = to.Close()
	}()
	if _, err := w.conn.PgConn().CopyFrom(w.t.Context(), from, "COPY outbox (aggregatetype, aggregateid, type, payload) FROM STDIN"); err != nil {
		w.t.Fatal(err)
	}
}

// verifyBulk makes sure that a topic of one partition has events 1 to n, all, in order, and as often as the stream went
// back. It returns the number of duplicates.
func (f *faultRun) verifyBulk(w *world, rows int) int {
	f.Helper()
	copies, previous, highest, wrong := 0, 0, 0, 0
	w.eachRecord(func(r *kgo.Record) {
		text := string(r.Value)
		number, _, _ := strings.Cut(text[strings.Index(text, `"n": `)+5:], ",")
		n, err := strconv.Atoi(strings.TrimSuffix(number, "}"))
		if err != nil || n > previous+1 || n > rows {
			if wrong++; wrong <= 5 {
				f.Errorf("record at %d: %d came after %d (%v): %.60s", r.Offset, n, previous, err, text)
			}
		}
		copies, previous, highest = copies+1, n, max(highest, n)
	})
	if highest != rows || previous != rows {
		f.Errorf("the topic ends with event %d, the highest is %d of %d", previous, highest, rows)
	}
	f.events += highest
	f.duplicates += copies - highest
	return copies - highest
}

// rollbacks has more events that are rolled back, in every way, than are committed.
func rollbacks(f *faultRun) {
	for _, version := range []string{"14", "18"} {
		pg := ownPostgres(f.T, version, servers.PostgresOptions{})
		w := newWorld(f.T, pg.DSN("postgres"), nil)
		w.exec(fmt.Sprintf("ALTER DATABASE %s SET logical_decoding_work_mem = '64kB'", w.prefix))
		r := w.run("")
		r.awaitState(bridge.Streaming)
		const row = `INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('order', 'k', 'T', '"never"');`
		const rows = `INSERT INTO outbox (aggregatetype, aggregateid, type, payload) SELECT 'order', 'k', 'T', to_jsonb(repeat('never', 100)) FROM generate_series(1, 100000);`
		w.exec("BEGIN")
		want := w.order("k", "1")
		for range 10 {
			w.exec(strings.Repeat("SAVEPOINT s;"+row+"ROLLBACK TO s;RELEASE s;", 1000))
		}
		want = concat(want, w.order("k", "2"))
		w.exec("SAVEPOINT big;" + rows + "ROLLBACK TO big")
		want = concat(want, w.order("k", "3"))
		w.exec("COMMIT")
		w.exec("BEGIN;" + rows + "ROLLBACK")
		want = concat(want, w.order("k", "4"))
		w.awaitCaughtUp()
		r.drain()
		w.mustPublish("order", want)
		f.events += len(want)
	}
	f.Run("rolled back in every way", TestOnlyWhatIsCommittedArrives)
	f.Run("two phases", TestPreparedTransactions)
}

// messages has logical messages of every kind, with restarts in between.
func messages(f *faultRun) {
	onEveryPostgres(f.T, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		var want []event
		emit := func(transactional bool, prefix, payload string) {
			id := fmt.Sprint("m-", len(want))
			w.exec("SELECT pg_logical_emit_message($1, $2, $3::text)", transactional, prefix,
				fmt.Sprintf(`{"id": %q, "aggregatetype": "order", "aggregateid": "k", "payload": %q}`, id, payload))
			if transactional && prefix == "outbox" {
				want = append(want, event{id: id, key: "k", value: payload})
			}
		}
		for round := range 3 {
			addr := freeAddr(t)
			c := walferry(t, "run", "--config", w.configFile(addr))
			awaitStatus(t, addr, `"state":"streaming"`)
			emit(true, "outbox", fmt.Sprint("plain ", round))
			emit(false, "outbox", "not transactional")
			emit(true, "unknown", "of somebody else")
			emit(false, "unknown", "of somebody else")
			emit(true, "outbox", noise(1_000_000, uint64(round)))
			w.exec("BEGIN")
			kept := len(want)
			emit(true, "outbox", "aborted")
			emit(false, "outbox", "sent although aborted")
			w.exec("ROLLBACK")
			want = want[:kept]
			w.exec("BEGIN")
			emit(true, "outbox", "one of two")
			want = concat(want, w.order("k", "2"))
			w.exec("COMMIT")
			w.awaitCaughtUp()
			awaitLines(t, "http://"+addr+"/metrics", []string{`walferry_messages_ignored_total{database="shop"} 2`})
			c.terminate()
		}
		w.mustPublish("order", want) // and none twice
		f.events += len(want)
	})
}

// values has every kind of value.
func values(f *faultRun) {
	together(map[string]func(*testing.T){
		"bytes":           TestValuesKeepTheirBytes,
		"bytea":           TestByteaPayloads,
		"messages":        TestValuesOfMessages,
		"LATIN1":          TestLatin1Database,
		"SQL_ASCII":       TestServersThatCannotServe,
		"role's settings": TestSettingsOfTheRoleDoNotChangeBytes,
		"a million bytes": TestPayloadsOfAMillionBytes,
		"largest record":  TestTheLargestRecord,
	})(f)
	f.Run("extremes", func(t *testing.T) { onEveryPostgres(t, extremeValues) })
	f.Run("200 MB", hugeValue)
}

// extremeValues has the ends of Postgres' types.
func extremeValues(t *testing.T, admin string) {
	types := []struct{ name, values string }{
		{"timestamptz", "infinity|-infinity|294276-12-31 23:59:59.999999+00|4713-01-01 00:00:00+00 BC|2026-03-29 02:30:00 Europe/Berlin"},
		{"timestamp", "infinity|294276-12-31 23:59:59.999999|4713-01-01 00:00:00 BC"},
		{"date", "infinity|5874897-12-31|4713-01-01 BC"},
		{"numeric", "NaN|-0.0000000000000000000000000001|1e1000"},
		{"float8", "NaN|-Infinity|5e-324|1.7976931348623157e308"},
		{"interval", "178000000 years|-178000000 years|1 mon -1 day"},
		{"json", `{"a":"\u0000"}|  {"b" : 1e400} `},
	}
	w := bareWorld(t, admin, "", outboxes(len(types)))
	for i, typ := range types {
		w.exec(fmt.Sprintf("CREATE TABLE outbox_%d (id text, aggregatetype text, aggregateid text, type text, payload %s)", i, typ.name))
	}
	w.setup()
	w.exec("SET DateStyle = 'ISO, MDY'; SET TimeZone = 'UTC'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1")
	var want []event
	for i, typ := range types {
		for _, value := range strings.Split(typ.values, "|") {
			want = concat(want, w.emit(fmt.Sprintf("INSERT INTO outbox_%d VALUES ($1, 'order', 'k', 'T', $2)", i)+returning, typ.name, value))
		}
	}
	w.exec(fmt.Sprintf("ALTER DATABASE %s SET TimeZone = 'Asia/Kolkata'; ALTER DATABASE %[1]s SET DateStyle = 'German'", w.prefix))
	w.drainAll()
	w.mustPublish("order", want)
}

// hugeValue is far larger than any record may be: the bridge stops before it, and says so.
func hugeValue(t *testing.T) {
	w := bareWorld(t, newest(t), "", func(*config.Config) {})
	w.exec("CREATE TABLE outbox (id text, aggregatetype text, aggregateid text, type text, payload text)")
	w.setup()
	want := w.emit("INSERT INTO outbox VALUES ('1', 'order', 'k', 'T', 'small')" + returning)
	before := w.insertLSN()
	w.exec("INSERT INTO outbox VALUES ('2', 'order', 'k', 'T', repeat('x', 200000000))")
	c := walferry(t, "run", "--config", w.configFile(""))
	peak := c.peakRSS()
	_, stderr := c.exit(65)
	t.Logf("peak memory %d MiB", peak>>20)
	w.mustNotConfirm(before, stderr)
	w.mustPublish("order", want)
}
