package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/setup"
	"github.com/walferry/walferry/internal/servers"
)

// What is not set up as the bridge needs it stops it at the start, before anything is
// confirmed, and the error says how to go on.
func TestRefusedAtTheStart(t *testing.T) {
	const table = "(id uuid DEFAULT gen_random_uuid(), aggregatetype text, aggregateid text, type text, payload jsonb)"
	const addTable = `ALTER PUBLICATION "walferry" ADD TABLE "public"."outbox"`
	for name, test := range map[string]struct {
		breakIt string
		says    []string
		cures   []string // SQL of the hints, one after another
	}{
		"table is not published":       {"ALTER PUBLICATION walferry DROP TABLE outbox", []string{`does not contain table "public"."outbox"`}, []string{addTable}},
		"table is published by schema": {"ALTER PUBLICATION walferry DROP TABLE outbox; ALTER PUBLICATION walferry ADD TABLES IN SCHEMA public", []string{"only by its schema"}, []string{addTable}},
		"inserts are not published":    {"ALTER PUBLICATION walferry SET (publish = 'update, delete')", []string{"does not publish inserts"}, []string{`ALTER PUBLICATION "walferry" SET (publish = 'insert')`}},
		"a column is not published":    {"ALTER PUBLICATION walferry SET TABLE outbox (id, aggregatetype, type, payload)", []string{`leaves out column "aggregateid"`, "SET TABLE"}, nil},
		"partitions are published":     {"DROP TABLE outbox; CREATE TABLE outbox " + table + " PARTITION BY HASH (id); CREATE TABLE p PARTITION OF outbox FOR VALUES WITH (MODULUS 1, REMAINDER 0); ALTER PUBLICATION walferry ADD TABLE outbox; ALTER PUBLICATION walferry SET (publish_via_partition_root = false)", []string{"partitions"}, []string{`ALTER PUBLICATION "walferry" SET (publish_via_partition_root = true)`}},
		"table is unlogged":            {"DROP TABLE outbox; CREATE UNLOGGED TABLE outbox " + table, []string{"unlogged"}, []string{`ALTER TABLE "public"."outbox" SET LOGGED`, addTable}},
		"table is missing":             {"ALTER TABLE outbox RENAME TO elsewhere", []string{`table "public"."outbox" does not exist`, "walferry init", "outbox.table"}, nil},
		"table is a view":              {"DROP TABLE outbox; CREATE TABLE kept " + table + "; CREATE VIEW outbox AS SELECT * FROM kept", []string{`does not contain table "public"."outbox"`}, nil},
		"table lacks a column":         {"ALTER TABLE outbox RENAME payload TO body", []string{`has no column "payload"`, "outbox.columns", "body"}, nil},
		"column is in other letters":   {"ALTER TABLE outbox RENAME payload TO " + `"Payload"`, []string{`has no column "payload"`, "Payload"}, nil},
		"publication is missing":       {"DROP PUBLICATION walferry", []string{`publication "walferry" does not exist`, "walferry init"}, nil},
		"publication has another name": {`ALTER PUBLICATION walferry RENAME TO "Walferry"`, []string{`publication "walferry" does not exist`}, nil},
		"slot is missing":              {"SELECT pg_drop_replication_slot('SLOT')", []string{"does not exist", "walferry init"}, nil},
		"slot is physical":             {"SELECT pg_drop_replication_slot('SLOT'); SELECT pg_create_physical_replication_slot('SLOT', true)", []string{"is a physical slot", "another slot name"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, newest(t), withoutCheckpoints)
			w.exec(strings.ReplaceAll(test.breakIt, "SLOT", w.prefix))
			const lsn = "SELECT coalesce(max(confirmed_flush_lsn)::text, '') FROM pg_replication_slots WHERE slot_name = $1"
			before := w.query(lsn, w.prefix)
			says := append([]string{}, test.says...)
			if len(test.cures) > 0 {
				says = append(says, test.cures[0])
			}
			r := w.mustStop(bridge.Fatal, says...)
			if s := r.bridge.Status(); s.Sessions != 0 {
				t.Errorf("%d sessions, want none", s.Sessions)
			}
			if after := w.query(lsn, w.prefix); after != before {
				t.Errorf("%s is confirmed, it was %s", after, before)
			}
			if len(test.cures) == 0 {
				return
			}
			w.exec(test.cures[0])
			for _, cure := range test.cures[1:] {
				w.mustStop(bridge.Fatal, cure)
				w.exec(cure)
			}
			want := w.order("k", `"after the cure"`)
			w.drainAll()
			w.mustPublish("order", want)
		})
	}
}

