package servers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// SetConf appends the settings to postgresql.conf. If the server runs it reloads its configuration, and SetConf returns
// when that is done: a new session has the settings, one that is busy gets them when it next looks. Those that
// Postgres takes over only at start need a [PG.Restart].
func (pg *PG) SetConf(ctx context.Context, settings map[string]string) error {
	if err := pg.setConf(ctx, settings); err != nil {
		return fmt.Errorf("configure postgres %s: %w", pg.version, err)
	}
	return nil
}

// SetTLS has the server offer TLS to new sessions, with a certificate and its key, both PEM. If clients is not empty
// it is the PEM certificate of the authority whose clients the server takes.
func (pg *PG) SetTLS(ctx context.Context, certificate, key, clients string) error {
	info, err := os.Stat(pg.DataDir())
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t) // Postgres takes a key of its own account only
	settings := map[string]string{"ssl": "on"}
	for setting, file := range map[string]struct{ name, content string }{
		"ssl_cert_file": {"server.crt", certificate}, "ssl_key_file": {"server.key", key}, "ssl_ca_file": {"clients.crt", clients},
	} {
		if file.content == "" {
			continue
		}
		path := filepath.Join(pg.DataDir(), file.name)
		if err := errors.Join(os.WriteFile(path, []byte(file.content), 0o600), os.Chown(path, int(owner.Uid), int(owner.Gid))); err != nil {
			return err
		}
		settings[setting] = file.name
	}
	return pg.SetConf(ctx, settings)
}

func (pg *PG) setConf(ctx context.Context, settings map[string]string) error {
	if !pg.process.running() {
		return pg.appendConf(settings)
	}
	// A new session inherits the time of the postmaster's last reload.
	const loadTime = "SELECT pg_conf_load_time()::text"
	before, err := pg.queryValue(ctx, loadTime)
	if err != nil {
		return err
	}
	if err := pg.appendConf(settings); err != nil {
		return err
	}
	if err := pg.process.signal(syscall.SIGHUP); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, shutdownLimit)
	defer cancel()
	return until(ctx, func() error {
		now, err := pg.queryValue(ctx, loadTime)
		if err == nil && now == before {
			err = errors.New("the server has not reloaded its configuration")
		}
		return err
	})
}

// appendConf appends the settings to postgresql.conf, where the last line of a name counts.
func (pg *PG) appendConf(settings map[string]string) error {
	quote := strings.NewReplacer(`'`, `''`, `\`, `\\`)
	var lines strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&lines, "%s = '%s'\n", name, quote.Replace(settings[name]))
	}
	file, err := os.OpenFile(filepath.Join(pg.DataDir(), "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(lines.String())
	return errors.Join(err, file.Close())
}
