package servers

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func startStandby(t *testing.T, primary *PG, opts StandbyOptions) *PG {
	t.Helper()
	start := time.Now()
	standby, err := primary.Standby(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("standby of postgres %s: ready after %v", primary.version, time.Since(start).Round(time.Millisecond))
	return standby
}

// awaitValue waits until the query has this value.
func awaitValue(t *testing.T, pg *PG, query, want string) {
	t.Helper()
	ctx, cancel := shutdownContext()
	defer cancel()
	err := until(ctx, func() error {
		got, err := pg.queryValue(ctx, query)
		if err == nil && got != want {
			err = fmt.Errorf("got %s, want %s", got, want)
		}
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v; the server's log:\n%s", query, err, pg.Log())
	}
}

func TestStandby(t *testing.T) {
	for _, version := range PostgresVersions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			testStandby(t, version)
		})
	}
}

// testStandby copies a server that has a slot and is written to, and has the copy follow it, fall behind and take over.
func testStandby(t *testing.T, version string) {
	primary := startPostgres(t, version, PostgresOptions{})
	mustExec(t, primary, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')", "CREATE TABLE t AS SELECT 1 AS i")
	standby := startStandby(t, primary, StandbyOptions{Slot: "standby", Settings: map[string]string{"application_name": "mine"}})
	mustExec(t, primary, "INSERT INTO t VALUES (10)")
	awaitValue(t, standby, "SELECT sum(i)::text FROM t", "11")
	wantValue(t, standby, "SELECT pg_is_in_recovery()::text", "true")
	wantValue(t, standby, "SELECT count(*)::text FROM pg_replication_slots", "0")
	wantValue(t, standby, "SHOW application_name", "mine")
	wantValue(t, primary, "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots WHERE slot_type = 'physical'", "standby")

	if err := standby.Stop("fast"); err != nil {
		t.Fatal(err)
	}
	mustExec(t, primary, "INSERT INTO t VALUES (100)")
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(standby.Start(t.Context()), standby.Promote(t.Context())); err != nil {
		t.Fatal(err)
	}
	mustExec(t, standby, "INSERT INTO t VALUES (1000)")
	wantValue(t, standby, "SELECT sum(i)::text FROM t", "1011")
	wantValue(t, standby, "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)", "00000002")
	if err := standby.Promote(t.Context()); err == nil {
		t.Error("promote a primary: got no error")
	}
}

func TestStandbySyncsSlots(t *testing.T) {
	for _, version := range []string{"17", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			primary := startPostgres(t, version, PostgresOptions{})
			standby := startStandby(t, primary, StandbyOptions{Slot: "standby", SyncSlots: true})
			mustExec(t, primary, "SELECT pg_create_logical_replication_slot('s', 'pgoutput', false, false, true)")
			if err := standby.SetConf(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			awaitValue(t, standby, "SELECT coalesce(max(slot_name)::text, '') FROM pg_replication_slots WHERE synced AND NOT temporary", "s")
			if err := errors.Join(primary.Stop("fast"), standby.Promote(t.Context())); err != nil {
				t.Fatal(err)
			}
			mustExec(t, standby, "CREATE TABLE t ()", "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL, 'proto_version', '1', 'publication_names', 'p')")
		})
	}
}

// A standby that cannot be made says why.
func TestStandbyFailure(t *testing.T) {
	t.Parallel()
	primary := startPostgres(t, "18", PostgresOptions{})
	tests := []struct {
		opts StandbyOptions
		want string
	}{
		{StandbyOptions{Slot: "No Slot"}, "No Slot"},
		{StandbyOptions{Slot: "standby", Settings: map[string]string{"no_such_setting": "1"}}, "no_such_setting"},
		{StandbyOptions{Slot: "standby"}, "already exists"},
	}
	for _, test := range tests {
		if _, err := primary.Standby(t.Context(), test.opts); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Standby(%+v): got error %v, want one with %q", test.opts, err, test.want)
		}
	}
}
