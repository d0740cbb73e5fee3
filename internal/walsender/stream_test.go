package walsender_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/internal/pgoutput"
	"github.com/walferry/walferry/internal/walsender"
)

func TestStream(t *testing.T) {
	bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
		srv.Hold(0) // else a keepalive can come between the two
		first := srv.Commit(walsender.Tx{insert("a"), walsender.Message("p", []byte("m")), insert("b")})
		conn := stream(t, srv, 0)
		second := srv.Commit(walsender.Tx{insert("c")})
		srv.Release()
		if first.EndLSN >= second.CommitLSN {
			t.Errorf("LSNs do not grow: %+v then %+v", first, second)
		}
		expect(t, conn,
			fmt.Sprintf("begin %d %s at %s", first.Xid, first.CommitLSN, walStart),
			"relation outbox with 1 columns at 0/0",
			fmt.Sprintf("insert a at %s", walStart),
			"message 0/1500078 p m at 0/1500078",
			"insert b at 0/1500078",
			commit(first),
		)
		expect(t, conn, transaction(second, first.EndLSN, "c", false)...)
		expect(t, conn, keepalive(second.EndLSN, false))
		expectNothing(t, conn)
		if got, want := srv.WALEnd(), second.EndLSN; got != want {
			t.Errorf("WALEnd: got %s, want %s", got, want)
		}
	})
}

func TestStreamWithoutMessages(t *testing.T) {
	bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
		srv.Hold(0)
		conn := connect(t, srv)
		err := pglogrepl.StartReplication(t.Context(), conn, "ferry", 0, pglogrepl.StartReplicationOptions{
			PluginArgs: []string{"proto_version '1'", "publication_names 'outbox'"},
		})
		if err != nil {
			t.Fatal(err)
		}
		only := srv.Commit(walsender.Tx{walsender.Message("p", nil)})
		empty := srv.Commit(nil)
		both := srv.Commit(walsender.Tx{insert("a"), walsender.Message("p", nil)})
		srv.Release()
		if only.EndLSN != empty.CommitLSN {
			t.Errorf("an empty transaction begins at %s, want %s", empty.CommitLSN, only.EndLSN)
		}
		expect(t, conn, transaction(both, empty.EndLSN, "a", true)...)
		expect(t, conn, keepalive(both.EndLSN, false))
	})
}

// TestRelationAnnounced: once per stream, and again when the definition changed.
func TestRelationAnnounced(t *testing.T) {
	bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
		wider := outbox()
		wider.Columns = append(wider.Columns, pgoutput.Column{Name: "payload", TypeOID: 3802, TypeMod: -1})
		tx := srv.Commit(walsender.Tx{
			insert("a"), insert("b"), walsender.Insert(wider, pgoutput.Text("c"), pgoutput.Null()),
			walsender.Row(wider, pgoutput.AppendInsert(nil, wider.ID, []pgoutput.Value{pgoutput.Text("d")})),
			walsender.Raw(pgoutput.AppendTruncate(nil, 0, wider.ID)),
		})
		for range 2 {
			conn := stream(t, srv, 0)
			var got []string
			for len(got) == 0 || got[len(got)-1] != commit(tx) {
				got = append(got, receive(t, conn))
			}
			kinds := make([]string, len(got))
			for i, m := range got {
				kinds[i], _, _ = strings.Cut(m, " at ")
			}
			want := []string{
				"relation outbox with 1 columns", "insert a", "insert b",
				"relation outbox with 2 columns", "insert c", "insert d", "truncate",
			}
			if !slices.Equal(kinds[1:len(kinds)-1], want) {
				t.Errorf("got %q, want %q", kinds, want)
			}
			conn.Close(t.Context())
			synctest.Wait()
		}
	})
}

