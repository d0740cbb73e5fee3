package servers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A scratch is the temporary directory of one server: its data, its log and a lock that tells it from an abandoned one.
type scratch struct {
	dir  string
	lock *os.File // locked as long as the process that made the directory lives
}

// newScratch creates a scratch which account can reach, in WALFERRY_TEST_DATA if that is set, and removes those that killed processes have left.
func newScratch(account *syscall.Credential) (*scratch, error) {
	var errs []error
	for _, temp := range append(listFromEnv("WALFERRY_TEST_DATA"), tempDirs()...) {
		if err := checkReach(temp, account); err != nil {
			errs = append(errs, err)
			continue
		}
		removeAbandoned(temp)
		s, err := newScratchIn(temp)
		if err == nil {
			return s, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("create a temporary directory for a server: %w", errors.Join(errs...))
}

func newScratchIn(temp string) (*scratch, error) {
	dir, err := os.MkdirTemp(temp, "walferry-server-")
	if err != nil {
		return nil, err
	}
	// The file gets its name when it is locked: who sees it unlocked knows that its owner is gone.
	lock, err := lockFile(filepath.Join(dir, "locking"), true)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := errors.Join(os.Rename(lock.Name(), filepath.Join(dir, "lock")), os.Chmod(dir, 0o755)); err != nil {
		return nil, errors.Join(err, lock.Close(), os.RemoveAll(dir))
	}
	return &scratch{dir: dir, lock: lock}, nil
}

// removeAbandoned removes what killed processes of this account have left in temp. It is only housekeeping: what it
// cannot remove stays.
func removeAbandoned(temp string) {
	dirs, err := filepath.Glob(filepath.Join(temp, "walferry-server-*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || ownerOf(info) != os.Geteuid() {
			continue
		}
		lock, err := lockFile(filepath.Join(dir, "lock"), false)
		if err != nil {
			continue
		}
		_ = os.RemoveAll(dir)
		_ = lock.Close()
	}
}

// lockFile opens the file and takes an exclusive lock on it, which ends when the file is closed or the process dies.
// With wait it creates the file and waits for the lock; without, both must be there for the taking.
func lockFile(path string, wait bool) (*os.File, error) {
	flags, how := os.O_RDWR, syscall.LOCK_EX|syscall.LOCK_NB
	if wait {
		flags, how = flags|os.O_CREATE, syscall.LOCK_EX
	}
	file, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(file.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
	}
	return file, nil
}

func (s *scratch) path(name string) string { return filepath.Join(s.dir, name) }

// openLog opens the server's log for appending.
func (s *scratch) openLog() (*os.File, error) {
	return os.OpenFile(s.path("server.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

// logTail returns the last whole lines of the server's log, at most 8 KiB.
func (s *scratch) logTail() string {
	const size = 8 << 10
	file, err := os.Open(s.path("server.log"))
	if err != nil {
		return fmt.Sprintf("(no server log: %v)", err)
	}
	defer file.Close() //nolint:errcheck // only read
	info, err := file.Stat()
	if err != nil {
		return fmt.Sprintf("(no server log: %v)", err)
	}
	start := max(0, info.Size()-size)
	tail, err := io.ReadAll(io.NewSectionReader(file, start, size))
	if err != nil {
		return fmt.Sprintf("(no server log: %v)", err)
	}
	if start == 0 {
		return string(tail)
	}
	_, lines, _ := strings.Cut(string(tail), "\n")
	return lines
}

// remove removes the directory with everything in it. No process may use it any more.
func (s *scratch) remove() error { return errors.Join(os.RemoveAll(s.dir), s.lock.Close()) }
