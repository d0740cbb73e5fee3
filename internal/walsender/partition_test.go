package walsender_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walferry/walferry/internal/walsender"
)

// What is sent into a partition arrives when it is over, in order; nobody is told of it.
func TestPartition(t *testing.T) {
	bubble(t, walsender.Config{}, func(t *testing.T, srv *walsender.Server) {
		conn := stream(t, srv, 0)
		expect(t, conn, keepalive(walStart, false))
		srv.Partition()
		srv.AdvanceWAL(8)
		confirm(t, conn, walStart+16, false)
		if got := srv.Updates(); len(got) != 0 {
			t.Errorf("updates %v arrived through a partition", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := pgconn.ConnectConfig(ctx, config(t, srv, "replication=database")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("connect: got %v, want nothing within a minute", err)
		}
		srv.Heal()
		synctest.Wait()
		if got := srv.Updates(); len(got) != 1 {
			t.Errorf("updates after the partition: %v, want one", got)
		}
		expect(t, conn, keepalive(srv.WALEnd(), false))
		connect(t, srv)
	})
}

// A session that the server gives up in a partition learns of it afterwards.
func TestPartitionOutlastsTheSenderTimeout(t *testing.T) {
	bubble(t, walsender.Config{SenderTimeout: 6 * time.Second}, func(t *testing.T, srv *walsender.Server) {
		stream(t, srv, 0)
		srv.Partition()
		<-time.After(5 * time.Second)
		if srv.Holder() == nil {
			t.Error("the slot is free before wal_sender_timeout is over")
		}
		<-time.After(2 * time.Second)
		if srv.Holder() != nil {
			t.Error("the slot is still held after wal_sender_timeout")
		}
		srv.Heal()
	})
}

func TestOnStream(t *testing.T) {
	var got []walsender.Streaming
	c := walsender.Config{OnStream: func(s walsender.Streaming) { got = append(got, s) }}
	bubble(t, c, func(t *testing.T, srv *walsender.Server) {
		conn := stream(t, srv, walStart-8)
		want := []walsender.Streaming{{PID: conn.PID(), Start: walStart}}
		if !slices.Equal(got, want) {
			t.Errorf("OnStream saw %v, want %v", got, want)
		}
		expect(t, conn, keepalive(walStart, false))
		srv.AdvanceWAL(8)
		expect(t, conn, keepalive(srv.WALEnd(), false))
		srv.Holder().Keepalive(true)
		expect(t, conn, keepalive(srv.WALEnd(), true))
	})
}
