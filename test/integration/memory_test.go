package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/walferry/walferry/internal/servers"
)

// fleetRSS is what a process of 20 databases may take while all of them drain a backlog.
const fleetRSS = 100_000_000

// What one process takes for 20 databases: idle, and while all of them drain.
func TestTwentyDatabasesInOneProcess(t *testing.T) {
	const databases, rows = 20, 10_000
	pg := ownPostgres(t, "18", servers.PostgresOptions{Settings: map[string]string{
		"max_replication_slots": "40", "max_wal_senders": "40", "max_connections": "200",
	}})
	var names []string
	for i := range databases {
		names = append(names, fmt.Sprint("db", i))
	}
	f := newFleet(t, pg.DSN("postgres"), names, nil)
	for i, delivery := range []string{"at_least_once", "exactly_once"} {
		f[0].cfg.Delivery = delivery
		addr := freeAddr(t)
		c := f.daemon(addr)
		awaitAnswer(t, "http://"+addr+"/readyz", 200)
		idle := highWater(c.cmd.Process.Pid)
		c.terminate()

		for _, w := range f { // half of it in transactions of one row, of which more has to be remembered
			w.exec(fmt.Sprintf("DO $$ BEGIN FOR i IN 1..%d LOOP %s(i, i) n; COMMIT; END LOOP; END $$", rows/2, insertPadded))
			w.exec(fmt.Sprintf("%s(1, %d) n", insertPadded, rows/2))
		}
		began := time.Now()
		c = f.daemon(addr)
		for _, w := range f {
			w.awaitCaughtUp()
		}
		took, peak := time.Since(began), highWater(c.cmd.Process.Pid)
		c.terminate()
		t.Logf("%s: peak RSS %.1f MB idle, %.1f MB while %d databases drained %d events each, in %s",
			delivery, float64(idle)/1e6, float64(peak)/1e6, databases, rows, took.Round(time.Millisecond))
		if idle == 0 || peak > fleetRSS {
			t.Errorf("%s: peak RSS %d bytes, idle %d, want at most %d", delivery, peak, idle, fleetRSS)
		}
		for _, w := range f {
			if got, want := w.delivered("order"), int64((i+1)*rows); got < want {
				t.Errorf("%s: %d events of %s are delivered, want %d", delivery, got, w.cfg.Databases[0].Name, want)
			}
		}
	}
}

// insertPadded inserts events of some 250 bytes, up to the arguments of generate_series.
const insertPadded = `INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
	SELECT 'order', n % 100, 'T', jsonb_build_object('n', n, 'pad', repeat(md5(n::text), 5)) FROM generate_series`
