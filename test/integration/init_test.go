package integration

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/setup"
)

// init runs `walferry init` in this process and returns its lines.
func (w *world) init() []string {
	w.t.Helper()
	did, err := w.tryInit(false)
	if err != nil {
		w.t.Fatal(err)
	}
	return did
}

// tryInit leaves out where a checkpoint stands.
func (w *world) tryInit(acceptGap bool) (did []string, err error) {
	w.t.Helper()
	o := w.options("", zerolog.Disabled)
	o.AcceptGap = acceptGap
	err = setup.Run(w.t.Context(), o, func(line string) {
		if strings.HasPrefix(line, "wrote the first checkpoint, at ") {
			line = firstCheckpoint
		}
		did = append(did, line)
	})
	return did, err
}

const backfills = "; `walferry init --backfill` publishes them, as long as there is no slot"

const firstCheckpoint = "wrote the first checkpoint"

func mustDo(t *testing.T, did []string, want ...string) {
	t.Helper()
	if got, want := strings.Join(did, "\n"), strings.Join(want, "\n"); got != want {
		t.Errorf("init did\n%s\nwant\n%s", got, want)
	}
}

func TestInitMakesOnlyWhatIsMissing(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", func(c *config.Config) {
			outbox := c.Databases[0].Outbox[0]
			outbox.Table = "public.Out Box"
			outbox.Columns.Payload = "Body"
			c.Databases[0].Outbox = append(c.Databases[0].Outbox, outbox)
		})
		slot := "slot " + w.prefix
		mustDo(t, w.init(), `created table "public"."outbox"`, `created table "public"."Out Box"`, `created publication "walferry"`, "created "+slot, firstCheckpoint)
		catalog := func() string {
			return w.query(`SELECT concat_ws(' ', (SELECT string_agg(oid::text, ' ' ORDER BY oid) FROM pg_class WHERE relname IN ('outbox', 'Out Box')),
				(SELECT oid FROM pg_publication), (SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1))`, w.prefix)
		}
		before := catalog()
		exists := []string{`table "public"."outbox" exists`, `table "public"."Out Box" exists`, `publication "walferry" exists`, slot + " exists"}
		mustDo(t, w.init(), exists...)
		if after := catalog(); after != before {
			t.Errorf("the second init changed %q to %q", before, after)
		}

		want := w.order("k", "1")
		note := `note: rows that are older than the slot are never published, and "public"."outbox" has rows` + backfills
		mustDo(t, w.init(), exists[0], note, exists[1], exists[2], exists[3])
		w.exec(`ALTER PUBLICATION walferry DROP TABLE "Out Box"`)
		mustDo(t, w.init(), exists[0], note, exists[1], exists[2], `added "public"."Out Box" to publication "walferry"`, exists[3])
		want = concat(want, w.emit(`INSERT INTO "Out Box" (aggregatetype, aggregateid, type, "Body") VALUES ('order', 'k', 'T', '2') RETURNING id::text, aggregateid, "Body"::text`))
		w.exec("SELECT pg_drop_replication_slot($1)", w.prefix)
		if did, err := w.tryInit(false); len(did) != 0 || asError(t, err).Class != bridge.Gap {
			t.Errorf("init did %q: %v, want it to refuse a new slot in the place of one that had a checkpoint", did, err)
		}
		did, err := w.tryInit(true)
		if err != nil {
			t.Error(err)
		}
		mustDo(t, did, exists[0], note, exists[1], `note: rows that are older than the slot are never published, and "public"."Out Box" has rows`+backfills, exists[2], "created "+slot, firstCheckpoint)
		w.drainAll()
		if records := w.records(); len(records) != 0 {
			t.Errorf("%d records are older than the slot, want 0 of %d", len(records), len(want))
		}
	})
}

func TestInitWithMessagesOnly(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", func(c *config.Config) { c.Databases[0].Outbox = nil })
		mustDo(t, w.init(), `created publication "walferry"`, "created slot "+w.prefix, firstCheckpoint)
		w.exec(`SELECT pg_logical_emit_message(true, 'outbox', '{"id":"m","aggregatetype":"order","aggregateid":"k","payload":1}')`)
		w.drainAll()
		w.mustPublish("order", []event{{id: "m", key: "k", value: "1"}})
	})
}

