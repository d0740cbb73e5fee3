package integration

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/internal/servers"
)

// Whatever may hide a gap while walferry is down stops it when it comes back, with nothing
// confirmed; --accept-gap goes on, once.
func TestGapsWhileDown(t *testing.T) {
	const recreateSlot = "SELECT pg_drop_replication_slot('SLOT'); SELECT pg_create_logical_replication_slot('SLOT', 'pgoutput')"
	for name, test := range map[string]struct{ sql, says string }{
		"publication recreated":             {"DROP PUBLICATION walferry; CREATE PUBLICATION walferry FOR TABLE outbox WITH (publish = 'insert')", "publication was recreated or altered"},
		"publication altered, altered back": {"ALTER PUBLICATION walferry SET (publish = 'delete'); ALTER PUBLICATION walferry SET (publish = 'insert')", "publication was recreated or altered"},
		"table taken out and put back":      {"ALTER PUBLICATION walferry DROP TABLE outbox; ALTER PUBLICATION walferry ADD TABLE outbox", "public.outbox was taken out of the publication and put back"},
		"slot recreated":                    {"INSERT INTO outbox (aggregatetype, aggregateid, type) VALUES ('order', 'lost', 'T'); " + recreateSlot, "ahead of the checkpoint"},
		"slot advanced":                     {"INSERT INTO outbox (aggregatetype, aggregateid, type) VALUES ('order', 'lost', 'T'); SELECT pg_replication_slot_advance('SLOT', pg_current_wal_lsn())", "ahead of the checkpoint"},
		"slot dropped":                      {"SELECT pg_drop_replication_slot('SLOT')", "does not exist any more"},
	} {
		t.Run(name, func(t *testing.T) {
			onEveryPostgres(t, func(t *testing.T, admin string) {
				w := newWorld(t, admin, nil)
				want := w.order("k", "1")
				w.drainAll()
				await(t, "the slot to be free", func() error {
					if pid := w.query("SELECT coalesce(max(active_pid)::text, '') FROM pg_replication_slots WHERE slot_name = $1", w.prefix); pid != "" {
						return errors.New("walsender " + pid + " holds it")
					}
					return nil
				})
				for statement := range strings.SplitSeq(strings.ReplaceAll(test.sql, "SLOT", w.prefix), ";") {
					w.exec(statement) // each in its own transaction
				}
				w.mustStop(bridge.Gap, test.says, "--accept-gap")
				w.mustPublish("order", want)
				if name == "slot dropped" {
					if _, err := w.tryInit(true); err != nil {
						t.Fatal(err)
					}
				} else {
					o := w.options(w.walEnd(), zerolog.InfoLevel)
					o.AcceptGap = true
					r := w.start(o)
					if err := r.wait(); err != nil {
						t.Fatal(err)
					}
					if !strings.Contains(r.log.String(), "a gap is accepted") {
						t.Errorf("the log does not tell of the gap:\n%s", r.log)
					}
				}
				want = concat(want, w.order("k", "2"))
				w.drainAll()
				w.mustPublish("order", want)
			})
		})
	}
}

// A partition is published because its root is.
func TestRootOfAPartitionWasTakenOut(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", nil)
		w.exec("CREATE TABLE root (id uuid DEFAULT gen_random_uuid(), aggregatetype text, aggregateid text, type text, payload jsonb) PARTITION BY LIST (type)")
		w.exec("CREATE TABLE outbox PARTITION OF root FOR VALUES IN ('T')")
		w.exec("CREATE PUBLICATION walferry FOR TABLE root WITH (publish = 'insert')")
		w.setup()
		want := w.order("k", "1")
		w.drainAll()
		w.mustPublish("order", want)
		w.exec("ALTER PUBLICATION walferry DROP TABLE root")
		w.order("k", "2")
		w.exec("ALTER PUBLICATION walferry ADD TABLE root")
		w.mustStop(bridge.Gap, "public.outbox was taken out of the publication and put back")
	})
}

// A copy of the server's files that is older than the checkpoint has the same system identifier and timeline, and
// writes other transactions where those that are published were.
func TestServerIsRestoredFromAnOlderCopy(t *testing.T) {
	pg := ownPostgres(t, "18", servers.PostgresOptions{})
	w := newWorld(t, pg.DSN("postgres"), nil)
	stop := func(mode string) {
		t.Helper()
		if err := pg.Stop(mode); err != nil {
			t.Fatal(err)
		}
	}
	start := func() {
		t.Helper()
		if err := pg.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.reconnect()
	}
	copied := func(from, to string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "cp", "-a", from, to).CombinedOutput(); err != nil {
			t.Fatalf("copy the server's files: %v: %s", err, out)
		}
	}
	data, older := pg.DataDir(), pg.DataDir()+".older"
	want := w.order("k", "1")
	w.drainAll()
	stop("fast")
	copied(data, older)
	start()
	w.exec("CREATE TABLE filler AS SELECT repeat('x', 500) FROM generate_series(1, 20000)")
	want = concat(want, w.order("k", "2"))
	w.drainAll()
	stop("immediate")
	if err := errors.Join(os.RemoveAll(data), os.Rename(older, data)); err != nil {
		t.Fatal(err)
	}
	start()
	late := w.order("k", "3")
	w.mustStop(bridge.Gap, "before the checkpoint", "restored from an older copy")
	w.mustPublish("order", want)
	o := w.options(w.walEnd(), zerolog.InfoLevel)
	o.AcceptGap = true
	if err := w.start(o).wait(); err != nil {
		t.Fatal(err)
	}
	w.mustPublish("order", concat(want, late))
}
