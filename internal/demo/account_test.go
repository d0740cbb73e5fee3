package demo

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestClaimAsMakesAPrivateDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	for _, when := range []string{"made", "found"} {
		if err := claimAs(dir, os.Geteuid(), os.Getegid()); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o700 {
		t.Errorf("mode: got %o, want 700", got)
	}
}

// TestClaimAsRefusesWhatSomebodyElseCanFill: programs are started from this directory.
func TestClaimAsRefusesWhatSomebodyElseCanFill(t *testing.T) {
	uid := os.Geteuid()
	for _, c := range []struct {
		name string
		make func(t *testing.T, path string) error
		uid  int // the account that claims it
	}{
		{"writable for everybody", func(_ *testing.T, path string) error {
			return mkdir(path, 0o777)
		}, uid},
		{"writable for the group", func(_ *testing.T, path string) error {
			return mkdir(path, 0o770)
		}, uid},
		{"symbolic link", func(t *testing.T, path string) error {
			return os.Symlink(t.TempDir(), path)
		}, uid},
		{"file", func(_ *testing.T, path string) error {
			return os.WriteFile(path, nil, 0o600)
		}, uid},
		{"somebody else's", func(_ *testing.T, path string) error {
			return mkdir(path, 0o700)
		}, uid + 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cache")
			if err := c.make(t, path); err != nil {
				t.Fatal(err)
			}
			if err := claimAs(path, c.uid, os.Getegid()); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// mkdir makes a directory of this mode, whatever the umask.
func mkdir(path string, mode os.FileMode) error {
	if err := os.Mkdir(path, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

func TestClaimCacheStaysTheSame(t *testing.T) {
	base := t.TempDir()
	t.Setenv("HOME", base)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(base, "new", "caches"))
	first := claimCache()
	if !filepath.IsAbs(first) || filepath.Base(first) != "walferry-demo" {
		t.Errorf("got %q, want a directory walferry-demo below %s", first, base)
	}
	if second := claimCache(); second != first {
		t.Errorf("the second time: got %q, want %q", second, first)
	}
}

func TestWithoutAccount(t *testing.T) {
	got := withoutAccount([]string{"HOME=/root", "PATH=/bin", "XDG_CACHE_HOME=/x", "TMPDIR=/root/tmp", "HTTPS_PROXY=http://p", "USER=root", "HOMEPAGE=y"})
	want := []string{"PATH=/bin", "HTTPS_PROXY=http://p", "HOMEPAGE=y"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
