package servers

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// postgresAccount returns the account under which Postgres runs, or nil for the account of this process.
// It differs from that only for root, as which Postgres refuses to run. initdb looks its uid up in the password
// database, so it must be an account that exists there.
func postgresAccount() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	var errs []error
	for _, name := range []string{"postgres", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		uid, err := strconv.ParseUint(account.Uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("uid of %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(account.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("gid of %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("no unprivileged account to run Postgres as, and it refuses to run as root: %w", errors.Join(errs...))
}

// tempDirs returns the directories to try for temporary files, best first. The system's own ones come last because
// TMPDIR of root is often a directory that no other account can enter.
func tempDirs() []string { return []string{os.TempDir(), "/tmp", "/var/tmp"} }

// checkReach fails unless the account can reach dir, that is, may search it and all directories above it.
// A nil account is that of this process, which finds out by itself.
func checkReach(dir string, account *syscall.Credential) error {
	if account == nil {
		return nil
	}
	path, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for ; ; path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		everybody := info.Mode().Perm()&0o001 != 0
		owner := info.Mode().Perm()&0o100 != 0 && ownerOf(info) == int(account.Uid)
		if !everybody && !owner {
			return fmt.Errorf("uid %d cannot reach %s: %s is closed to it", account.Uid, dir, path)
		}
		if path == filepath.Dir(path) {
			return nil
		}
	}
}

// ownerOf returns the uid that owns the file.
func ownerOf(info os.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }
