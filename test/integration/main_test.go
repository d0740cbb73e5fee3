// Package integration proves walferry on real servers: Postgres 14 to 18 and Apache Kafka,
// fetched by `make servers`, or those that WALFERRY_TEST_POSTGRES (DSNs, comma-separated)
// and WALFERRY_TEST_KAFKA (brokers) name. Missing servers are a failure.
package integration

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/walferry/walferry/internal/servers"
)

// shared are the servers that tests use side by side. A test that breaks a server
// starts its own.
var shared struct {
	kafka    []string
	postgres map[string]*lazyPostgres
	dir      string // for what is built once

	delivery  string          // of new worlds that do not choose one, "": the default
	breakable *servers.Broker // see breakableKafka
	summary   string          // the last that is printed, of suites that have one
}

// lazyPostgres starts when the first test needs it.
type lazyPostgres struct {
	version string
	dsn     string // of an existing server
	once    sync.Once
	server  *servers.PG
	err     error
}

// admin returns the DSN of the server's maintenance database.
func (l *lazyPostgres) admin(ctx context.Context) (string, error) {
	if l.dsn != "" {
		return l.dsn, nil
	}
	l.once.Do(func() { l.server, l.err = servers.Postgres(ctx, l.version, servers.PostgresOptions{}) })
	if l.err != nil {
		return "", l.err
	}
	return l.server.DSN("postgres"), nil
}

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration tests cannot start:", err)
		code = 1
	}
	fmt.Print(shared.summary)
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if shared.dir, err = os.MkdirTemp("", "walferry-test-"); err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(shared.dir) }()
	shared.postgres = map[string]*lazyPostgres{}
	for _, version := range servers.PostgresVersions() {
		shared.postgres[version] = &lazyPostgres{version: version}
	}
	if dsns := servers.PostgresFromEnv(); len(dsns) > 0 {
		clear(shared.postgres)
		for i, dsn := range dsns {
			shared.postgres[fmt.Sprintf("existing-%d", i)] = &lazyPostgres{dsn: dsn}
		}
	}
	if shared.kafka = servers.KafkaFromEnv(); len(shared.kafka) == 0 {
		broker, err := servers.Kafka(context.Background(), servers.KafkaOptions{})
		if err != nil {
			return 1, err
		}
		defer func() { _ = broker.Close() }()
		shared.kafka = []string{broker.Addr()}
	}
	defer func() {
		if shared.breakable != nil {
			_ = shared.breakable.Close()
		}
		for _, l := range shared.postgres {
			if l.server != nil {
				_ = l.server.Close()
			}
		}
	}()
	return m.Run(), nil
}

// onEveryPostgres runs a test against each version.
func onEveryPostgres(t *testing.T, test func(t *testing.T, admin string)) {
	t.Helper()
	for name, l := range shared.postgres {
		t.Run(name, func(t *testing.T) {
			admin, err := l.admin(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			test(t, admin)
		})
	}
}

// newest returns the DSN of the newest version, for tests that one version is enough for.
func newest(t *testing.T) string {
	t.Helper()
	last := ""
	for name := range shared.postgres {
		if strings.Compare(name, last) > 0 {
			last = name
		}
	}
	admin, err := shared.postgres[last].admin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return admin
}
