package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// StandbyOptions are the choices for a standby.
type StandbyOptions struct {
	// Slot is the physical slot through which the standby streams. It is created on the primary, and is what
	// synchronized_standby_slots names.
	Slot string
	// SyncSlots has the standby copy the primary's failover slots, which Postgres 17 and later can.
	SyncSlots bool
	// Settings go into postgresql.conf behind those of the primary, and win over them.
	Settings map[string]string
}

// Standby makes a standby of the running server: a copy of its files that was made while it runs, and a server on it
// that streams from it as long as it lives. It returns when the standby accepts connections. The standby is a [PG] of
// its own, which the caller must close. ctx bounds only its start.
//
// [PG.SetConf] of a standby has it look for the primary's failover slots at once; by itself it comes to look twice a minute.
func (pg *PG) Standby(ctx context.Context, opts StandbyOptions) (*PG, error) {
	standby, err := newPG(pg.version)
	if err != nil {
		return nil, fmt.Errorf("standby of postgres %s: %w", pg.version, err)
	}
	if err := pg.cloneTo(ctx, standby, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("copy postgres %s for a standby: %w", pg.version, err), standby.Close())
	}
	if err := standby.Start(ctx); err != nil {
		return nil, errors.Join(err, standby.Close())
	}
	return standby, nil
}

// Promote ends the recovery of a standby, and returns when it is a primary of its own.
func (pg *PG) Promote(ctx context.Context) error {
	promoted, err := pg.queryValue(ctx, "SELECT pg_promote()::text")
	if err == nil && promoted != "true" {
		err = errors.New("it is still in recovery; its log ends with:\n" + pg.Log())
	}
	if err != nil {
		return fmt.Errorf("promote postgres %s: %w", pg.version, err)
	}
	return nil
}

// cloneTo makes the standby's data directory and configuration.
func (pg *PG) cloneTo(ctx context.Context, standby *PG, opts StandbyOptions) error {
	ctx, cancel := context.WithTimeout(ctx, postgresStartLimit)
	defer cancel()
	conn, err := pgx.Connect(ctx, pg.DSN("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // ends a backup that has not ended
	// The slot keeps all WAL from now on, which the standby reads from it: none is copied.
	if _, err := conn.Exec(ctx, "SELECT pg_create_physical_replication_slot($1, true)", opts.Slot); err != nil {
		return err
	}
	label, err := backup(ctx, conn, func() error { return copyCluster(pg.DataDir(), standby.DataDir()) })
	if err != nil {
		return err
	}
	for name, content := range map[string]string{"backup_label": label, "standby.signal": ""} {
		if err := os.WriteFile(filepath.Join(standby.DataDir(), name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	settings := map[string]string{
		"port":                        fmt.Sprint(standby.Port()),
		"primary_conninfo":            fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres application_name=%s", pg.Port(), opts.Slot),
		"primary_slot_name":           opts.Slot,
		"hot_standby_feedback":        "on",
		"wal_retrieve_retry_interval": "200ms",
	}
	if opts.SyncSlots {
		settings["sync_replication_slots"] = "on"
	}
	maps.Copy(settings, opts.Settings)
	if err := standby.appendConf(settings); err != nil {
		return err
	}
	return giveAway(standby.DataDir(), pg.account)
}

// giveAway makes all files in dir those of the account, unless it is nil.
func giveAway(dir string, account *syscall.Credential) error {
	if account == nil {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, int(account.Uid), int(account.Gid)))
	})
}

// backup runs copyFiles between the start and the end of a base backup, and returns its backup_label.
func backup(ctx context.Context, conn *pgx.Conn, copyFiles func() error) (label string, err error) {
	start, stop := "SELECT pg_backup_start('standby', true)", "SELECT labelfile FROM pg_backup_stop(false)"
	if conn.PgConn().ParameterStatus("server_version") < "15" {
		start, stop = "SELECT pg_start_backup('standby', true, false)", "SELECT labelfile FROM pg_stop_backup(false, false)"
	}
	if _, err := conn.Exec(ctx, start); err != nil {
		return "", err
	}
	if err := copyFiles(); err != nil {
		return "", err
	}
	return label, conn.QueryRow(ctx, stop).Scan(&label)
}

// notCopied are what a backup does not have: of these directories the content, and these files
// (src/backend/backup/basebackup.c).
var notCopied = map[string]bool{
	"pg_wal": true, "pg_replslot": true, "pg_dynshmem": true, "pg_notify": true, "pg_serial": true, "pg_snapshots": true,
	"pg_stat_tmp": true, "pg_subtrans": true, "postmaster.pid": true, "postmaster.opts": true, "pg_internal.init": true,
}

// copyCluster copies the files of a server that runs: what vanishes meanwhile is not needed, and what changes is in the WAL.
func copyCluster(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		name, relErr := filepath.Rel(from, path)
		if err := errors.Join(err, relErr); err != nil {
			return err
		}
		target := filepath.Join(to, name)
		switch {
		case entry.IsDir():
			if err := os.Mkdir(target, 0o700); err != nil || !notCopied[entry.Name()] {
				return err
			}
			return fs.SkipDir
		case notCopied[entry.Name()]:
			return nil
		}
		if err := copyFile(path, target); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close() //nolint:errcheck // only read
	target, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}