// TestWhatIsSentAgain has the rules of where a stream begins: commit_lsn >= max(asked, confirmed_flush_lsn).
func TestWhatIsSentAgain(t *testing.T) {
	tests := []struct {
		name    string
		confirm func(a, b walsender.Committed) pglogrepl.LSN
		ask     func(a, b walsender.Committed) pglogrepl.LSN
		want    string
	}{
		{"nothing confirmed", nil, nil, "abc"},
		{"commit_lsn confirmed", func(a, _ walsender.Committed) pglogrepl.LSN { return a.CommitLSN }, nil, "abc"},
		{"end_lsn confirmed", func(a, _ walsender.Committed) pglogrepl.LSN { return a.EndLSN }, nil, "bc"},
		{"end_lsn+1 loses its neighbour", func(a, _ walsender.Committed) pglogrepl.LSN { return a.EndLSN + 1 }, nil, "c"},
		{
			"asked for what is confirmed", func(_, b walsender.Committed) pglogrepl.LSN { return b.EndLSN },
			func(a, _ walsender.Committed) pglogrepl.LSN { return a.CommitLSN }, "c",
		},
		{"asked for a later start", nil, func(a, _ walsender.Committed) pglogrepl.LSN { return a.EndLSN }, "bc"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
				group := srv.GroupCommit(walsender.Tx{insert("a")}, walsender.Tx{insert("b")})
				last := srv.Commit(walsender.Tx{insert("c")})
				if group[0].EndLSN != group[1].CommitLSN {
					t.Fatalf("group: %s ends at %s", group[1].CommitLSN, group[0].EndLSN)
				}
				confirmed := walStart
				if tt.confirm != nil {
					confirmed = tt.confirm(group[0], group[1])
					conn := stream(t, srv, 0)
					confirm(t, conn, confirmed, false)
					conn.Close(t.Context())
					synctest.Wait()
				}
				var asked pglogrepl.LSN
				if tt.ask != nil {
					asked = tt.ask(group[0], group[1])
				}
				conn := stream(t, srv, asked)
				got := ""
				for m := ""; m != commit(last); {
					m = receive(t, conn)
					if id, ok := strings.CutPrefix(m, "insert "); ok {
						got += id[:1]
					}
				}
				if got != tt.want {
					t.Errorf("received %q, want %q", got, tt.want)
				}
				if got := srv.Confirmed(); got != confirmed {
					t.Errorf("Confirmed: got %s, want %s", got, confirmed)
				}
			})
		})
	}
}

func TestStatusUpdates(t *testing.T) {
	var seen []pglogrepl.LSN
	var srv *walsender.Server
	c := walsender.Config{OnStatusUpdate: func(walsender.StatusUpdate) { seen = append(seen, srv.Confirmed()) }}
	bubble(t, c, func(t *testing.T, s *walsender.Server) {
		srv = s
		conn := stream(t, srv, 0)
		sent := time.Now()
		for _, lsn := range []pglogrepl.LSN{walStart + 80, walStart + 40} {
			confirm(t, conn, lsn, false)
		}
		if got, want := srv.Confirmed(), walStart+80; got != want {
			t.Errorf("Confirmed: got %s, want %s: it never goes back", got, want)
		}
		if want := []pglogrepl.LSN{walStart, walStart + 80}; !slices.Equal(seen, want) {
			t.Errorf("OnStatusUpdate saw %s confirmed, want %s", seen, want)
		}
		pid := srv.Holder().PID()
		want := []walsender.StatusUpdate{
			{PID: pid, Write: walStart + 80, Flush: walStart + 80, Apply: walStart + 80, At: sent, Sent: walStart},
			{PID: pid, Write: walStart + 40, Flush: walStart + 40, Apply: walStart + 40, At: sent, Sent: walStart},
		}
		if got := srv.Updates(); !slices.Equal(got, want) {
			t.Errorf("Updates:\n got %+v\nwant %+v", got, want)
		}
	})
}

func TestKeepalives(t *testing.T) {
	bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
		conn := stream(t, srv, 0)
		expect(t, conn, keepalive(walStart, false)) // nothing is confirmed on this connection yet
		confirm(t, conn, walStart, false)
		expectNothing(t, conn)
		confirm(t, conn, walStart, true)
		expect(t, conn, keepalive(walStart, false)) // the reply asked for

		foreign := srv.AdvanceWAL(500)
		expect(t, conn, keepalive(foreign, false))
		expectNothing(t, conn)
		confirm(t, conn, walStart, false)
		expect(t, conn, keepalive(foreign, false)) // still behind
		confirm(t, conn, foreign, false)
		expectNothing(t, conn)

		tx := srv.Commit(walsender.Tx{walsender.Keepalive(true), insert("a"), walsender.Keepalive(false)})
		expect(t, conn, fmt.Sprintf("begin %d %s at %s", tx.Xid, tx.CommitLSN, foreign),
			keepalive(tx.CommitLSN, true), "relation outbox with 1 columns at 0/0",
			fmt.Sprintf("insert a at %s", foreign), keepalive(tx.CommitLSN, false), commit(tx))
		expectNothing(t, conn) // the server waits for the reply to its first
		confirm(t, conn, foreign, false)
		expect(t, conn, keepalive(tx.EndLSN, false))

		srv.Holder().SendKeepalive(walStart, true)
		expect(t, conn, keepalive(walStart, true))
		srv.Holder().SendXLogData(7, 7, pgoutput.AppendMessage(nil, false, 7, "p", []byte("m")))
		expect(t, conn, "message 0/7 p m at 0/7")
	})
}

