package walsender_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/walferry/walferry/internal/walsender"
)

func TestConnect(t *testing.T) {
	bubble(t, walsender.Config{Settings: map[string]string{"server_version": "17.7"}},
		func(t *testing.T, srv *walsender.Server) {
			c := config(t, srv, "replication=database application_name=walferry")
			c.RuntimeParams["options"] = "-c wal_sender_timeout=10s"
			tls, err := pgconn.ParseConfig("host=127.0.0.1 user=ferry dbname=shop sslmode=prefer")
			if err != nil {
				t.Fatal(err)
			}
			c.TLSConfig, c.Fallbacks = tls.TLSConfig, tls.Fallbacks // asks for TLS, hears no, goes on without
			conn, err := pgconn.ConnectConfig(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())
			if got, want := conn.ParameterStatus("server_version"), "17.7"; got != want {
				t.Errorf("server_version: got %q, want %q", got, want)
			}
			session := srv.Sessions()[0]
			if got, want := conn.PID(), session.PID(); got != want {
				t.Errorf("PID: got %d, want %d", got, want)
			}
			for name, want := range map[string]string{
				"user": "ferry", "database": "shop", "replication": "database", "application_name": "walferry",
				"options": "-c wal_sender_timeout=10s",
			} {
				if got := session.Startup()[name]; got != want {
					t.Errorf("startup parameter %s: got %q, want %q", name, got, want)
				}
			}
		})
}

func TestReplicationCommands(t *testing.T) {
	history := "1\t0/1600000\tno recovery target specified\n"
	bubble(t, walsender.Config{SystemID: "42", Timeline: 2, History: map[int32]string{2: history}},
		func(t *testing.T, srv *walsender.Server) {
			conn := connect(t, srv)
			end := srv.AdvanceWAL(1000)
			system, err := pglogrepl.IdentifySystem(t.Context(), conn)
			if err != nil {
				t.Fatal(err)
			}
			want := pglogrepl.IdentifySystemResult{SystemID: "42", Timeline: 2, XLogPos: end, DBName: "shop"}
			if system != want {
				t.Errorf("IDENTIFY_SYSTEM: got %+v, want %+v", system, want)
			}
			got, err := pglogrepl.TimelineHistory(t.Context(), conn, 2)
			if err != nil {
				t.Fatal(err)
			}
			if got.FileName != "00000002.history" || string(got.Content) != history {
				t.Errorf("TIMELINE_HISTORY: got %s %q, want 00000002.history %q", got.FileName, got.Content, history)
			}
			if _, err := pglogrepl.TimelineHistory(t.Context(), conn, 1); code(err) != "58P01" {
				t.Errorf("TIMELINE_HISTORY 1: got %v, want 58P01", err)
			}
			results, err := conn.Exec(t.Context(), "SHOW wal_level").ReadAll()
			if err != nil {
				t.Fatal(err)
			}
			if got := string(results[0].Rows[0][0]); got != "logical" {
				t.Errorf("SHOW wal_level: got %q, want logical", got)
			}
			if _, err := conn.Exec(t.Context(), "SHOW no_such_setting").ReadAll(); code(err) != "42704" {
				t.Errorf("SHOW no_such_setting: got %v, want 42704", err)
			}
		})
}

