package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/walferry/walferry/bridge/config"
)

// A copy of the slot is a session that crashed before it had confirmed anything: every
// event comes again, with the id and the position that it had.
func TestPositionsAreTheSameInEverySession(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, withoutCheckpoints)
		again := w.prefix + "_again"
		w.exec("SELECT pg_copy_logical_replication_slot($1::name, $2::name)", w.prefix, again)
		t.Cleanup(func() { w.dropSlot(again) })

		const message = `SELECT pg_logical_emit_message(true, '%s', '{"id":"%s","aggregatetype":"order","aggregateid":"k","payload":1}')`
		w.exec("CREATE TABLE other (id int)")
		w.order("k", "1")
		w.exec("BEGIN")
		w.order("k", "2")
		w.exec("INSERT INTO other VALUES (1)")
		w.exec(fmt.Sprintf(message, "outbox", "a message"))
		w.exec(fmt.Sprintf(message, "another-prefix", "no event"))
		w.exec("UPDATE outbox SET type = 'changed'")
		w.order("k", "3")
		w.exec("COMMIT")
		w.exec("INSERT INTO outbox (aggregatetype, aggregateid, type) SELECT 'order', 'k', 'T' FROM generate_series(1, 10)")
		w.drainAll()
		w.cfg.Databases[0].Slot = again
		w.drainAll()

		records := w.records()
		if len(records) != 28 {
			t.Fatalf("%d records, want 14 events twice", len(records))
		}
		for i, r := range records[:14] {
			twin := records[14+i]
			if eventOf(r) != eventOf(twin) || header(r, "walferry-position") != header(twin, "walferry-position") {
				t.Errorf("event %d was %s at %s and is %s at %s", i,
					eventOf(r), header(r, "walferry-position"), eventOf(twin), header(twin, "walferry-position"))
			}
		}
		var indexes []string
		for _, r := range records[:4] {
			position := header(r, "walferry-position")
			indexes = append(indexes, position[strings.LastIndexByte(position, '/')+1:])
		}
		// The message without an event counts, so that a change of the prefix renumbers nothing.
		if got, want := fmt.Sprint(indexes), "[0 0 1 3]"; got != want {
			t.Errorf("indexes %s, want %s", got, want)
		}
	})
}

// A transaction of which only a part was acknowledged goes on where it stopped, or without checkpoints is sent again
// whole, at the same positions.
func TestPositionsAfterAStopInATransaction(t *testing.T) {
	t.Run("checkpoints", func(t *testing.T) { testStopInATransaction(t, 1, nil) })
	t.Run("none", func(t *testing.T) { testStopInATransaction(t, 2, withoutCheckpoints) })
}

func testStopInATransaction(t *testing.T, copies int, edit func(*config.Config)) {
	w := newWorld(t, newest(t), edit)
	w.cfg.Kafka.MaxRecord = 1 << 10
	first := w.order("k", "0")
	before := w.insertLSN()
	w.exec("BEGIN")
	part := concat(w.order("k", "1"), w.order("k", "2"))
	rest := concat(w.order("k", `"`+noise(2000, 1)+`"`), w.order("k", "4"))
	w.exec("COMMIT")
	w.run("").mustStopBefore(w, before, "kafka.max_record")
	w.mustPublish("order", concat(first, part))

	w.cfg.Kafka.MaxRecord = 1 << 20
	w.drainAll()
	again := part[:0:0]
	if copies == 2 {
		again = part
	}
	w.mustPublish("order", concat(first, part, again, rest))
	positions := w.positions("order")
	for _, e := range part {
		if p := positions[e.id]; len(p) != copies || p[0] != p[copies-1] {
			t.Errorf("positions of an event: %q", p)
		}
	}
}
