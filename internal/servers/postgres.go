package servers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// postgresStartLimit is how long initdb, and a start with crash recovery, may take.
const postgresStartLimit = 2 * time.Minute

// PostgresVersions returns the major versions that Postgres can run, oldest first.
func PostgresVersions() []string { return []string{"14", "15", "16", "17", "18"} }

// PostgresOptions are the choices for a cluster. The zero value is a good one for most tests.
type PostgresOptions struct {
	// Settings go into postgresql.conf and win over those of this package: listen_addresses=127.0.0.1, no Unix
	// sockets, wal_level=logical, 20 walsenders and slots, fsync=off.
	Settings map[string]string
	// Fsync has Postgres flush its WAL and data to disk. Without it, data still survives Kill, but not a crash of the
	// machine, and commits take less time than on a real server.
	Fsync bool
	// InitArgs are more arguments of initdb, for example --encoding=SQL_ASCII. They win over --encoding=UTF8 and
	// --locale=C.
	InitArgs []string
}

// PG is a Postgres cluster with one server on a loopback port. Everybody may connect as the superuser postgres.
//
// Start, Restart and Close must not run at the same time as a method that starts or ends the server; the others may,
// for example Kill while Stop waits.
type PG struct {
	version string
	bin     string
	account *syscall.Credential
	scratch *scratch
	port    port
	process *process // the last one started
}

// Postgres creates a cluster of the major version, see [PostgresVersions], and starts its server. It returns when the
// server accepts connections. ctx bounds only that; the server runs until [PG.Close], which the caller must call.
func Postgres(ctx context.Context, version string, opts PostgresOptions) (*PG, error) {
	pg, err := newPG(version)
	if err != nil {
		return nil, fmt.Errorf("postgres %s: %w", version, err)
	}
	if err := pg.initialize(ctx, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("create a postgres %s cluster: %w", version, err), pg.Close())
	}
	if err := pg.Start(ctx); err != nil {
		return nil, errors.Join(err, pg.Close())
	}
	return pg, nil
}

func newPG(version string) (*PG, error) {
	if !slices.Contains(PostgresVersions(), version) {
		return nil, fmt.Errorf("no such version here: want one of %s", strings.Join(PostgresVersions(), ", "))
	}
	account, err := postgresAccount()
	if err != nil {
		return nil, err
	}
	binaries, err := postgresBinaries(version, account)
	if err != nil {
		return nil, err
	}
	scratch, err := newScratch(account)
	if err != nil {
		return nil, err
	}
	port, err := holdPort()
	if err != nil {
		return nil, errors.Join(err, scratch.remove())
	}
	return &PG{version: version, bin: filepath.Join(binaries, "bin"), account: account, scratch: scratch, port: port}, nil
}

// initialize creates the data directory and its configuration.
func (pg *PG) initialize(ctx context.Context, opts PostgresOptions) error {
	ctx, cancel := context.WithTimeout(ctx, postgresStartLimit)
	defer cancel()
	if err := os.Mkdir(pg.DataDir(), 0o700); err != nil {
		return err
	}
	if pg.account != nil {
		if err := os.Chown(pg.DataDir(), int(pg.account.Uid), int(pg.account.Gid)); err != nil {
			return err
		}
	}
	args := []string{"--pgdata=" + pg.DataDir(), "--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"}
	initdb := pg.command("initdb", append(args, opts.InitArgs...)...)
	output, err := runCommand(ctx, initdb, pg.account)
	if err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, output)
	}
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    fmt.Sprint(pg.Port()),
		"unix_socket_directories": "",
		// In the data directory rather than in /dev/shm, where a killed server would leave it behind.
		"dynamic_shared_memory_type": "mmap",
		"wal_level":                  "logical",
		"max_wal_senders":            "20",
		"max_replication_slots":      "20",
		"fsync":                      "off",
		"log_line_prefix":            "%m [%p] %a ",
	}
	if opts.Fsync {
		settings["fsync"] = "on"
	}
	maps.Copy(settings, opts.Settings)
	return pg.appendConf(settings)
}

// command returns a command of the cluster's binaries. It sees nothing of the environment of the tests, where PGPORT
// or LC_ALL could change what it does, and runs in a directory that the server's account can read.
func (pg *PG) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(pg.bin, name), args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.Dir = pg.DataDir()
	return cmd
}

// DSN returns the connection string of the database, for the superuser postgres and without a password.
func (pg *PG) DSN(database string) string {
	dsn := url.URL{
		Scheme:   "postgres",
		User:     url.User("postgres"),
		Host:     pg.port.addr(),
		Path:     database,
		RawQuery: "sslmode=disable",
	}
	return dsn.String()
}

// Port returns the TCP port of the server. It stays the same over restarts.
func (pg *PG) Port() int { return pg.port.number }

