package integration

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

// event is what a record must be, or is: id header, key and value.
type event struct {
	id, key, value string
	tombstone      bool // there is no value
}

// emit runs a statement that returns id, key and value of outbox rows in the table's own
// text form, and returns what must become of them: INSERT … RETURNING.
func (w *world) emit(sql string, args ...any) []event {
	w.t.Helper()
	// The simple protocol sends texts, and survives changes of the table.
	rows, err := w.conn.Query(w.t.Context(), sql, append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...)
	if err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (event, error) {
		var id, key string
		var value *string
		if err := row.Scan(&id, &key, &value); err != nil {
			return event{}, err
		}
		if value == nil {
			return event{id: id, key: key, tombstone: true}, nil
		}
		return event{id: id, key: key, value: *value}, nil
	})
	if err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return events
}

// returning makes an INSERT's rows the rows that emit reads.
const returning = " RETURNING id::text, aggregateid::text, payload::text"

// order inserts a row into the default outbox.
func (w *world) order(key, payload string) []event {
	w.t.Helper()
	return w.emit("INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('order', $1, 'T', $2)"+returning, key, payload)
}

// published returns the records of one of the world's topics as events, in order.
func (w *world) published(topic string) []event {
	w.t.Helper()
	var events []event
	for _, r := range w.records() {
		if r.Topic == w.prefix+"."+topic {
			events = append(events, eventOf(r))
		}
	}
	return events
}

func eventOf(r *kgo.Record) event {
	return event{header(r, "id"), string(r.Key), string(r.Value), r.Value == nil}
}

// mustPublish fails unless exactly the wanted events are in a topic, in their order.
func (w *world) mustPublish(topic string, want []event) {
	w.t.Helper()
	mustEqual(w.t, topic, w.published(topic), want)
}

func mustEqual(t *testing.T, what string, got, want []event) {
	t.Helper()
	if len(want) == 0 {
		t.Errorf("%s: the test wants no event at all", what)
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("%s: event %d is %s, want %s", what, i, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d events, want %d", what, len(got), len(want))
	}
}

// String shortens long values.
func (e event) String() string {
	value := fmt.Sprintf("%q", e.value[:min(len(e.value), 200)])
	if e.tombstone {
		value = "a tombstone"
	}
	return fmt.Sprintf("{%s %.100q %s of %d bytes}", e.id, e.key, value, len(e.value))
}

// positions returns the position header of each event of a topic by its id.
func (w *world) positions(topic string) map[string][]string {
	w.t.Helper()
	positions := map[string][]string{}
	for _, r := range w.records() {
		if r.Topic == w.prefix+"."+topic {
			id := header(r, "id")
			positions[id] = append(positions[id], header(r, "walferry-position"))
		}
	}
	return positions
}

// confirmed returns the slot's confirmed_flush_lsn.
func (w *world) confirmed() pglogrepl.LSN {
	w.t.Helper()
	return w.lsn("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.cfg.Databases[0].Slot)
}

func (w *world) lsn(sql string, args ...any) pglogrepl.LSN {
	w.t.Helper()
	lsn, err := pglogrepl.ParseLSN(w.query(sql, args...))
	if err != nil {
		w.t.Fatal(err)
	}
	return lsn
}

// insertLSN returns the present end of WAL: what is written from now on lies behind it.
func (w *world) insertLSN() pglogrepl.LSN {
	w.t.Helper()
	return w.lsn("SELECT pg_current_wal_insert_lsn()::text")
}

// awaitCaughtUp waits until a running bridge has confirmed everything so far.
func (w *world) awaitCaughtUp() {
	w.t.Helper()
	end, err := pglogrepl.ParseLSN(w.walEnd())
	if err != nil {
		w.t.Fatal(err)
	}
	await(w.t, "everything to be confirmed", func() error {
		if confirmed := w.confirmed(); confirmed < end {
			return fmt.Errorf("%s of %s is confirmed", confirmed, end)
		}
		return nil
	})
}

// dropRole drops a role that owns nothing, which belongs to the whole server.
func (w *world) dropRole(role string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsnOf(w.t, w.admin, w.prefix)+"&default_transaction_read_only=off")
	if err != nil {
		return // the test has stopped its server
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, fmt.Sprintf("DROP OWNED BY %s; DROP ROLE %[1]s", role)); err != nil {
		w.t.Error(err)
	}
}

// serverVersion returns the major version of the world's Postgres.
func (w *world) serverVersion() int {
	w.t.Helper()
	version, err := strconv.Atoi(w.query("SELECT (current_setting('server_version_num')::int / 10000)::text"))
	if err != nil {
		w.t.Fatal(err)
	}
	return version
}

// concat joins lists of events.
func concat(lists ...[]event) []event { return slices.Concat(lists...) }
