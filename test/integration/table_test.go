package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
	"github.com/walferry/walferry/table"
)

// snapshot opens a snapshot of the world's tables.
func (w *world) snapshot(exported string) *table.Snapshot {
	w.t.Helper()
	cfg, err := w.cfg.Databases[0].ConnConfig()
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := table.Open(w.t.Context(), cfg, exported)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Close(w.t.Context()) })
	return s
}

// querying returns the query of the i-th outbox table.
func (w *world) querying(i int) table.Query {
	return table.Query{Table: bridge.OutboxTable(w.cfg.Databases[0].Outbox[i]), Source: i}
}

// ids returns the ids of the rows of a query, in their order, with a space between them.
func ids(t *testing.T, s *table.Snapshot, q table.Query) string {
	t.Helper()
	var all []string
	err := s.Read(t.Context(), q, func(r *table.Row) error {
		all = append(all, string(r.Event.ID))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.Count(t.Context(), q)
	if err != nil || n != int64(len(all)) {
		t.Errorf("count %d, %v, of %d rows", n, err, len(all))
	}
	return strings.Join(all, " ")
}

// A row that is read from the table becomes the record that the WAL has made of it.
func TestRowsOfATableAreWhatTheWALCarries(t *testing.T) {
	types := []struct{ name, values string }{
		{"text", `('') , ('🐘 \x00 \N'), (NULL)`},
		{"json", `('{ "b" :1,	"a":2, "nul": "\u0000" }'), (NULL)`},
		{"jsonb", `('{"b": 1,   "a": 2, "a": 3}'), ('1e400'), ('null')`},
		{"bytea", `('\x00ff5c'), (''), (NULL)`},
		{"cloud_event", `('\x00ff5c')`},
		{"character(9)", `('äöü')`},
		{"float8", `(0.1), (1e-300), ('Infinity'), (0.30000000000000004)`},
		{"numeric", `('NaN'), ('0.10000')`},
		{"timestamptz", `('2024-03-31 02:30:00.123456+02'), ('infinity'), ('4713-01-01 BC')`},
		{"interval", `('1 year 2 mons -3 days 04:05:06.789')`},
		{"date", `('2024-02-29'), ('-infinity')`},
		{"text[]", `('{"a,b","",NULL,"\"quoted\""}')`},
	}
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", func(c *config.Config) {
			outboxes(len(types))(c)
			for i := range c.Databases[0].Outbox {
				c.Databases[0].Outbox[i].TypeHeader = "kind"
			}
		})
		w.exec("CREATE DOMAIN protobuf AS bytea; CREATE DOMAIN cloud_event AS protobuf NOT NULL")
		w.exec(fmt.Sprintf(`ALTER DATABASE %s SET DateStyle = 'German'; ALTER DATABASE %[1]s SET TimeZone = 'Asia/Tokyo';
			ALTER DATABASE %[1]s SET IntervalStyle = 'sql_standard'; ALTER DATABASE %[1]s SET bytea_output = 'escape'; ALTER DATABASE %[1]s SET extra_float_digits = -15`, w.prefix))
		for i, typ := range types {
			w.exec(fmt.Sprintf("CREATE TABLE outbox_%d (n int GENERATED ALWAYS AS IDENTITY, id uuid DEFAULT gen_random_uuid(), aggregatetype text DEFAULT 'order', aggregateid timestamptz DEFAULT now(), type text DEFAULT 'T', payload %s)", i, typ.name))
		}
		w.setup()
		for i, typ := range types {
			w.exec(fmt.Sprintf("INSERT INTO outbox_%d (payload) VALUES %s", i, typ.values))
		}
		w.drainAll()
		published := map[string]string{}
		for _, r := range w.records() {
			published[header(r, "id")] = fmt.Sprintf("%q %q %t %s", r.Key, r.Value, r.Value == nil, header(r, "kind"))
		}
		s, found := w.snapshot(""), 0
		for i, typ := range types {
			q := w.querying(i)
			q.OrderColumn = "n"
			if err := s.Read(t.Context(), q, func(r *table.Row) error {
				found++
				e := r.Event
				value := e.Payload
				if e.PayloadHex && e.Payload != nil {
					value = unhex(t, e.Payload)
				}
				if got, want := fmt.Sprintf("%q %q %t %s", e.AggregateID, value, e.Payload == nil, e.Type), published[string(e.ID)]; got != want {
					t.Errorf("%s: the table has %s, the topic %s", typ.name, got, want)
				}
				if e.Source != i || e.Position != (decode.Position{}) || r.XID < 3 || r.CTID == "" || r.TableOID == 0 {
					t.Errorf("%s: %+v", typ.name, r)
				}
				return sink.Check(sink.Config{Routes: make([]sink.Route, len(types)), MaxRecord: 1 << 20}, &e)
			}); err != nil {
				t.Error(err)
			}
		}
		if found != len(published) || found == 0 {
			t.Errorf("%d rows, %d records", found, len(published))
		}
	})
}

func unhex(t *testing.T, digits []byte) []byte {
	t.Helper()
	var b []byte
	if _, err := fmt.Sscanf(strings.TrimPrefix(string(digits), `\x`), "%x", &b); err != nil && len(digits) > 2 {
		t.Fatalf("%s: %v", digits, err)
	}
	return b
}

