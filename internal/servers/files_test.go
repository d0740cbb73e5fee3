package servers

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

func TestUnpackedIn(t *testing.T) {
	home, err := fetched()
	if err != nil {
		t.Fatal(err)
	}
	found, err := jars(filepath.Join(home, "postgres", "17"))
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(t.TempDir(), "cache")

	// Concurrent calls unpack once and agree.
	var dirs [4]string
	var group sync.WaitGroup
	for i := range dirs {
		group.Go(func() {
			dir, err := unpackedIn(cache, found[0], nil)
			if err != nil {
				t.Error(err)
			}
			dirs[i] = dir
		})
	}
	group.Wait()
	for _, dir := range dirs {
		if dir != dirs[0] {
			t.Errorf("got %s and %s, want the same directory", dirs[0], dir)
		}
	}
	info, err := os.Stat(filepath.Join(dirs[0], "bin", "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := info.Mode().Perm(), os.FileMode(0o755); got != want {
		t.Errorf("mode of bin/postgres: got %v, want %v", got, want)
	}

	// A directory that others can write to is not trusted, even with the binaries there.
	if err := os.Chmod(cache, 0o777); err != nil {
		t.Fatal(err)
	}
	if dir, err := unpackedIn(cache, found[0], nil); err == nil {
		t.Errorf("unpackedIn a directory that everybody can change: got %s, want an error", dir)
	}
}

func TestCheckReach(t *testing.T) {
	owner := &syscall.Credential{Uid: uint32(os.Geteuid())}
	other := &syscall.Credential{Uid: uint32(os.Geteuid()) + 1}
	scratch, err := newScratch(other)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := scratch.remove(); err != nil {
			t.Error(err)
		}
	})
	open, closed := scratch.dir, scratch.path("closed")
	below := filepath.Join(closed, "below")
	if err := errors.Join(os.Mkdir(closed, 0o700), os.Mkdir(below, 0o700), os.Chmod(below, 0o755)); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		dir     string
		account *syscall.Credential
		reached bool
	}{
		{open, other, true},
		{closed, other, false},
		{below, other, false},
		{below, owner, true},
		{below, nil, true},
		{filepath.Join(open, "absent"), other, false},
	}
	for _, test := range tests {
		if err := checkReach(test.dir, test.account); (err == nil) != test.reached {
			t.Errorf("checkReach(%s, %+v): got error %v, want reached %t", test.dir, test.account, err, test.reached)
		}
	}
}

// A directory whose process lives is not abandoned.
func TestRemoveAbandonedKeepsLive(t *testing.T) {
	temp := t.TempDir()
	live, err := newScratchIn(temp)
	if err != nil {
		t.Fatal(err)
	}
	abandoned, err := newScratchIn(temp)
	if err != nil {
		t.Fatal(err)
	}
	if err := abandoned.lock.Close(); err != nil {
		t.Fatal(err)
	}
	removeAbandoned(temp)
	if _, err := os.Stat(live.dir); err != nil {
		t.Errorf("the live one: got %v, want that it stays", err)
	}
	if _, err := os.Stat(abandoned.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the abandoned one: got error %v, want that it does not exist", err)
	}
	if err := live.remove(); err != nil {
		t.Error(err)
	}
}

func TestHoldPort(t *testing.T) {
	held, err := holdPort()
	if err != nil {
		t.Fatal(err)
	}
	// The server can listen on it, end, and listen again.
	for range 2 {
		listener, err := net.Listen("tcp4", held.addr())
		if err != nil {
			t.Fatalf("listen on the held port: %v", err)
		}
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// Nobody else gets it: not as a free port, and a connection without a listener is refused.
	if conn, err := net.Dial("tcp4", held.addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial the held port: got %v, %v, want connection refused", conn, err)
	}
	if got, err := bindLoopback(held.number); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("bind to the held port: got socket %d, error %v, want address in use", got, err)
	}
	if err := held.release(); err != nil {
		t.Fatal(err)
	}
	fd, err := bindLoopback(held.number)
	if err != nil {
		t.Fatalf("bind to the released port: %v", err)
	}
	if err := syscall.Close(fd); err != nil {
		t.Error(err)
	}
}
