package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func startPostgres(t *testing.T, version string, opts PostgresOptions) *PG {
	t.Helper()
	start := time.Now()
	pg, err := Postgres(t.Context(), version, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("postgres %s: %v from nothing to ready", version, time.Since(start).Round(time.Millisecond))
	return pg
}

func connect(t *testing.T, pg *PG) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pg.DSN("postgres"))
	if err != nil {
		t.Fatalf("connect: %v; the server's log:\n%s", err, pg.Log())
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // the server may have been killed
	return conn
}

func mustExec(t *testing.T, pg *PG, statements ...string) {
	t.Helper()
	conn := connect(t, pg)
	for _, statement := range statements {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func wantValue(t *testing.T, pg *PG, query, want string) {
	t.Helper()
	got, err := pg.queryValue(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v; the server's log:\n%s", query, err, pg.Log())
	}
	if got != want {
		t.Errorf("%s: got %s, want %s", query, got, want)
	}
}

func TestPostgres(t *testing.T) {
	for _, version := range PostgresVersions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			testPostgres(t, version)
		})
	}
}

func testPostgres(t *testing.T, version string) {
	pg := startPostgres(t, version, PostgresOptions{})
	wantValue(t, pg, "SELECT split_part(version(), '.', 1)", "PostgreSQL "+version)
	mustExec(t, pg,
		"SELECT pg_create_logical_replication_slot('s', 'pgoutput')",
		"CREATE TABLE t (i int)",
		"INSERT INTO t VALUES (1)")

	if err := pg.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantValue(t, pg, "SELECT sum(i)::text FROM t", "1")
	wantValue(t, pg, "SELECT plugin::text FROM pg_replication_slots", "pgoutput")

	for _, mode := range []string{"smart", "immediate"} {
		mustExec(t, pg, "INSERT INTO t VALUES (10)")
		if err := pg.Stop(mode); err != nil {
			t.Fatal(err)
		}
		if conn, err := pgx.Connect(t.Context(), pg.DSN("postgres")); err == nil {
			t.Errorf("connect after a %s stop: got %v, want an error", mode, conn)
		}
		if err := pg.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantValue(t, pg, "SELECT sum(i)::text FROM t", "21")
	testKill(t, pg)
}

// testKill kills the server while a backend and a walsender are busy.
func testKill(t *testing.T, pg *PG) {
	busy := connect(t, pg)
	pid := int(busy.PgConn().PID())
	ended := make(chan error)
	go func() {
		_, err := busy.Exec(context.Background(), "SELECT sum(i) FROM generate_series(1, 1e12) AS i")
		ended <- err
	}()
	mustExec(t, pg, "INSERT INTO t VALUES (100)")
	if !alive(pid) {
		t.Fatalf("backend %d does not live", pid)
	}
	if err := pg.Kill(); err != nil {
		t.Fatal(err)
	}
	if alive(pid) {
		t.Errorf("backend %d lives after Kill", pid)
	}
	if err := <-ended; err == nil {
		t.Error("the statement that ran at the Kill: got no error")
	}
	start := time.Now()
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v to recover from Kill", time.Since(start).Round(time.Millisecond))
	if want := "was not properly shut down; automatic recovery in progress"; !strings.Contains(pg.Log(), want) {
		t.Errorf("got no %q in the log:\n%s", want, pg.Log())
	}
	wantValue(t, pg, "SELECT sum(i)::text FROM t", "121")
	wantValue(t, pg, "SELECT plugin::text FROM pg_replication_slots", "pgoutput")
}

// After Kill, too, Close leaves nothing behind.
func TestPostgresCloseAfterKill(t *testing.T) {
	t.Parallel()
	pg, err := Postgres(t.Context(), "17", PostgresOptions{})
	if err != nil {
		t.Fatal(err)
	}
	memory := func() string {
		t.Helper()
		segments, err := os.ReadFile("/proc/sysvipc/shm")
		if err != nil {
			t.Fatal(err)
		}
		return string(segments)
	}
	pid := fmt.Sprintf(" %d ", pg.process.cmd.Process.Pid) // in the column of the creator
	killErr := pg.Kill()
	if !strings.Contains(memory(), pid) {
		t.Errorf("want shared memory of process%sto be left by Kill, got:\n%s", pid, memory())
	}
	if err := errors.Join(killErr, pg.Close()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(memory(), pid) {
		t.Errorf("want no shared memory of process%safter Close, got:\n%s", pid, memory())
	}
	if _, err := os.Stat(pg.scratch.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat %s: got error %v, want that it does not exist", pg.scratch.dir, err)
	}
}

func TestPostgresOptions(t *testing.T) {
	t.Parallel()
	pg := startPostgres(t, "18", PostgresOptions{
		Fsync:    true,
		Settings: map[string]string{"max_wal_senders": "3", "application_name": `it's a \ name`},
		InitArgs: []string{"--encoding=SQL_ASCII"},
	})
	for setting, want := range map[string]string{
		"fsync":                 "on",
		"max_wal_senders":       "3",
		"max_replication_slots": "20",
		"wal_level":             "logical",
		"server_encoding":       "SQL_ASCII",
		"application_name":      `it's a \ name`,
	} {
		wantValue(t, pg, "SHOW "+setting, want)
	}
	err := pg.SetConf(t.Context(), map[string]string{"wal_sender_timeout": "3s", "max_wal_senders": "4"})
	if err != nil {
		t.Fatal(err)
	}
	wantValue(t, pg, "SHOW wal_sender_timeout", "3s")
	wantValue(t, pg, "SHOW max_wal_senders", "3")
	if err := pg.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantValue(t, pg, "SHOW wal_sender_timeout", "3s")
	wantValue(t, pg, "SHOW max_wal_senders", "4")
	if err := pg.Start(t.Context()); err == nil {
		t.Error("start a running server: got no error")
	}
	if err := pg.Stop("slow"); err == nil {
		t.Error("stop in an unknown mode: got no error")
	}
}

// A server that cannot start says why.
func TestPostgresFailure(t *testing.T) {
	t.Parallel()
	tests := []struct {
		version string
		opts    PostgresOptions
		want    string
	}{
		{"13", PostgresOptions{}, "want one of 14, 15"},
		{"17", PostgresOptions{InitArgs: []string{"--encoding=KLINGON"}}, "KLINGON"},
		{"17", PostgresOptions{Settings: map[string]string{"no_such_setting": "1"}}, "no_such_setting"},
	}
	for _, test := range tests {
		if _, err := Postgres(t.Context(), test.version, test.opts); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Postgres(%s, %+v): got error %v, want one with %q", test.version, test.opts, err, test.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Postgres(ctx, "17", PostgresOptions{}); err == nil {
		t.Error("Postgres with a cancelled context: got no error")
	}
}
