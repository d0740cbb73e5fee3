package integration

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/replication"
)

// A host that is reached and never answers does not keep walferry from the next one of the list.
func TestAHostThatHangsIsPassedOver(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	hangs, err := net.Listen("tcp4", "127.0.0.1:0") // the kernel takes connections, nobody reads them
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hangs.Close() })
	dsn := w.cfg.Databases[0].DSN.Reveal()
	w.cfg.Databases[0].DSN = config.Secret(strings.Replace(dsn, "postgres://", "postgres://"+hangs.Addr().String()+",", 1) + "&target_session_attrs=read-write")
	want := w.order("k", "1")
	began := time.Now()
	r := w.run("")
	r.awaitState(bridge.Streaming)
	t.Logf("streaming after %s", time.Since(began).Round(time.Millisecond))
	if limit := 10 * time.Second; time.Since(began) > limit { // 3 s for each of two connections
		t.Errorf("streaming after %s, want at most %s", time.Since(began), limit)
	}
	// The connection that watches the slot finds its way again as well.
	first := r.bridge.Status().Sessions
	w.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walferry' AND datname = current_database()")
	await(t, "another connection that watches", func() error {
		if n := w.query("SELECT count(*)::text FROM pg_stat_activity WHERE application_name = 'walferry' AND datname = current_database()"); n != "1" {
			return fmt.Errorf("%s of them", n)
		}
		return nil
	})
	w.awaitCaughtUp()
	r.drain()
	if n := r.bridge.Status().Sessions; n != first {
		t.Errorf("%d sessions, want %d", n, first)
	}
	w.mustPublish("order", want)
}

// Behind a host name there may be another server at the next connect, as in a failover by DNS. The watch connects with
// what the connection before it was made with.
func TestHostsAreLookedUpForEachConnection(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	cfg, err := w.cfg.Databases[0].ConnConfig()
	if err != nil {
		t.Fatal(err)
	}
	behind := net.JoinHostPort(cfg.Host, fmt.Sprint(cfg.Port))
	cfg.Host = "postgres.example"
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{behind}, nil }
	conn, err := replication.ConnectSQL(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for name, cfg := range map[string]*pgx.ConnConfig{"the first configuration": cfg, "that of the connection": conn.Config()} {
		behind = freeAddr(t)
		if conn, err := replication.ConnectSQL(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), behind) {
			t.Errorf("%s: %v, %v, want an error of %s", name, conn, err, behind)
		}
	}
}
