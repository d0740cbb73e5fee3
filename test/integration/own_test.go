package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/walferry/walferry/internal/servers"
)

// ownPostgres starts a server for one test, which may set it up as it likes.
func ownPostgres(t *testing.T, version string, opts servers.PostgresOptions) *servers.PG {
	t.Helper()
	pg, err := servers.Postgres(context.Background(), version, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of Postgres:\n%s", pg.Log())
		}
		if err := pg.Close(); err != nil {
			t.Error(err)
		}
	})
	return pg
}

// physicalSlot is that of every standby.
const physicalSlot = "standby"

// hosts returns the DSN of whichever of the servers takes writes.
func hosts(list ...*servers.PG) string {
	var addrs []string
	for _, pg := range list {
		addrs = append(addrs, fmt.Sprintf("127.0.0.1:%d", pg.Port()))
	}
	return fmt.Sprintf("postgres://postgres@%s/postgres?sslmode=disable&target_session_attrs=read-write", strings.Join(addrs, ","))
}