// What is asked for by a transaction ID are the rows of that and later transactions, those of savepoints too, whatever the
// order of commits; a snapshot stays what it is.
func TestASnapshotReadsSinceATransaction(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", outboxes(1))
		w.exec("CREATE TABLE outbox_0 (id text, aggregatetype text DEFAULT 'order', aggregateid text DEFAULT 'k', type text, payload text, n int)")
		w.setup()
		insert := func(conn *pgx.Conn, id string, n int) {
			t.Helper()
			if _, err := conn.Exec(t.Context(), "INSERT INTO outbox_0 (id, n) VALUES ($1, $2)", id, n); err != nil {
				t.Fatal(err)
			}
		}
		insert(w.conn, "first", 9)
		long, err := pgx.Connect(t.Context(), dsnOf(t, w.admin, w.prefix))
		if err != nil {
			t.Fatal(err)
		}
		defer long.Close(t.Context())
		for _, sql := range []string{"BEGIN", "SELECT pg_current_xact_id()", "SAVEPOINT a"} {
			if _, err := long.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		insert(w.conn, "meanwhile", 8)
		bound := w.query("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
		insert(long, "savepoint", 7) // its transaction ID is higher than that of "meanwhile", that of its transaction lower
		if _, err := long.Exec(t.Context(), "RELEASE a; INSERT INTO outbox_0 (id, n) VALUES ('top', 6), ('top 2', 5)"); err != nil {
			t.Fatal(err)
		}
		before := w.snapshot("")
		if _, err := long.Exec(t.Context(), "COMMIT"); err != nil {
			t.Fatal(err)
		}
		w.exec("DELETE FROM outbox_0 WHERE id = 'first'")
		s, q := w.snapshot(""), w.querying(0)
		if got, want := ids(t, before, q), "first meanwhile"; got != want {
			t.Errorf("before the commit: %q, want %q", got, want)
		}
		if got, want := ids(t, s, q), "top top 2 meanwhile savepoint"; got != want || s.Order(q) != table.ByXID {
			t.Errorf("all: %q %v, want %q", got, s.Order(q), want)
		}
		if _, err := fmt.Sscan(bound, &q.Since); err != nil {
			t.Fatal(err)
		}
		if got, want := ids(t, s, q), "top top 2 meanwhile savepoint"; got != want {
			t.Errorf("since %s: %q, want %q", bound, got, want)
		}
		q.OrderColumn = "n"
		if got, want := ids(t, s, q), "top 2 top savepoint meanwhile"; got != want || s.Order(q) != table.ByColumn {
			t.Errorf("by column: %q, want %q", got, want)
		}
		w.exec("INSERT INTO outbox_0 (id) VALUES ('later')")
		w.exec("VACUUM FREEZE outbox_0")
		s = w.snapshot("")
		q.OrderColumn = ""
		if got, want := ids(t, s, q), "top top 2 meanwhile savepoint later"; got != want {
			t.Errorf("frozen: %q, want %q", got, want)
		}
		q.Since++
		if got, want := ids(t, s, q), "meanwhile savepoint later"; got != want {
			t.Errorf("since the next transaction: %q, want %q", got, want)
		}
		stop := errors.New("stop")
		if err := s.Read(t.Context(), q, func(*table.Row) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("got %v, want the visitor's error", err)
		}
		if got := ids(t, s, q); got != "meanwhile savepoint later" {
			t.Errorf("after a Read that was ended: %q", got)
		}
		w.exec("INSERT INTO outbox_0 (id, aggregateid) VALUES ('bad', NULL)")
		err = w.snapshot("").Read(t.Context(), q, func(*table.Row) error { return nil })
		if e, ok := errors.AsType[*table.RowError](err); !ok || e.Column != "aggregateid" || e.ID != "bad" || strings.Contains(err.Error(), "bad") {
			t.Errorf("got %v, want a RowError", err)
		}
	})
}

// The rows of partitions are those of the root, those of tables that inherit are not.
func TestASnapshotOfARoot(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := partitionedWorld(t, admin)
		events := w.numbered("outbox", 5, 14)
		q := w.querying(0)
		q.OrderColumn = "n"
		var want []string
		for _, e := range events {
			want = append(want, e.id)
		}
		if got := ids(t, w.snapshot(""), q); got != strings.Join(want, " ") {
			t.Errorf("of partitions: %s, want %s", got, want)
		}
		parent := newWorld(t, admin, nil)
		parent.exec("CREATE TABLE child () INHERITS (outbox)")
		parent.exec("INSERT INTO child (aggregatetype, aggregateid, type) VALUES ('order', 'k', 'T')")
		one := parent.order("k", "1")
		if got := ids(t, parent.snapshot(""), parent.querying(0)); got != one[0].id {
			t.Errorf("with a table that inherits: %q, want %q", got, one[0].id)
		}
	})
}