func TestSlotOfAnotherDatabase(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	w.cfg.Databases[0].Slot = w.prefix + "_other"
	root, err := pgx.Connect(t.Context(), w.admin)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close(t.Context())
	if _, err := root.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", w.prefix+"_other"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_, _ = root.Exec(context.Background(), "SELECT pg_drop_replication_slot($1)", w.prefix+"_other")
	}()
	says := []string{`belongs to database "postgres"`, w.prefix, "DSN"}
	mustSay(t, w.setupError(), bridge.Fatal, says...)
	w.mustStop(bridge.Fatal, says...)
}

func TestServersThatCannotServe(t *testing.T) {
	t.Run("SQL_ASCII", func(t *testing.T) {
		w := bareWorld(t, newest(t), "ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'", nil)
		mustSay(t, w.setupError(), bridge.Fatal, "SQL_ASCII", "UTF-8")
		w.mustStop(bridge.Fatal, "SQL_ASCII", "UTF-8")
	})
	t.Run("wal_level", func(t *testing.T) {
		pg := ownPostgres(t, "18", servers.PostgresOptions{Settings: map[string]string{"wal_level": "replica"}})
		w := bareWorld(t, pg.DSN("postgres"), "", nil)
		says := []string{"wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'"}
		mustSay(t, w.setupError(), bridge.Fatal, says...)
		w.mustStop(bridge.Fatal, says...)
		w.exec("ALTER SYSTEM SET wal_level = 'logical'")
		if err := w.conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := pg.SetConf(t.Context(), map[string]string{"wal_level": "logical"}); err != nil {
			t.Fatal(err)
		}
		if err := pg.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.setup()
	})
	t.Run("database is missing", func(t *testing.T) {
		w := bareWorld(t, newest(t), "", func(c *config.Config) {
			c.Databases[0].DSN = config.Secret(strings.Replace(string(c.Databases[0].DSN), "?", "_missing?", 1))
		})
		mustSay(t, w.setupError(), bridge.Fatal, "3D000", "does not exist")
		w.mustStop(bridge.Fatal, "3D000", "the database of the DSN does not exist")
	})
}

func TestRoleWithoutReplication(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		w.exec(fmt.Sprintf("CREATE ROLE %s_role LOGIN", w.prefix))
		t.Cleanup(func() { w.dropRole(w.prefix + "_role") })
		w.as(w.prefix + "_role")
		w.order("k", "1")
		w.mustStop(bridge.Fatal, "42501", "REPLICATION", "walferry init --print")
		w.exec(fmt.Sprintf("ALTER ROLE %s_role REPLICATION", w.prefix))
		w.drainAll()
	})
}

// as makes the bridge connect as a role.
func (w *world) as(role string) {
	db := &w.cfg.Databases[0]
	db.DSN = config.Secret(strings.Replace(string(db.DSN), "user=postgres", "user="+role, 1))
}

// setupError returns the error of `walferry init`.
func (w *world) setupError() *bridge.Error {
	w.t.Helper()
	return asError(w.t, setup.Run(w.t.Context(), w.options("", zerolog.Disabled), func(string) {}))
}

// Events that were written while there was no publication cannot be read. No version may
// leave them out in silence: Postgres 18 only warns of it.
func TestPublicationWasAwayForAWhile(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, withoutCheckpoints)
		want := w.order("k", "1")
		w.drainAll()
		before := w.confirmed()
		w.exec("DROP PUBLICATION walferry")
		w.order("k", `"written without a publication"`)
		written := w.insertLSN()
		w.setup()
		w.order("k", "3")
		for range 2 {
			w.mustStop(bridge.Fatal, "publication", "recreate")
			if confirmed := w.confirmed(); confirmed < before {
				t.Errorf("%s is confirmed, %s was before", confirmed, before)
			}
			w.mustNotReach(written)
		}
		w.mustPublish("order", want)
	})
}