// DataDir returns the data directory. It belongs to the server's account, which is another one if this process is root.
func (pg *PG) DataDir() string { return pg.scratch.path("data") }

// Log returns the end of the server's log, at most 8 KiB, for the output of a test that fails.
func (pg *PG) Log() string { return pg.scratch.logTail() }

// Start starts the server on its data directory and port and returns when it accepts connections, after crash
// recovery if need be. It fails if the server is running.
func (pg *PG) Start(ctx context.Context) error {
	if pg.process.running() {
		return fmt.Errorf("start postgres %s: it is running (process %d)", pg.version, pg.process.cmd.Process.Pid)
	}
	log, err := pg.scratch.openLog()
	if err != nil {
		return fmt.Errorf("start postgres %s: %w", pg.version, err)
	}
	defer log.Close() //nolint:errcheck // the server has its own handle
	postgres := pg.command("postgres", "-D", pg.DataDir())
	postgres.Stdout, postgres.Stderr = log, log
	// SIGQUIT is the immediate shutdown, which also ends all children.
	pg.process, err = startProcess(postgres, pg.account, syscall.SIGQUIT)
	if err != nil {
		return fmt.Errorf("start postgres %s: %w", pg.version, err)
	}
	ready := func(ctx context.Context) error {
		_, err := pg.queryValue(ctx, "SELECT version()")
		return err
	}
	if err := pg.process.awaitReady(ctx, postgresStartLimit, ready); err != nil {
		return errors.Join(fmt.Errorf("start postgres %s: %w; its log ends with:\n%s", pg.version, err, pg.Log()), pg.Kill())
	}
	return nil
}

// queryValue runs the query on a new connection and returns the one text value of its result.
func (pg *PG) queryValue(ctx context.Context, query string) (string, error) {
	conn, err := pgx.Connect(ctx, pg.DSN("postgres"))
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx) //nolint:errcheck // the answer is there, or the error
	var value string
	err = conn.QueryRow(ctx, query).Scan(&value)
	return value, err
}

// Stop shuts the server down and returns when all its processes have ended: "fast" ends the sessions, after the
// walsenders have sent all WAL; "smart" waits for the sessions to end; "immediate" ends at once, and the next start
// begins with crash recovery. It fails if the server still runs after a minute, and does nothing if it does not run.
func (pg *PG) Stop(mode string) error {
	signals := map[string]syscall.Signal{"fast": syscall.SIGINT, "smart": syscall.SIGTERM, "immediate": syscall.SIGQUIT}
	signal, ok := signals[mode]
	if !ok {
		return fmt.Errorf(`stop postgres %s: unknown mode %q, want "fast", "smart" or "immediate"`, pg.version, mode)
	}
	if !pg.process.running() {
		return nil
	}
	err := pg.process.stop(signal)
	if err == nil {
		err = pg.process.err
	}
	if err != nil {
		return fmt.Errorf("stop postgres %s (%s): %w; its log ends with:\n%s", pg.version, mode, err, pg.Log())
	}
	return nil
}

// Kill ends all processes of the server with SIGKILL and returns when they are gone. The next start begins with crash
// recovery. It does nothing if the server does not run.
func (pg *PG) Kill() error {
	if err := pg.process.kill(); err != nil {
		return fmt.Errorf("kill postgres %s: %w", pg.version, err)
	}
	return nil
}

// Restart shuts the server down fast and starts it again.
func (pg *PG) Restart(ctx context.Context) error {
	if err := pg.Stop("fast"); err != nil {
		return err
	}
	return pg.Start(ctx)
}

// Close ends the server at once and removes everything it has written. The PG cannot be used any more.
func (pg *PG) Close() error {
	var err error
	if stopErr := pg.Stop("immediate"); stopErr != nil {
		err = errors.Join(stopErr, pg.Kill())
	}
	return errors.Join(err, pg.removeSharedMemory(), pg.scratch.remove(), pg.port.release())
}

// removeSharedMemory removes the System V shared memory that a killed server has left, and that only its next start
// would remove. postmaster.pid, which is then still there, has "key id" of it in line 7.
func (pg *PG) removeSharedMemory() error {
	content, err := os.ReadFile(filepath.Join(pg.DataDir(), "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	lines := strings.Split(string(content), "\n")
	if len(lines) < 7 {
		return nil // killed before it had any
	}
	fields := strings.Fields(lines[6])
	if len(fields) != 2 {
		return nil
	}
	ctx, cancel := shutdownContext()
	defer cancel()
	// A command of its own, because the memory belongs to the server's account.
	ipcrm := exec.Command("ipcrm", "--shmem-id", fields[1])
	ipcrm.Dir = pg.DataDir()
	if output, err := runCommand(ctx, ipcrm, pg.account); err != nil {
		return fmt.Errorf("remove the shared memory of postgres %s: %w\n%s", pg.version, err, output)
	}
	return nil
}
