// Package servers runs real Postgres and Kafka servers for integration tests, without containers:
// unprivileged server processes on free loopback ports, with their data in a temporary directory, or in one that
// WALFERRY_TEST_DATA names.
//
// The server binaries are Maven artifacts which test/servers/fetch.sh (make servers) puts into .cache/servers of the
// repository. Postgres refuses to run as root; tests that run as root get its processes under the account "postgres",
// or "nobody" where there is none.
//
// Every server dies with the process that started it, even if that is killed, and what a killed process leaves in the
// temporary directory is removed by the next one.
package servers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// PostgresFromEnv returns the connection strings in WALFERRY_TEST_POSTGRES: servers that already run, separated by
// commas. It is empty when the variable is not set. A connection string must therefore not name several hosts.
func PostgresFromEnv() []string { return listFromEnv("WALFERRY_TEST_POSTGRES") }

// KafkaFromEnv returns the seed brokers (host:port) of a running cluster in WALFERRY_TEST_KAFKA, separated by commas.
// It is empty when the variable is not set.
func KafkaFromEnv() []string { return listFromEnv("WALFERRY_TEST_KAFKA") }

func listFromEnv(name string) []string {
	var list []string
	for item := range strings.SplitSeq(os.Getenv(name), ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

// fetched returns the directory into which test/servers/fetch.sh puts the servers.
// It belongs to the repository around the working directory, which for a test is its package's directory.
func fetched() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		// Not go.mod: a nested module (an example, a benchmark) has one too.
		_, err := os.Stat(filepath.Join(dir, "test", "servers", "pom.xml"))
		if err == nil {
			return filepath.Join(dir, ".cache", "servers"), nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("find the repository around %s: %w", wd, err)
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside the repository (no test/servers/pom.xml above it)", wd)
		}
	}
}

// jars returns the jar files in dir, at least one.
func jars(dir string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(dir, "*.jar"))
	if err != nil {
		return nil, fmt.Errorf("look for jars in %s: %w", dir, err)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no jars in %s: run `make servers`, or use running servers (WALFERRY_TEST_POSTGRES, WALFERRY_TEST_KAFKA)", dir)
	}
	return found, nil
}
