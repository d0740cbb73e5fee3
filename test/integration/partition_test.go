package integration

import (
	"testing"

	"github.com/walferry/walferry/bridge"
)

// partitionedWorld has an outbox that is partitioned by n, with partitions for n < 10 and n < 20.
func partitionedWorld(t *testing.T, admin string) *world {
	t.Helper()
	w := bareWorld(t, admin, "", nil)
	w.exec(`CREATE TABLE outbox (id uuid NOT NULL DEFAULT gen_random_uuid(), n int NOT NULL,
		aggregatetype text NOT NULL, aggregateid text NOT NULL, type text, payload jsonb) PARTITION BY RANGE (n)`)
	w.exec("CREATE TABLE outbox_0 PARTITION OF outbox FOR VALUES FROM (0) TO (10)")
	w.exec("CREATE TABLE outbox_1 PARTITION OF outbox FOR VALUES FROM (10) TO (20)")
	w.setup()
	return w
}

// numbered inserts rows with the numbers from first to last, in that order.
func (w *world) numbered(table string, first, last int) []event {
	w.t.Helper()
	return w.emit(`INSERT INTO `+table+` (n, aggregatetype, aggregateid, type, payload)
		SELECT n, 'order', 'key ' || n, 'T', jsonb_build_object('n', n) FROM generate_series($1::int, $2::int) n`+returning, first, last)
}

func TestPartitionsComeAndGoWhileRunning(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := partitionedWorld(t, admin)
		r := w.run("")
		r.awaitState(bridge.Streaming)
		want := w.numbered("outbox", 0, 19)
		// A partition of another shape: attached tables keep their own order of columns.
		w.exec(`CREATE TABLE attached (gone int, payload jsonb, type text, aggregateid text NOT NULL,
			aggregatetype text NOT NULL, n int NOT NULL, id uuid NOT NULL DEFAULT gen_random_uuid())`)
		w.exec("ALTER TABLE attached DROP COLUMN gone")
		w.exec("ALTER TABLE outbox ATTACH PARTITION attached FOR VALUES FROM (20) TO (30)")
		want = concat(want, w.numbered("outbox", 21, 29), w.numbered("attached", 25, 25), w.numbered("outbox_0", 5, 5))
		w.exec("ALTER TABLE outbox DETACH PARTITION attached")
		w.exec("CREATE TABLE outbox_2 PARTITION OF outbox DEFAULT")
		want = concat(want, w.numbered("outbox", 1000, 1001))
		w.awaitCaughtUp()
		r.drain()
		if s := r.bridge.Status(); s.Sessions != 1 {
			t.Errorf("%d sessions, want 1", s.Sessions)
		}
		w.mustPublish("order", want)
	})
}

// Rows that are in the table before it is a partition, or after it was one, are no events.
//
// Postgres 14 decides once in a session, at its first row, whether a table is published
// (pgoutput.c, rel_sync_cache_relation_cb): there the rows of a table that was written to
// before it was attached are missing until the next session, and a detached table's rows
// still come. Its users have to attach empty tables, or create partitions in place.
func TestATableWithRowsBecomesAPartition(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := partitionedWorld(t, admin)
		w.exec("CREATE TABLE attached (LIKE outbox INCLUDING DEFAULTS)")
		r := w.run("")
		r.awaitState(bridge.Streaming)
		w.numbered("attached", 20, 20)
		want := w.numbered("outbox", 0, 0)
		w.exec("ALTER TABLE outbox ATTACH PARTITION attached FOR VALUES FROM (20) TO (30)")
		inside := w.numbered("outbox", 21, 22)
		end := w.numbered("outbox", 1, 1)
		w.exec("ALTER TABLE outbox DETACH PARTITION attached")
		w.numbered("attached", 23, 23)
		w.awaitCaughtUp()
		r.drain()
		if w.serverVersion() >= 15 {
			want = concat(want, inside)
		}
		w.mustPublish("order", concat(want, end))
	})
}

func TestPartitionsThatAreGoneBeforeTheirRowsAreRead(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := partitionedWorld(t, admin)
		want := w.numbered("outbox", 0, 14)
		w.exec("ALTER TABLE outbox DETACH PARTITION outbox_0")
		w.exec("DROP TABLE outbox_1")
		w.exec("CREATE TABLE outbox_2 PARTITION OF outbox FOR VALUES FROM (20) TO (30)")
		want = concat(want, w.numbered("outbox", 20, 21))
		w.exec("TRUNCATE outbox")
		// The rows are in no table any more; WAL alone has them, with the catalog of their time.
		w.drainAll()
		w.mustPublish("order", want)
	})
}

// Postgres has made the new row's partition an insert before a publication sees it.
func TestAnUpdateThatMovesARowIsAnInsertToPostgres(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := partitionedWorld(t, admin)
		want := w.numbered("outbox", 1, 1)
		w.exec("UPDATE outbox SET n = 2")
		want = concat(want, w.emit("UPDATE outbox SET n = 12"+returning))
		w.drainAll()
		w.mustPublish("order", want)
	})
}
