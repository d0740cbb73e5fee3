package walsender_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/internal/pgoutput"
	"github.com/walferry/walferry/internal/walsender"
)

func TestSlotIsHeldByOne(t *testing.T) {
	bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
		first, second := stream(t, srv, 0), connect(t, srv)
		want := fmt.Sprintf(`replication slot "ferry" is active for PID %d`, first.PID())
		err := start(t, second, 0)
		if code(err) != "55006" || !strings.Contains(err.Error(), want) {
			t.Errorf("second START_REPLICATION: got %v, want 55006 %s", err, want)
		}
		expect(t, first, keepalive(walStart, false))
		srv.Holder().Cut()
		if got := receive(t, first); !strings.Contains(got, syscall.ECONNRESET.Error()) {
			t.Errorf("a cut connection: received %q, want %q", got, syscall.ECONNRESET)
		}
		if err := start(t, second, 0); err != nil {
			t.Errorf("START_REPLICATION with a free slot: %v", err)
		}
		if got := srv.Holder().PID(); got != second.PID() {
			t.Errorf("holder: got PID %d, want %d", got, second.PID())
		}
		queries := srv.Holder().Queries()
		if got, want := queries[len(queries)-1], `START_REPLICATION SLOT "ferry" LOGICAL 0/0 (proto_version '1', `+
			`publication_names 'outbox', messages 'true')`; got != want {
			t.Errorf("recorded command: got %q, want %q", got, want)
		}
	})
}

// TestEndOfStream has the ways a server ends a stream.
func TestEndOfStream(t *testing.T) {
	const shutDown = "FATAL 57P01: terminating connection due to administrator command"
	tests := []struct {
		name string
		end  func(*walsender.Session)
		want []string
		open bool // the client may send commands again
	}{
		{"terminated", (*walsender.Session).Terminate, []string{shutDown}, false},
		{"orderly", (*walsender.Session).EndStream, []string{"COPY 0", "failed: unexpected EOF"}, false},
		{
			"error", func(c *walsender.Session) { c.SendError("42704", `publication "p" does not exist`) },
			[]string{`ERROR 42704: publication "p" does not exist`, "*pgproto3.ReadyForQuery"},
			true,
		},
		{
			"notice and raw messages", func(c *walsender.Session) {
				c.SendNotice("55000", `skipped loading publication "p"`)
				c.Send(&pgproto3.CopyDone{})
				c.SendFatal("XX000", "no more")
			},
			[]string{`WARNING 55000: skipped loading publication "p"`, "*pgproto3.CopyDone", "FATAL XX000: no more"},
			false,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
				conn := stream(t, srv, 0)
				expect(t, conn, keepalive(walStart, false))
				tt.end(srv.Holder())
				expect(t, conn, tt.want...)
				if srv.Holder() != nil {
					t.Error("the slot is still held")
				}
				_, err := pglogrepl.IdentifySystem(t.Context(), conn)
				if open := err == nil; open != tt.open {
					t.Errorf("a command after the end: got %v, want success %t", err, tt.open)
				}
			})
		})
	}
}

func TestClientEndsStream(t *testing.T) {
	bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
		conn := stream(t, srv, 0)
		expect(t, conn, keepalive(walStart, false))
		if _, err := pglogrepl.SendStandbyCopyDone(t.Context(), conn); err != nil {
			t.Fatal(err)
		}
		confirm(t, conn, walStart+8, false) // too late to count
		if got := srv.Confirmed(); got != walStart {
			t.Errorf("Confirmed: got %s, want %s", got, walStart)
		}
		if _, err := pglogrepl.IdentifySystem(t.Context(), conn); err != nil {
			t.Errorf("a command after the stream: %v", err)
		}
	})
}

// TestCutAfter breaks a connection at every byte of a stream: the client sees a prefix of the whole messages.
func TestCutAfter(t *testing.T) {
	const copyData, xlogData = 1 + 4, 1 + 8 + 8 + 8
	size := 4*(copyData+xlogData) + copyData + len("k") + 8 + 8 + 1 +
		len(pgoutput.AppendBegin(nil, 0, time.Time{}, 0)) + len(pgoutput.AppendRelation(nil, outbox())) +
		len(pgoutput.AppendInsert(nil, 0, []pgoutput.Value{pgoutput.Text("a")})) +
		len(pgoutput.AppendCommit(nil, 0, 0, 0, time.Time{}))
	for n := range size + 1 {
		bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
			srv.Hold(0)
			conn := stream(t, srv, 0)
			srv.Holder().CutAfter(n)
			tx := srv.Commit(walsender.Tx{insert("a")})
			srv.Release()
			all := append(transaction(tx, walStart, "a", true), keepalive(tx.EndLSN, false))
			whole := 0
			for ; whole < len(all); whole++ {
				got := receive(t, conn)
				if strings.HasPrefix(got, "failed: ") {
					break
				}
				if got != all[whole] {
					t.Fatalf("cut after %d bytes: message %d is %q, want %q", n, whole, got, all[whole])
				}
			}
			if complete := whole == len(all); complete != (n == size) {
				t.Errorf("cut after %d of %d bytes: received %d of %d messages", n, size, whole, len(all))
			}
			synctest.Wait()
			if srv.Holder() != nil {
				t.Errorf("cut after %d bytes: the slot is still held", n)
			}
		})
	}
}
