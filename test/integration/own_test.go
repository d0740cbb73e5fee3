package integration

import (
	"context"
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
