package walsender_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walferry/walferry/internal/walsender"
)

func TestCrash(t *testing.T) {
	bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
		a := srv.Commit(walsender.Tx{insert("a")})
		sql, conn := query(t, srv), stream(t, srv, 0)
		expect(t, conn, transaction(a, walStart, "a", true)...)
		expect(t, conn, keepalive(a.EndLSN, false))
		confirm(t, conn, a.EndLSN, false)
		srv.Crash()
		if got := receive(t, conn); !strings.HasPrefix(got, "failed: ") {
			t.Errorf("stream of a crashed server: received %q", got)
		}
		if err := sql.Ping(t.Context()); err == nil {
			t.Error("SQL on a crashed server works")
		}
		_, err := pgconn.ConnectConfig(t.Context(), config(t, srv, ""))
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("connecting to a crashed server: got %v, want %v", err, syscall.ECONNREFUSED)
		}

		srv.Start(a.EndLSN + 100)
		if got := srv.Confirmed(); got != a.EndLSN {
			t.Errorf("Confirmed after a start with a later LSN: got %s, want %s", got, a.EndLSN)
		}
		srv.Crash()
		srv.Start(walStart)
		if got := srv.Confirmed(); got != walStart {
			t.Errorf("Confirmed after a start with an older LSN: got %s, want %s", got, walStart)
		}
		expect(t, stream(t, srv, 0), transaction(a, walStart, "a", true)...)
	})
}

func TestShutdown(t *testing.T) {
	bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
		srv.Handle("ping", func(string) walsender.Result { return walsender.Result{} })
		a := srv.Commit(walsender.Tx{insert("a")})
		sql, idle, conn := query(t, srv), connect(t, srv), stream(t, srv, 0)
		expect(t, conn, transaction(a, walStart, "a", true)...)
		expect(t, conn, keepalive(a.EndLSN, false))
		confirm(t, conn, a.EndLSN, false)

		srv.Hold(0)
		end := srv.AdvanceWAL(100)
		srv.Shutdown()
		srv.Release()
		if _, err := sql.Exec(t.Context(), "/* walferry:ping */ select"); code(err) != "57P01" {
			t.Errorf("SQL during a shutdown: got %v, want 57P01", err)
		}
		if _, err := pglogrepl.IdentifySystem(t.Context(), idle); code(err) != "57P01" {
			t.Errorf("a walsender without a stream during a shutdown: got %v, want 57P01", err)
		}
		if _, err := pgconn.ConnectConfig(t.Context(), config(t, srv, "")); code(err) != "57P03" {
			t.Errorf("connecting during a shutdown: got %v, want 57P03", err)
		}
		expect(t, conn, keepalive(end, true))
		expectNothing(t, conn)
		for range 3 { // a client that confirms commits only is asked for ever
			confirm(t, conn, a.EndLSN, false)
			expect(t, conn, keepalive(end, true))
		}
		confirm(t, conn, end, false)
		expect(t, conn, "COPY 0", "failed: unexpected EOF")
		_, err := pgconn.ConnectConfig(t.Context(), config(t, srv, ""))
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("connecting after a shutdown: got %v, want %v", err, syscall.ECONNREFUSED)
		}

		srv.Start(0)
		if got := srv.Confirmed(); got != end {
			t.Errorf("Confirmed after a restart: got %s, want %s", got, end)
		}
		b := srv.Commit(walsender.Tx{insert("b")})
		expect(t, stream(t, srv, 0), transaction(b, end, "b", true)...)
	})
}

func TestWaitConfirmed(t *testing.T) {
	bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := srv.WaitConfirmed(ctx, walStart+8); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WaitConfirmed: got %v, want %v", err, context.DeadlineExceeded)
		}
		waited := make(chan error, 2)
		wait := func(lsn pglogrepl.LSN) { waited <- srv.WaitConfirmed(t.Context(), lsn) }
		go wait(walStart + 8)
		synctest.Wait()
		confirm(t, stream(t, srv, 0), walStart+8, false)
		if err := <-waited; err != nil {
			t.Errorf("WaitConfirmed: %v", err)
		}
		go wait(walStart + 16)
		synctest.Wait()
		srv.Close()
		if err := <-waited; err == nil {
			t.Error("WaitConfirmed of a closed server succeeded")
		}
	})
}

// TestOutsideOfABubble commits, reads and confirms at once in real time, for the race detector.
func TestOutsideOfABubble(t *testing.T) {
	srv := walsender.New(walsender.Config{Slot: "ferry", BufferSize: 512})
	defer srv.Close()
	conn := stream(t, srv, 0)
	const commits = 200
	var committing sync.WaitGroup
	defer committing.Wait()
	committing.Go(func() {
		for range commits {
			srv.Commit(walsender.Tx{insert("a"), insert("b")})
		}
	})
	var end pglogrepl.LSN
	for got := 0; got < commits; {
		lsn, ok := strings.CutPrefix(receive(t, conn), "commit ")
		if !ok {
			continue
		}
		got++
		_, last, _ := strings.Cut(lsn, " at ")
		var err error
		if end, err = pglogrepl.ParseLSN(last); err != nil {
			t.Fatal(err)
		}
		err = pglogrepl.SendStandbyStatusUpdate(t.Context(), conn, pglogrepl.StandbyStatusUpdate{
			WALWritePosition: end, WALFlushPosition: end, WALApplyPosition: end,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if end != srv.WALEnd() {
		t.Errorf("the last commit ends at %s, want %s", end, srv.WALEnd())
	}
	if err := srv.WaitConfirmed(t.Context(), end); err != nil {
		t.Error(err)
	}
}
