package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/recovery"
	"github.com/walferry/walferry/bridge/setup"
	"github.com/walferry/walferry/internal/servers"
)

// recovered is what a recovery came to.
type recovered struct {
	*recovery.Report
	said []string
	sent []string // ids, in their order
}

// recovering runs a recovery of the world, or its backfill, in this process.
func (w *world) recovering(ctx context.Context, run func(context.Context, recovery.Options) (*recovery.Report, error), edit func(*recovery.Options)) (r recovered, err error) {
	w.t.Helper()
	o := recovery.Options{
		Options: w.options("", zerolog.Disabled),
		Say:     func(line string) { r.said = append(r.said, line) },
		Sent: func(s recovery.Sent) error {
			r.sent = append(r.sent, s.ID)
			return nil
		},
	}
	if edit != nil {
		edit(&o)
	}
	r.Report, err = run(ctx, o)
	return r, err
}

// recover runs `walferry recover`, which must succeed.
func (w *world) recover() recovered {
	w.t.Helper()
	r, err := w.recovering(w.t.Context(), recovery.Run, nil)
	if err != nil {
		w.t.Fatalf("recover: %v; it said:\n%s", err, strings.Join(r.said, "\n"))
	}
	return r
}

// mustSend fails unless these events were sent, in their order, and the report says so.
func (r recovered) mustSend(t *testing.T, want []event) {
	t.Helper()
	var ids []string
	for _, e := range want {
		ids = append(ids, e.id)
	}
	if !slices.Equal(r.sent, ids) {
		t.Errorf("sent %d rows %q, want %d: %q", len(r.sent), r.sent, len(ids), ids)
	}
	if n := int64(len(ids)); r.Report.Sent != n || r.Missing != n || n > 0 && (r.First.ID != ids[0] || r.Last.ID != ids[n-1]) {
		t.Errorf("the report says %+v, want %d", r.Report, n)
	}
}

func (r recovered) mustSay(t *testing.T, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(strings.Join(r.said, "\n"), part) {
			t.Errorf("it does not say %q, but:\n%s", part, strings.Join(r.said, "\n"))
		}
	}
}

// dropOwnSlot drops the world's slot as soon as nobody holds it.
func (w *world) dropOwnSlot() { w.dropSlot(w.prefix) }

// another opens another connection to the world's database.
func (w *world) another() *pgx.Conn {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), dsnOf(w.t, w.admin, w.prefix))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// on runs statements on another connection.
func (w *world) on(conn *pgx.Conn, statements ...string) {
	w.t.Helper()
	for _, sql := range statements {
		if _, err := conn.Exec(w.t.Context(), sql); err != nil {
			w.t.Fatalf("%s: %v", sql, err)
		}
	}
}

const insertOrder = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES ('%s', 'order', 'k', 'T', '%d')"

// numberedID returns a uuid.
func numberedID(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

// What the slot has not sent of what is in the table is published, once and in order, and the new slot goes on behind it:
// also of savepoints, and of a transaction that was open when the slot was lost and commits when there is another.
func TestRecoverADroppedSlot(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		before := w.order("k", `"published"`)
		long, other := w.another(), w.another()
		w.on(long, "BEGIN", fmt.Sprintf(insertOrder, numberedID(1), 1), "SAVEPOINT a")
		w.drainAll()
		w.awaitNoWalsender()
		// Of a lower transaction ID than what is published, and of a higher one, in a savepoint of it.
		w.on(other, "BEGIN", "SAVEPOINT a", fmt.Sprintf(insertOrder, numberedID(2), 2), "SAVEPOINT b", fmt.Sprintf(insertOrder, numberedID(3), 3), "ROLLBACK TO b", fmt.Sprintf(insertOrder, numberedID(4), 4), "COMMIT")
		missing := []event{{id: numberedID(2), key: "k", value: "2"}, {id: numberedID(4), key: "k", value: "4"}}
		missing = concat(missing, w.order("k", `"missing"`))
		w.exec(fmt.Sprintf(insertOrder, numberedID(99), 99))
		w.exec("DELETE FROM outbox WHERE id = $1", numberedID(99))
		w.dropOwnSlot()
		w.mustStop(bridge.Gap, "does not exist any more", "walferry recover")
		dry, err := w.recovering(t.Context(), recovery.Run, func(o *recovery.Options) { o.DryRun = true })
		if err != nil || dry.Missing != 3 || len(dry.sent) != 0 {
			t.Errorf("dry run: %+v, %v", dry, err)
		}
		dry.mustSay(t, "rows that were deleted before this", "or logical messages", "by transaction ID", "3 of them are in no topic")
		w.mustPublish("order", before)

		done := make(chan recovered)
		go func() { done <- w.recover() }()
		w.awaitSlotWaits()
		w.on(long, fmt.Sprintf(insertOrder, numberedID(5), 5), "COMMIT")
		r := <-done
		// The row of the savepoint has a transaction ID of its own, which is later.
		sent := concat([]event{{id: numberedID(1), key: "k", value: "1"}}, missing, []event{{id: numberedID(5), key: "k", value: "5"}})
		r.mustSend(t, sent)
		late := w.order("k", `"late"`)
		w.drainAll()
		w.mustPublish("order", concat(before, sent, late))
		if w.serverVersion() >= 17 && w.query("SELECT failover::text FROM pg_replication_slots WHERE slot_name = $1", w.prefix) != "true" {
			t.Error("the new slot does not synchronize to standbys")
		}
		for _, e := range w.records() {
			if source, position := header(e, "walferry-source"), header(e, "walferry-position"); (source == "table") != (position == "") || (source == "table") != slices.Contains(r.sent, header(e, "id")) {
				t.Errorf("event %s has source %q and position %q", header(e, "id"), source, position)
			}
		}
		_, err = w.recovering(t.Context(), recovery.Run, nil)
		mustSay(t, asError(t, err), bridge.Fatal, "there is nothing to recover", "walferry run")
	})
}

// A snapshot lists no subtransactions: it takes the row of a savepoint for visible although its transaction is open.
func TestRecoverTheRowOfASavepoint(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	long := w.another()
	w.on(long, "BEGIN", "SELECT pg_current_xact_id()", "SAVEPOINT a", fmt.Sprintf(insertOrder, numberedID(1), 1), "RELEASE a")
	var xid uint64
	if err := long.QueryRow(t.Context(), "SELECT xmin::text::bigint FROM outbox").Scan(&xid); err != nil {
		t.Fatal(err)
	}
	r := w.run("")
	var want []event
	await(t, "a checkpoint with a later snapshot", func() error {
		want = concat(want, w.order("k", `"published"`))
		c, err := bridge.ReadCheckpoint(t.Context(), w.options("", zerolog.Disabled))
		if err != nil || c == nil {
			return fmt.Errorf("no checkpoint: %w", err)
		}
		if visible := w.query("SELECT pg_visible_in_snapshot($1::text::xid8, $2::text::pg_snapshot)::text", fmt.Sprint(xid), c.Snapshot); visible != "true" {
			return errors.New("its snapshot is " + c.Snapshot)
		}
		return nil
	})
	w.awaitCaughtUp()
	r.drain()
	w.awaitNoWalsender()
	w.on(long, "COMMIT")
	w.dropOwnSlot()
	w.recover().mustSend(t, []event{{id: numberedID(1)}})
	w.mustPublish("order", concat(want, []event{{id: numberedID(1), key: "k", value: "1"}}))
}

// awaitSlotWaits waits until a temporary slot is being made, which waits for transactions to end.
func (w *world) awaitSlotWaits() {
	w.t.Helper()
	await(w.t, "a temporary slot", func() error {
		if n := w.query("SELECT count(*)::text FROM pg_replication_slots WHERE temporary AND database = current_database()"); n == "0" {
			return errors.New("there is none")
		}
		return nil
	})
}

// An invalidated slot is replaced.
func TestRecoverALostSlot(t *testing.T) {
	for _, version := range servers.PostgresVersions() {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t, forgetfulPostgres(t, version).DSN("postgres"), nil)
			w.exec("CREATE TABLE filler (id int, filler text)")
			before := w.order("k", "1")
			w.drainAll()
			missing := w.order("k", "2")
			w.loseSlot()
			w.mustStop(bridge.Lost, "walferry recover")
			r := w.recover()
			r.mustSend(t, missing)
			r.mustSay(t, "is lost", "dropped the lost slot")
			late := w.order("k", "3")
			w.drainAll()
			w.mustPublish("order", concat(before, missing, late))
		})
	}
}

// Rows that are older than the slot are published with it, and each row that is written meanwhile comes once.
func TestBackfill(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", nil)
		w.exec("CREATE TABLE outbox (id uuid, aggregatetype text, aggregateid text, type text, payload jsonb)")
		want := map[string]bool{}
		for i := range 200 {
			w.exec(fmt.Sprintf(insertOrder, numberedID(i), i))
			want[numberedID(i)] = true
		}
		writers := w.writeBeside(4, 30, want)
		r, err := w.recovering(t.Context(), setup.Backfill, nil)
		if err != nil {
			t.Fatal(err)
		}
		writers()
		if r.Report.Sent < 200 {
			t.Errorf("%d rows were sent, want 200 at least", r.Report.Sent)
		}
		w.drainAll()
		w.mustHold(want)
		_, err = w.recovering(t.Context(), setup.Backfill, nil)
		mustSay(t, asError(t, err), bridge.Fatal, "exists already", "walferry recover")
	})
}

// writeBeside has writers insert rows, n each, until the function that it returns has waited for them; the ids are added to want.
func (w *world) writeBeside(writers, n int, want map[string]bool) (wait func()) {
	w.t.Helper()
	ids := make(chan string)
	for i := range writers {
		conn := w.another()
		go func() {
			for j := range n {
				id := numberedID(1_000_000*(i+1) + j)
				_, err := conn.Exec(w.t.Context(), fmt.Sprintf(insertOrder, id, j))
				if err != nil {
					w.t.Error(err)
				}
				ids <- id
			}
		}()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range writers * n {
			want[<-ids] = true
		}
	}()
	return func() { <-done }
}

// mustHold fails unless the world's topics have exactly these ids, each once.
func (w *world) mustHold(want map[string]bool) {
	w.t.Helper()
	got := map[string]int{}
	for _, r := range w.records() {
		got[header(r, "id")]++
	}
	for id := range want {
		if got[id] != 1 {
			w.t.Errorf("event %s is %d times in the topics", id, got[id])
		}
	}
	if len(got) != len(want) {
		w.t.Errorf("%d events in the topics, want %d", len(got), len(want))
	}
}
