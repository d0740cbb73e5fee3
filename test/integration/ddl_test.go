package integration

import (
	"testing"

	"github.com/walferry/walferry/bridge"
)

// Each row is read with the columns that the table had when it was written, also in the
// middle of a transaction. Rewritten tables give no events.
func TestDDLInATransaction(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		r := w.run("")
		r.awaitState(bridge.Streaming)
		want := w.order("k", `{"before":   "all"}`)
		w.exec("BEGIN")
		for _, step := range []struct{ ddl, payload string }{
			{"", `{"in": "a transaction"}`},
			{"ALTER TABLE outbox ADD COLUMN extra int DEFAULT 5", `{"extra": 1}`},
			{"ALTER TABLE outbox ADD COLUMN note text; ALTER TABLE outbox RENAME note TO remark", `"renamed"`},
			{"ALTER TABLE outbox DROP COLUMN extra", `"dropped"`},
			{"ALTER TABLE outbox ALTER payload TYPE text USING payload::text", `{"text  ": no JSON`},
			{"ALTER TABLE outbox ALTER payload TYPE json USING to_json(payload)", `{ "json":  1,"json":2 }`},
			{"ALTER TABLE outbox ALTER payload TYPE jsonb", `{"b": 1,  "a": 2, "a": 3}`},
			{"ALTER TABLE outbox DROP COLUMN aggregateid; ALTER TABLE outbox ADD COLUMN aggregateid text", `"another order"`},
			{"ALTER TABLE outbox DROP CONSTRAINT outbox_pkey; ALTER TABLE outbox ALTER id TYPE text", `"id is text"`},
			{"ALTER TABLE outbox REPLICA IDENTITY FULL", `"whatever it is"`},
			{"ALTER TABLE outbox RENAME TO elsewhere; ALTER TABLE elsewhere RENAME TO outbox", `"there and back"`},
			{"CREATE SCHEMA attic; ALTER TABLE outbox SET SCHEMA attic; ALTER TABLE attic.outbox SET SCHEMA public", `"and back again"`},
		} {
			if step.ddl != "" {
				w.exec(step.ddl)
			}
			want = concat(want, w.order("k", step.payload), w.order("k", `"again"`))
		}
		w.exec("COMMIT")
		// A table in the place of the old one, as retention by swapping does it.
		w.exec("BEGIN; ALTER TABLE outbox RENAME TO outbox_old; CREATE TABLE outbox (LIKE outbox_old INCLUDING DEFAULTS); ALTER PUBLICATION walferry ADD TABLE outbox")
		want = concat(want, w.order("k", `"in the new table"`))
		w.exec("DROP TABLE outbox_old; COMMIT")
		w.exec("VACUUM FULL outbox")
		want = concat(want, w.order("k", `"last"`))
		w.awaitCaughtUp()
		r.drain()
		if s := r.bridge.Status(); s.Sessions != 1 {
			t.Errorf("%d sessions, want 1", s.Sessions)
		}
		w.mustPublish("order", want)
	})
}

// Rows that cannot be read as configured stop the bridge, and it goes on where it stopped
// once the configuration is right.
func TestMappedColumnsGoAway(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		r := w.run("")
		r.awaitState(bridge.Streaming)
		want := w.order("k", "1")
		w.exec("ALTER TABLE outbox RENAME payload TO body; ALTER TABLE outbox DROP type; ALTER TABLE outbox ADD kind text")
		w.awaitCaughtUp()
		before := w.insertLSN()
		const insert = "INSERT INTO outbox (aggregatetype, aggregateid, kind, body) VALUES ('order', 'k', 'T', $1) RETURNING id::text, aggregateid, body::text"
		late := concat(w.emit(insert, "2"), w.emit(insert, "3"))
		r.mustStopBefore(w, before, "public.outbox.payload", "no such column")
		w.mustStop(bridge.Fatal, `no column "type"`, "outbox.columns", "kind")
		w.cfg.Databases[0].Outbox[0].Columns.Type = "kind"
		w.mustStop(bridge.Fatal, `no column "payload"`, "outbox.columns", "body")
		w.mustPublish("order", want)

		w.cfg.Databases[0].Outbox[0].Columns.Payload = "body"
		w.drainAll()
		w.mustPublish("order", concat(want, late))
	})
}

// What precedes the column's end in the same transaction is published, the transaction is
// not confirmed.
func TestAMappedColumnGoesAwayInATransaction(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	want := w.order("k", "1")
	before := w.insertLSN()
	w.exec("BEGIN")
	want = concat(want, w.order("k", "2"))
	w.exec("ALTER TABLE outbox DROP aggregateid; INSERT INTO outbox (aggregatetype, type) VALUES ('order', 'T')")
	w.exec("ALTER TABLE outbox ADD aggregateid text; COMMIT") // passes the check at the start
	w.run("").mustStopBefore(w, before, "public.outbox.aggregateid", "no such column")
	w.mustPublish("order", want)
}
