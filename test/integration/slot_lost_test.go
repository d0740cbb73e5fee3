package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/internal/servers"
)

// forgetfulPostgres starts a server that keeps no more than 2 MB of WAL for a slot.
func forgetfulPostgres(t *testing.T, version string) *servers.PG {
	t.Helper()
	return ownPostgres(t, version, servers.PostgresOptions{
		InitArgs: []string{"--wal-segsize=1"},
		Settings: map[string]string{"max_slot_wal_keep_size": "2MB", "min_wal_size": "2MB", "max_wal_size": "2MB"},
	})
}

// loseSlot writes WAL until the server has thrown away what the slot needs.
func (w *world) loseSlot() {
	w.t.Helper()
	await(w.t, "the slot to be lost", func() error {
		w.exec("INSERT INTO filler SELECT n, repeat('x', 500) FROM generate_series(1, 5000) n")
		w.exec("CHECKPOINT")
		if status := w.query("SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1", w.prefix); status != "lost" {
			return fmt.Errorf("wal_status is %s", status)
		}
		return nil
	})
}

// A lost slot is the end: no number of attempts brings its WAL back.
func TestSlotIsLost(t *testing.T) {
	for _, version := range servers.PostgresVersions() {
		t.Run(version, func(t *testing.T) {
			pg := forgetfulPostgres(t, version)
			says := []string{"is lost", "walferry recover", "max_slot_wal_keep_size"}
			t.Run("while running", func(t *testing.T) {
				w := newWorld(t, pg.DSN("postgres"), nil)
				w.exec("CREATE TABLE filler (id int, filler text)")
				want := w.order("k", "1")
				r := w.run("")
				r.awaitState(bridge.Streaming)
				w.awaitCaughtUp()
				// An open transaction holds restart_lsn, however quickly the bridge confirms.
				holder, err := pgx.Connect(t.Context(), dsnOf(t, w.admin, w.prefix))
				if err != nil {
					t.Fatal(err)
				}
				defer holder.Close(t.Context())
				if _, err := holder.Exec(t.Context(), "BEGIN; INSERT INTO filler VALUES (0)"); err != nil {
					t.Fatal(err)
				}
				w.loseSlot()
				r.mustStop(bridge.Lost, says...)
				if s := r.bridge.Status(); s.Sessions != 1 {
					t.Errorf("%d sessions, want 1", s.Sessions)
				}
				w.mustPublish("order", want)
			})
			t.Run("at the start", func(t *testing.T) {
				w := newWorld(t, pg.DSN("postgres"), nil)
				w.exec("CREATE TABLE filler (id int, filler text)")
				w.order("k", "1")
				w.loseSlot()
				r := w.mustStop(bridge.Lost, says...)
				if s := r.bridge.Status(); s.Sessions != 0 {
					t.Errorf("%d sessions, want none", s.Sessions)
				}
				mustSay(t, w.setupError(), bridge.Lost, says...)

				config := w.configFile(freeAddr(t))
				_, stderr := walferry(t, "run", "--config", config).exit(66)
				if n := strings.Count(stderr, "is lost"); n != 2 || !strings.Contains(stderr, "walferry recover") {
					t.Errorf("%d lines say that the slot is lost, want one of the log and one at the end, with the hint:\n%s", n, stderr)
				}
				stdout, stderr := walferry(t, "status", "--json", "--config", config).exit(1)
				var reports []struct {
					Slot struct {
						WALStatus string `json:"wal_status"`
					} `json:"slot"`
				}
				if err := json.Unmarshal([]byte(stdout), &reports); err != nil || len(reports) != 1 || reports[0].Slot.WALStatus != "lost" {
					t.Errorf("status of a lost slot: %v: %s", err, stdout)
				}
				if !strings.Contains(stderr, "1 of 1 slots are lost") {
					t.Errorf("status says %q", stderr)
				}
			})
		})
	}
}
