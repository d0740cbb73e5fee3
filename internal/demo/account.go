package demo

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// DropRoot has the process run as an ordinary account if it runs as root, because Postgres
// refuses that. It then does not return: the program starts again under the same pid. say
// is told so before.
func DropRoot(say func(format string, args ...any)) error {
	if os.Geteuid() != 0 {
		return nil
	}
	account, uid, gid, err := ordinaryAccount()
	if err != nil {
		return err
	}
	self, err := self()
	if err != nil {
		return err
	}
	info, err := os.Stat(self)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o001 == 0 {
		return fmt.Errorf("as root the demo starts itself again as %s, who may not execute it: chmod 755 %s", account.Username, os.Args[0])
	}
	env := withoutAccount(os.Environ())
	if err := claimAs("/var/cache/walferry-demo", uid, gid); err == nil {
		env = append(env, "XDG_CACHE_HOME=/var/cache")
	}
	say("Postgres refuses to run as root: going on as %s (uid %d)", account.Username, uid)
	// A directory that every account can read, whatever the present one is.
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups([]int{gid}), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
		return fmt.Errorf("change from root to %s: %w: run the demo as an ordinary user", account.Username, err)
	}
	return fmt.Errorf("start again as %s: %w", account.Username, syscall.Exec(self, os.Args, env))
}

// ordinaryAccount returns an account for Postgres. It must exist: initdb looks it up.
func ordinaryAccount() (account *user.User, uid, gid int, err error) {
	var errs []error
	for _, name := range []string{"postgres", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		uid, uidErr := strconv.Atoi(account.Uid)
		gid, gidErr := strconv.Atoi(account.Gid)
		return account, uid, gid, errors.Join(uidErr, gidErr)
	}
	return nil, 0, 0, fmt.Errorf("no account to run Postgres as, and it refuses to run as root: %w", errors.Join(errs...))
}

// self returns the path of the running program. On Linux it works for an account that
// cannot reach the file, and after the file was replaced.
func self() (string, error) {
	if runtime.GOOS == "linux" {
		return "/proc/self/exe", nil
	}
	return os.Executable()
}

// withoutAccount returns env without what belongs to the account.
func withoutAccount(env []string) []string {
	return slices.DeleteFunc(env, func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return slices.Contains([]string{"HOME", "USER", "LOGNAME", "TMPDIR"}, name) || strings.HasPrefix(name, "XDG_")
	})
}

// claimAs makes the directory for the account if it is missing, and checks whose it is.
func claimAs(dir string, uid, gid int) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = os.Lchown(dir, uid, gid)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return belongsTo(dir, uid)
}

// belongsTo fails unless dir is a directory, no symbolic link, of the account, and nobody
// else may write to it. What is in a directory like /var/tmp anybody can have put there.
func belongsTo(dir string, uid int) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if !info.IsDir() || owner != uid || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is not a directory of uid %d alone", dir, uid)
	}
	return nil
}

// claimCache returns a directory for what is kept between runs, or "" if there is none.
func claimCache() string {
	uid := os.Geteuid()
	var candidates []string
	if base, err := os.UserCacheDir(); err == nil && os.MkdirAll(base, 0o700) == nil {
		candidates = append(candidates, filepath.Join(base, "walferry-demo"))
	}
	candidates = append(candidates, "/var/tmp/walferry-demo-"+strconv.Itoa(uid))
	for _, dir := range candidates {
		if claimAs(dir, uid, os.Getegid()) == nil && writable(dir) {
			return dir
		}
	}
	return ""
}

func writable(dir string) bool {
	file, err := os.CreateTemp(dir, "probe-")
	if err != nil {
		return false
	}
	return errors.Join(file.Close(), os.Remove(file.Name())) == nil
}

// newRunDir makes the directory of one run.
func newRunDir() (string, error) {
	var errs []error
	for _, temp := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		dir, err := os.MkdirTemp(temp, "walferry-demo-")
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("make a temporary directory: %w", errors.Join(errs...))
}