func TestSQL(t *testing.T) {
	bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
		var got string
		srv.Handle("slot", func(sql string) walsender.Result {
			got = sql
			return walsender.Result{
				Columns: []string{"active", "confirmed_flush_lsn", "wal_status", "safe_wal_size"},
				OIDs:    []uint32{pgtype.BoolOID, pgtype.TextOID, pgtype.TextOID, pgtype.Int8OID},
				Rows:    [][]*string{{new("t"), new(srv.Confirmed().String()), nil, new("12")}},
			}
		})
		conn := query(t, srv)
		sql := "/* walferry:slot */ select ';', active -- a comment; with semicolon\nfrom pg_replication_slots"
		var active bool
		var lsn string
		var status *string
		var size int64
		if err := conn.QueryRow(t.Context(), sql).Scan(&active, &lsn, &status, &size); err != nil {
			t.Fatal(err)
		}
		if got != sql {
			t.Errorf("the handler got %q, want %q", got, sql)
		}
		if !active || lsn != walStart.String() || status != nil || size != 12 {
			t.Errorf("row: got %t %s %v %d, want true %s nil 12", active, lsn, status, size, walStart)
		}
		if err := conn.Ping(t.Context()); err != nil { // sends "-- ping"
			t.Errorf("Ping: %v", err)
		}
		if _, err := conn.Exec(t.Context(), ";"); err != nil {
			t.Errorf("an empty query: %v", err)
		}
		if queries := srv.Sessions()[0].Queries(); queries[len(queries)-1] != ";" {
			t.Errorf("queries: got %q, want the last to be %q", queries, ";")
		}
	})
}

func TestSQLStatementsUpToTheFirstError(t *testing.T) {
	bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
		var ran []string
		srv.Handle("set", func(sql string) walsender.Result {
			ran = append(ran, sql)
			return walsender.Result{Tag: "SET"}
		})
		srv.Handle("fail", func(string) walsender.Result {
			return walsender.Result{Err: walsender.Error("42501", "permission denied for %s", "slot")}
		})
		conn := query(t, srv)
		_, err := conn.Exec(t.Context(), "/* walferry:set */ set a = 1; /* walferry:fail */ x; /* walferry:set */ set b = 2")
		if code(err) != "42501" {
			t.Errorf("Exec: got %v, want 42501", err)
		}
		if want := []string{"/* walferry:set */ set a = 1"}; !slices.Equal(ran, want) {
			t.Errorf("ran %q, want %q", ran, want)
		}
		tag, err := conn.Exec(t.Context(), "/* walferry:set */ set c = 3")
		if tag.String() != "SET" || err != nil {
			t.Errorf("after an error: got %q, %v, want SET", tag, err)
		}
	})
}

// TestUnscripted checks that a test which uses what it did not script fails with a word about it.
func TestUnscripted(t *testing.T) {
	tests := []struct {
		name, sql string
		args      []any
		code      string
		says      string
	}{
		{"tag", "/* walferry:lag */ select $1", []any{pgx.QueryExecModeSimpleProtocol, 1}, "0A000", "walferry:lag"},
		{"no tag", "select 1", nil, "0A000", "select 1"},
		{"replication command", "IDENTIFY_SYSTEM", nil, "0A000", "IDENTIFY_SYSTEM"},
		{"extended protocol", "select $1", []any{pgx.QueryExecModeDescribeExec, 1}, "08P01", "Simple"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
				_, err := query(t, srv).Exec(t.Context(), tt.sql, tt.args...)
				if code(err) != tt.code || !strings.Contains(fmt.Sprint(err), tt.says) {
					t.Errorf("got %v, want %s with %q", err, tt.code, tt.says)
				}
			})
		})
	}
}

func TestStartReplicationRefused(t *testing.T) {
	tests := []struct{ sql, code string }{
		{`START_REPLICATION SLOT "other" LOGICAL 0/0 (proto_version '1', publication_names 'p')`, "42704"},
		{`START_REPLICATION SLOT "ferry" LOGICAL 0/0 (proto_version '2', publication_names 'p')`, "0A000"},
		{`START_REPLICATION SLOT "ferry" LOGICAL 0/0 (proto_version '1')`, "22023"},
		{`START_REPLICATION SLOT "ferry" LOGICAL 0/0`, "0A000"},
		{`START_REPLICATION SLOT "ferry" PHYSICAL 0/0`, "42601"},
	}
	for _, tt := range tests {
		t.Run(tt.sql, func(t *testing.T) {
			bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
				conn := connect(t, srv)
				if _, err := conn.Exec(t.Context(), tt.sql).ReadAll(); code(err) != tt.code {
					t.Errorf("got %v, want %s", err, tt.code)
				}
				if err := start(t, conn, 0); err != nil {
					t.Errorf("START_REPLICATION after an error: %v", err)
				}
			})
		})
	}
}