// A slot is created behind every transaction that is open. An init that does not want to
// wait leaves no slot behind, which would keep WAL for nobody.
func TestInitWaitsForOpenTransactions(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", nil)
		w.exec("CREATE TABLE other (id int)")
		blocker, err := pgx.Connect(t.Context(), dsnOf(t, w.admin, w.prefix))
		if err != nil {
			t.Fatal(err)
		}
		defer blocker.Close(t.Context())
		if _, err := blocker.Exec(t.Context(), "BEGIN; INSERT INTO other VALUES (1)"); err != nil {
			t.Fatal(err)
		}
		path := w.configFile("")
		awaitSlots := func(want string) {
			t.Helper()
			await(t, want+" slots", func() error {
				if got := w.query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", w.prefix); got != want {
					return errors.New(got + " slots")
				}
				return nil
			})
		}
		mustExit(t, 1, []string{"init", "--timeout", "500ms", "--config", path}, w.prefix, "not created in time", "pg_stat_activity")
		awaitSlots("0")
		c := walferry(t, "init", "--config", path)
		awaitSlots("1") // that is not finished
		if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		c.exit(1)
		awaitSlots("0")
		if _, err := blocker.Exec(t.Context(), "COMMIT"); err != nil {
			t.Fatal(err)
		}
		stdout, _ := walferry(t, "init", "--config", path).exit(0)
		if !strings.Contains(stdout, "shop: created slot "+w.prefix+"\n") {
			t.Errorf("init says %q", stdout)
		}
	})
}

// A DBA runs what --print prints; the role that it makes is all that walferry needs.
func TestPrintedSQLMakesALeastPrivilegeRole(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", nil)
		role := w.prefix + "_role"
		w.as(role)
		path := w.configFile(freeAddr(t))
		sql, stderr := walferry(t, "init", "--print", "--config", path).exit(0)
		if stderr != "" {
			t.Errorf("init --print warns: %s", stderr)
		}
		t.Cleanup(func() { w.dropRole(role) })
		for _, statement := range statements(sql) {
			w.exec(statement)
		}
		for _, not := range []string{"rolsuper", "rolcreaterole", "rolcreatedb", "rolbypassrls"} {
			if w.query("SELECT "+not+"::text FROM pg_roles WHERE rolname = $1", role) != "false" {
				t.Errorf("the role has %s", not)
			}
		}
		if w.query("SELECT has_table_privilege($1, 'outbox', 'SELECT, INSERT, UPDATE, DELETE')::text", role) != "false" {
			t.Error("the role may use the table")
		}
		mustDo(t, w.asSuperuser().init(), `table "public"."outbox" exists`, `publication "walferry" exists`, "slot "+w.prefix+" exists",
			"note: the slot has no checkpoint, and `walferry run` refuses it: use --adopt-slot, once, if what it has skipped is known to be published")
		want := w.order("k", "1")
		mustExit(t, 1, []string{"run", "--until-lsn", w.walEnd(), "--config", path}, "--adopt-slot")
		walferry(t, "run", "--adopt-slot", "--until-lsn", w.walEnd(), "--config", path).exit(0)
		w.mustPublish("order", want)
		stdout, _ := walferry(t, "status", "--config", path).exit(0)
		if !strings.Contains(stdout, w.prefix) {
			t.Errorf("status says %q", stdout)
		}
	})
}

// statements splits SQL as psql does, of which a file is not one transaction: a slot cannot
// be created in one that has written.
func statements(sql string) []string {
	var list []string
	var b strings.Builder
	for line := range strings.Lines(sql) {
		if strings.HasPrefix(line, "--") {
			continue
		}
		b.WriteString(line)
		if strings.HasSuffix(strings.TrimSpace(line), ";") {
			list = append(list, b.String())
			b.Reset()
		}
	}
	return list
}

// asSuperuser returns the world with a configuration that connects as the tests do.
func (w *world) asSuperuser() *world {
	c := *w.cfg
	c.Databases = append([]config.Database(nil), c.Databases...)
	c.Databases[0].DSN = config.Secret(dsnOf(w.t, w.admin, w.prefix))
	super := *w
	super.cfg = &c
	return &super
}