// Who may not see every row is told which right is missing.
func TestASnapshotNeedsSELECT(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		w.order("k", "1")
		role := w.prefix + "_reader"
		w.exec("CREATE ROLE " + role + " LOGIN")
		t.Cleanup(func() { w.dropRole(role) })
		super := w.cfg.Databases[0].DSN
		w.cfg.Databases[0].DSN = config.Secret(strings.Replace(string(super), "user=postgres", "user="+role, 1))
		refused := func(hint string) {
			t.Helper()
			_, err := w.snapshot("").Count(t.Context(), w.querying(0))
			read := w.snapshot("").Read(t.Context(), w.querying(0), func(*table.Row) error { return nil })
			for _, err := range []error{err, read} {
				if e, ok := errors.AsType[*replication.PreconditionError](err); !ok || !strings.HasPrefix(e.Hint, hint) {
					t.Errorf("got %v, want the hint %q", err, hint)
				}
			}
		}
		refused(`GRANT SELECT ON "public"."outbox" TO "` + role + `"`)
		w.exec("GRANT SELECT ON outbox TO " + role)
		w.exec("ALTER TABLE outbox ENABLE ROW LEVEL SECURITY")
		refused(`ALTER ROLE "` + role + `" BYPASSRLS`)
		w.exec("ALTER TABLE outbox DISABLE ROW LEVEL SECURITY")
		if n, err := w.snapshot("").Count(t.Context(), w.querying(0)); n != 1 || err != nil {
			t.Errorf("%d rows, %v", n, err)
		}
	})
}

// A transaction ID in a row has no epoch. That of the snapshot is given to it, or the one before where it would be of the future.
func TestTransactionIDsAreGivenTheirEpoch(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", nil)
		const epoch = 1 << 32
		for _, c := range []struct{ xid, next, want int64 }{
			{3, 4, 3},
			{700, 701, 700},
			{700, 700 + epoch, 700},
			{700, 701 + epoch, 700 + epoch}, // next itself is not visible
			{epoch - 1, epoch, epoch - 1},
			{epoch - 1, 3 + epoch, epoch - 1},
			{3, 3 + epoch, 3},
			{3, 4 + epoch, 3 + epoch},
			{epoch - 1, epoch + 1<<31, epoch - 1},
			{epoch - 1, 2 * epoch, 2*epoch - 1},
			{1 << 31, 3*epoch + 1<<31, 2*epoch + 1<<31},
			{1 << 31, 3*epoch + 1<<31 + 1, 3*epoch + 1<<31},
			{2, 3 * epoch, 2},
			{1, 3 * epoch, 1},
		} {
			sql := fmt.Sprintf("SELECT (%s)::text FROM (VALUES ('%d'::xid)) AS t(xmin), (VALUES (%d::bigint)) AS x(n)", table.FullXID("t.xmin", "x.n"), c.xid, c.next)
			if got := w.query(sql); got != fmt.Sprint(c.want) {
				t.Errorf("transaction ID %d before %d is %s, want %d", c.xid, c.next, got, c.want)
			}
		}
		for _, c := range []struct{ xid, next, want int64 }{ // one that runs may be newer
			{700, 701 + epoch, 700 + epoch},
			{701, 701 + epoch, 701 + epoch},
			{950, 701 + epoch, 950 + epoch},
			{950, 701, 950},
			{epoch - 1, 3 + epoch, epoch - 1},
			{3, 2*epoch - 1, 3 + 2*epoch},
		} {
			sql := fmt.Sprintf("SELECT (%s)::text FROM (VALUES ('%d'::xid)) AS t(xmin), (VALUES (%d::bigint)) AS x(n)", table.RunningXID("t.xmin", "x.n"), c.xid, c.next)
			if got := w.query(sql); got != fmt.Sprint(c.want) {
				t.Errorf("running transaction %d beside %d is %s, want %d", c.xid, c.next, got, c.want)
			}
		}
		full := w.query("SELECT pg_current_xact_id()::text")
		if got := w.query("SELECT ("+table.FullXID("$1::text::xid", "(1 + $2::text::bigint)")+")::text", full, full); got != full {
			t.Errorf("%s became %s", full, got)
		}
	})
}

func TestUpdatesOfATableAreCounted(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		for _, w := range []*world{newWorld(t, admin, nil), partitionedWorld(t, admin)} {
			count := func(want int64) (reset string) {
				t.Helper()
				await(t, "the statistics", func() error { // those of Postgres 14 are late
					s := w.snapshot("")
					defer s.Close(t.Context())
					var n int64
					var err error
					if n, reset, err = s.Updates(t.Context(), w.querying(0)); err == nil && n != want {
						err = fmt.Errorf("%d updates, want %d", n, want)
					}
					return err
				})
				return reset
			}
			if w.query("SELECT relkind::text FROM pg_class WHERE oid = 'outbox'::regclass") == "p" {
				w.numbered("outbox", 9, 11)
			} else {
				w.insert("1", "{}")
				w.insert("2", "{}")
				w.insert("3", "{}")
			}
			w.exec("DELETE FROM outbox WHERE ctid = (SELECT max(ctid) FROM outbox)")
			count(0)
			w.update("UPDATE outbox SET type = 'U'")
			w.exec(count(2))
			count(0)
		}
	})
}
