package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/walferry/walferry/internal/servers"
)

func TestOnlyWhatIsCommittedArrives(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		// Spilled to disk, and with all its subtransactions, whatever the default is.
		w.exec(fmt.Sprintf("ALTER DATABASE %s SET logical_decoding_work_mem = '64kB'", w.prefix))
		const row = `INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('order', 'k', 'T', '"never"');`
		const message = `SELECT pg_logical_emit_message(true, 'outbox', '{"id":"m","aggregatetype":"order","aggregateid":"k","payload":"never"}');`
		const rows = `INSERT INTO outbox (aggregatetype, aggregateid, type, payload) SELECT 'order', 'k', 'T', to_jsonb(repeat('never', 100)) FROM generate_series(1, 5000);`

		want := w.order("k", "1")
		w.exec("BEGIN")
		want = concat(want, w.order("k", "2"))
		w.exec(strings.Repeat("SAVEPOINT s;"+row+message+"ROLLBACK TO s;RELEASE s;", 2000))
		want = concat(want, w.order("k", "3"))
		w.exec("SAVEPOINT big;" + rows + "ROLLBACK TO big")
		want = concat(want, w.order("k", "4"))
		w.exec("SAVEPOINT kept")
		want = concat(want, w.order("k", "5"))
		w.exec("SAVEPOINT inner_one;" + row + "SAVEPOINT deeper;" + row + "RELEASE deeper; ROLLBACK TO inner_one; RELEASE kept; COMMIT")
		w.exec("BEGIN;" + rows + message + "ROLLBACK")
		w.exec("BEGIN;" + rows + message)
		if _, err := w.conn.Exec(t.Context(), "SELECT 1/0"); err == nil {
			t.Error("1/0 is no error")
		}
		w.exec("COMMIT") // rolls back
		want = concat(want, w.order("k", "6"))
		w.drainAll()
		w.mustPublish("order", want)
	})
}

func TestPreparedTransactions(t *testing.T) {
	for _, version := range []string{"14", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			pg := ownPostgres(t, version, servers.PostgresOptions{Settings: map[string]string{"max_prepared_transactions": "10"}})
			w := newWorld(t, pg.DSN("postgres"), nil)
			prepare := func(name string, keys ...string) (events []event) {
				w.exec("BEGIN")
				for _, key := range keys {
					events = concat(events, w.order(key, `"in a prepared transaction"`))
				}
				w.exec("PREPARE TRANSACTION '" + name + "'")
				return events
			}
			late := prepare("late", "a", "b")
			prepare("never", "c")
			early := prepare("early", "d")
			want := w.order("e", "0")
			w.exec("COMMIT PREPARED 'early'")
			w.exec("ROLLBACK PREPARED 'never'")
			w.drainAll()
			w.mustPublish("order", concat(want, early))
			// The slot is behind its PREPARE, which must not lose it.
			w.exec("COMMIT PREPARED 'late'")
			want = concat(want, early, late, w.order("f", "0"))
			w.drainAll()
			w.mustPublish("order", want)
		})
	}
}

// Whether the publication has other changes than inserts or leaves them out, only inserts
// are events.
func TestOnlyInsertsAreEvents(t *testing.T) {
	for name, publication := range map[string]string{
		"inserts":        "FOR TABLE outbox WITH (publish = 'insert')",
		"all operations": "FOR ALL TABLES",
	} {
		t.Run(name, func(t *testing.T) {
			onEveryPostgres(t, func(t *testing.T, admin string) {
				w := bareWorld(t, admin, "", nil)
				w.exec(`CREATE TABLE outbox (id text PRIMARY KEY, aggregatetype text, aggregateid text, type text, payload text);
					CREATE TABLE other (id int PRIMARY KEY)`)
				w.exec("CREATE PUBLICATION walferry " + publication)
				w.setup()
				insert := func(id, payload, clause string) []event {
					return w.emit("INSERT INTO outbox VALUES ($1, 'order', 'k', 'T', $2) "+clause+returning, id, payload)
				}
				want := insert("1", "first", "")
				insert("1", "dropped", "ON CONFLICT DO NOTHING")
				insert("1", "updated", "ON CONFLICT (id) DO UPDATE SET payload = 'updated'")
				want = concat(want, insert("2", "no conflict", "ON CONFLICT (id) DO UPDATE SET payload = 'updated'"))
				w.exec("UPDATE outbox SET payload = 'changed'")
				w.exec("BEGIN; INSERT INTO other VALUES (1); UPDATE other SET id = 2")
				want = concat(want, insert("3", "inserted and deleted at once", ""))
				w.exec("DELETE FROM outbox WHERE id = '3'")
				want = concat(want, insert("3", "and inserted again", ""))
				w.exec("DELETE FROM outbox; COMMIT")
				want = concat(want, w.emit("WITH row AS (INSERT INTO outbox VALUES ('4', 'order', 'k', 'T', 'in one statement') RETURNING *) "+
					"SELECT id::text, aggregateid::text, payload::text FROM row"))
				w.exec("TRUNCATE outbox")
				want = concat(want, insert("5", "after the truncate", ""))
				w.drainAll()
				w.mustPublish("order", want)
			})
		})
	}
}