func TestKeepaliveAfterCommit(t *testing.T) {
	bubble(t, walsender.Config{KeepaliveAfterCommit: true}, func(t *testing.T, srv *walsender.Server) {
		a := srv.Commit(walsender.Tx{insert("a")})
		b := srv.Commit(walsender.Tx{insert("b")})
		conn := stream(t, srv, 0)
		expect(t, conn, transaction(a, walStart, "a", true)...)
		expect(t, conn, keepalive(a.EndLSN, false))
		expect(t, conn, transaction(b, a.EndLSN, "b", false)...)
		expect(t, conn, keepalive(b.EndLSN, false))
		expectNothing(t, conn)
	})
}

func TestHold(t *testing.T) {
	bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
		srv.Hold(3)
		tx := srv.Commit(walsender.Tx{insert("a"), insert("b")})
		conn := stream(t, srv, 0)
		expect(t, conn, fmt.Sprintf("begin %d %s at %s", tx.Xid, tx.CommitLSN, walStart),
			"relation outbox with 1 columns at 0/0", fmt.Sprintf("insert a at %s", walStart))
		expectNothing(t, conn)
		confirm(t, conn, walStart, true)
		expect(t, conn, keepalive(tx.CommitLSN, false)) // in the middle of the transaction
		srv.Release()
		expect(t, conn, "insert b at 0/1500040", commit(tx), keepalive(tx.EndLSN, false))
	})
}

func TestSenderTimeout(t *testing.T) {
	bubble(t, walsender.Config{SenderTimeout: time.Minute}, func(t *testing.T, srv *walsender.Server) {
		conn := stream(t, srv, 0)
		expect(t, conn, keepalive(walStart, false))
		begin := time.Now()
		<-time.After(20 * time.Second)
		confirm(t, conn, walStart, false)
		msg, err := conn.ReceiveMessage(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		got, err := pglogrepl.ParsePrimaryKeepaliveMessage(msg.(*pgproto3.CopyData).Data[1:])
		if err != nil {
			t.Fatal(err)
		}
		asked := begin.Add(50 * time.Second) // half of the timeout after the last word
		if got.ServerWALEnd != walStart || !got.ReplyRequested || !got.ServerTime.Equal(asked) || !time.Now().Equal(asked) {
			t.Errorf("keepalive: got %+v at %s, want a request for a reply at %s", got, time.Now(), asked)
		}
		expect(t, conn, "failed: unexpected EOF")
		if got, want := time.Since(begin), 80*time.Second; got != want {
			t.Errorf("gave up after %s, want %s", got, want)
		}
		if srv.Holder() != nil {
			t.Error("the slot is still held")
		}
	})
}

// TestClientDoesNotRead: with full buffers time goes on, and status updates alone keep the connection alive.
func TestClientDoesNotRead(t *testing.T) {
	c := walsender.Config{SenderTimeout: 10 * time.Second, BufferSize: 256}
	bubble(t, c, func(t *testing.T, srv *walsender.Server) {
		conn := stream(t, srv, 0)
		var tx walsender.Tx
		for range 100 {
			tx = append(tx, insert("a"))
		}
		end := srv.Commit(tx)
		for range 30 {
			<-time.After(time.Second)
			confirm(t, conn, walStart, false)
		}
		got := 0
		for m := ""; m != commit(end); {
			m = receive(t, conn)
			if strings.HasPrefix(m, "failed") {
				t.Fatal(m)
			}
			if strings.HasPrefix(m, "insert") {
				got++
			}
		}
		if got != len(tx) {
			t.Errorf("received %d inserts, want %d", got, len(tx))
		}
	})
}
