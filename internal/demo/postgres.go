package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// PostgresVersion is the version of the server that StartPostgres starts.
const PostgresVersion = embeddedpostgres.V18

const dataDir = "data" // below the directory of a run

// Postgres is a server of the demo's own, on a loopback port, with all its data below Dir.
type Postgres struct {
	DSN      string // of the superuser
	Dir      string
	binaries string
	leash    *leash
}

// StartPostgres makes a new cluster and starts its server. The first time it fetches the
// binaries, which stay in a cache. say is told what takes a while. Whatever happens to this
// process, a watchdog stops the server at its end and, without keep, removes its data; with
// keep the DSN is in the file Dir/dsn.
//
// It changes the environment and the working directory of the process: Postgres' own
// variables would turn the server's tools somewhere else.
func StartPostgres(ctx context.Context, keep bool, say func(format string, args ...any)) (*Postgres, error) {
	dir, err := newRunDir()
	if err != nil {
		return nil, err
	}
	if err := isolate(dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	cache := claimCache()
	if cache == "" {
		say("found no place to keep Postgres for the next run: make the user's cache directory writable")
		cache = filepath.Join(dir, "cache") // goes with the rest
	}
	binaries := filepath.Join(cache, "postgres-"+string(PostgresVersion))
	leash, err := newLeash(dir, binaries, keep)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	p := &Postgres{Dir: dir, binaries: binaries, leash: leash}
	if err := p.start(ctx, cache, say); err != nil {
		return nil, errors.Join(fmt.Errorf("start Postgres %s: %w", PostgresVersion, err), p.Stop())
	}
	if keep {
		if err := os.WriteFile(filepath.Join(dir, "dsn"), []byte(p.DSN+"\n"), 0o600); err != nil {
			return nil, errors.Join(err, p.Stop())
		}
	}
	return p, nil
}

// Stop stops the server and removes its directory, unless that is kept.
func (p *Postgres) Stop() error { return p.leash.release() }

// isolate keeps what others have set from the server and its tools.
func isolate(dir string) error {
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "PG") {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	return errors.Join(os.Setenv("LC_ALL", "C"), os.Setenv("TMPDIR", dir), os.Chdir(dir))
}

// start starts the server on a free port. It returns early when ctx ends.
func (p *Postgres) start(ctx context.Context, cache string, say func(string, ...any)) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	const account, database = "postgres", "shop"
	runtime := filepath.Join(p.Dir, "runtime")
	password := rand.Text() // the port is open to everybody on this machine
	server := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(PostgresVersion).Port(port).Database(database).Username(account).Password(password).
		Locale("C").Encoding("UTF8").
		CachePath(cache).BinariesPath(p.binaries).
		RuntimePath(runtime).DataPath(filepath.Join(p.Dir, dataDir)).
		StartTimeout(time.Minute).Logger(nil).
		StartParameters(map[string]string{
			"wal_level": "logical", "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
		}))
	dsn := url.URL{
		Scheme: "postgres", User: url.UserPassword(account, password), Path: database,
		Host: fmt.Sprintf("127.0.0.1:%d", port), RawQuery: "sslmode=disable",
	}
	p.DSN = dsn.String()
	started := make(chan error, 1)
	go func() { started <- startOnce(server, cache, p.binaries, say) }()
	select {
	case err := <-started:
		return err
	case <-ctx.Done():
		err := context.Cause(ctx)
		// A download can take long, and only the end of the process ends it. After it
		// comes this directory, and then programs that had better not be left alone.
		if _, statErr := os.Stat(runtime); statErr == nil {
			err = errors.Join(err, <-started)
		}
		return err
	}
}

// startOnce starts the server while no other process may start one. The binaries count
// only if a server has started with them: unpacking may have been cut off.
func startOnce(server *embeddedpostgres.EmbeddedPostgres, cache, binaries string, say func(string, ...any)) error {
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // ends the lock, nothing was written
	if err := ignoringEINTR(func() error { return syscall.Flock(int(lock.Fd()), syscall.LOCK_EX) }); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	complete := binaries + ".complete"
	if _, err := os.Stat(complete); err == nil {
		err := server.Start()
		if err != nil {
			err = errors.Join(err, os.Remove(complete)) // something may have cleaned the cache up
		}
		return err
	}
	say("fetching Postgres %s, about 15 MB, once, into %s", PostgresVersion, cache)
	if err := removeUnfinished(cache, binaries); err != nil {
		return err
	}
	err = server.Start()
	if _, statErr := os.Stat(binaries); err != nil && errors.Is(statErr, os.ErrNotExist) {
		return fmt.Errorf("%w (the first run needs the network, HTTPS_PROXY counts; --postgres takes a running server)", err)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(complete, nil, 0o600)
}

// removeUnfinished removes what fetching and unpacking have left that were cut off.
func removeUnfinished(cache, binaries string) error {
	leftovers, err := filepath.Glob(filepath.Join(cache, "temp_*"))
	for _, path := range append(leftovers, binaries) {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

func freePort() (uint32, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return uint32(listener.Addr().(*net.TCPAddr).Port), listener.Close()
}

// Restart returns the command that starts a server that was kept.
func (p *Postgres) Restart() string {
	return filepath.Join(p.binaries, "bin", "pg_ctl") + " restart -D " + filepath.Join(p.Dir, dataDir)
}

// Log returns the last whole lines of the server's log, "" if there is none.
func (p *Postgres) Log() string {
	const size = 2 << 10
	logs, err := filepath.Glob(filepath.Join(p.Dir, "embedded_postgres_log*"))
	if err != nil || len(logs) == 0 {
		return ""
	}
	log, err := os.ReadFile(logs[0])
	if err != nil {
		return ""
	}
	if len(log) > size {
		_, log, _ = bytes.Cut(log[len(log)-size:], []byte("\n"))
	}
	return string(log)
}
