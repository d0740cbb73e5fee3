package integration

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/servers"
)

// A backlog is read in pauses and in pieces that end anywhere. It comes once and in order
// through every kind of connection, in one session, and so does what follows it.
func TestBacklogThroughEveryConnection(t *testing.T) {
	sockets := socketDir(t)
	pg := ownPostgres(t, "18", servers.PostgresOptions{Settings: map[string]string{"unix_socket_directories": sockets}})
	ca := newAuthority(t, "ca")
	tlsOn(t, pg, ca.server(), ca)
	for _, test := range []struct {
		name    string
		connect func(w *world)
	}{
		{"TCP", func(*world) {}},
		{"TLS", func(w *world) {
			w.cfg.Databases[0].DSN = config.Secret(fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=verify-full&sslrootcert=%s", pg.Port(), w.prefix, ca.file()))
		}},
		{"a Unix socket", func(w *world) {
			w.cfg.Databases[0].DSN = config.Secret(fmt.Sprintf("postgres://postgres@/%s?host=%s&port=%d", w.prefix, sockets, pg.Port()))
		}},
		{"far away", func(w *world) {
			postgres, _ := w.throughProxies()
			postgres.delay(5 * time.Millisecond)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, pg.DSN("postgres"), nil)
			test.connect(w)
			w.exec("ALTER TABLE outbox ADD n bigint GENERATED ALWAYS AS IDENTITY")
			const insert = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) SELECT 'order', 'key ' || i % 100, 'T', jsonb_build_object('pad', repeat('x', i % 400)) FROM "
			w.exec("DO $$ BEGIN FOR j IN 1..3000 LOOP " + insert + "(SELECT j AS i) one; COMMIT; END LOOP; END $$")
			w.exec(insert + "generate_series(1, 20000) i")
			want := w.emit("SELECT id::text, aggregateid, payload::text FROM outbox ORDER BY n")
			r := w.run("")
			r.awaitState(bridge.Streaming)
			w.awaitCaughtUp()
			want = concat(want, w.order("k", "1"))
			w.awaitCaughtUp()
			r.drain()
			if s := r.bridge.Status(); s.Sessions != 1 {
				t.Errorf("%d sessions, want 1", s.Sessions)
			}
			w.mustPublish("order", want)
		})
	}
}

// socketDir returns a directory for Unix sockets, whose paths must be short, of a server with another account.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "walferry-")
	if err == nil {
		err = os.Chmod(dir, 0o777) //nolint:gosec // the server's account is not known here
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
