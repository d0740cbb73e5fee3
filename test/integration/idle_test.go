package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/walferry/walferry/bridge"
)

// An outbox without events must not keep the WAL that other tables write.
func TestIdleOutboxFollowsTheWAL(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		w.exec("CREATE TABLE other (id int, filler text)")
		r := w.run("")
		r.awaitState(bridge.Streaming)
		start := w.insertLSN()
		for range 4 {
			w.exec("INSERT INTO other SELECT n, repeat('x', 500) FROM generate_series(1, 10000) n")
			w.exec("DELETE FROM other")
			began := time.Now()
			w.awaitCaughtUp()
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("confirmed_flush_lsn followed after %s", took)
			}
		}
		written := int64(w.insertLSN() - start)
		if written < 16<<20 {
			t.Fatalf("only %d bytes of WAL were written", written)
		}
		// Postgres frees WAL at what it noted of running transactions, which a checkpoint does.
		w.exec("CHECKPOINT")
		var kept int64
		await(t, "the WAL to be freed", func() error {
			kept = int64(w.lsn("SELECT pg_current_wal_lsn()::text") - w.lsn("SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.prefix))
			if kept > 1<<20 {
				return fmt.Errorf("%d bytes of WAL are kept", kept)
			}
			return nil
		})
		s := r.bridge.Status()
		if s.Sessions != 1 || !s.Ready || s.Inflight != 0 || !s.LastEvent.IsZero() {
			t.Errorf("status %+v", s)
		}
		r.drain()
		if records := w.records(); len(records) != 0 {
			t.Errorf("%d records", len(records))
		}
	})
}
