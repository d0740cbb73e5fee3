package servers

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// archive is a .txz of the parts that those of Postgres consist of: an executable, a library that others cannot read, a
// link to it, a closed directory, and above them directories without an entry of their own. `tar tv` lists it as
//
//	-rwxr-xr-x bin/postgres
//	lrwxrwxrwx lib/libpq.so -> libpq.so.5.17
//	-rw-r----- lib/libpq.so.5.17
//	drwx------ share/empty/
//
// To unpack a real one takes half a minute under the race detector; every other test uses what was unpacked of those.
const archive = `
/Td6WFoAAAFpIt42AgAhARwAAAAQz1jM4Cf/AMVdADEaShsJm84iHsbLRwPoGC75j1TR0bLwgHrZEKMxZfU6+b+Dixfdr7/peWe9
HQ+ZZLx8idy3+R8Kt/Fy2MHbUvuvk1WViz6bhA1lbbhKfTin/q/YMf5A6StsaCWHFWaxl6WAZHjhtGGuYKMDGf2Pw5mr81tYDXNU
HaZedS9IzFmHGoTAbAuy/4GBIoK4vwRBb+rirN4iTIFYhT2Zeardg/82+FuaeIPDROcSCjnt50dumYtavERjai13vdKUfgxOOCRk
qiMAAAAAANkwaN8AAd0BgFAAABdqcNE+MA2LAgAAAAABWVo=`

// newJar writes a jar with the archive in it, as those of Postgres are, and returns its path.
func newJar(t *testing.T) string {
	t.Helper()
	content, err := base64.StdEncoding.DecodeString(archive)
	if err != nil {
		t.Fatal(err)
	}
	var jar bytes.Buffer
	files := zip.NewWriter(&jar)
	for name, content := range map[string][]byte{"META-INF/MANIFEST.MF": []byte("Manifest-Version: 1.0\n"), "postgres.txz": content} {
		file, err := files.Create(name)
		if err == nil {
			_, err = file.Write(content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "binaries-1.0.jar")
	if err := errors.Join(files.Close(), os.WriteFile(path, jar.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUnpackedIn(t *testing.T) {
	jar, cache := newJar(t), filepath.Join(t.TempDir(), "cache")
	defer syscall.Umask(syscall.Umask(0o077)) // which would close everything to the account of Postgres

	// Concurrent calls unpack once and agree.
	var dirs [4]string
	var group sync.WaitGroup
	for i := range dirs {
		group.Go(func() {
			dir, err := unpackedIn(cache, jar, nil)
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
	for name, want := range map[string]os.FileMode{
		"bin/postgres": 0o755, "lib": os.ModeDir | 0o755, "lib/libpq.so.5.17": 0o640, "share/empty": os.ModeDir | 0o755,
	} {
		info, err := os.Stat(filepath.Join(dirs[0], name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode(); got != want {
			t.Errorf("mode of %s: got %v, want %v", name, got, want)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dirs[0], "lib", "libpq.so")); string(got) != "x\n" {
		t.Errorf("lib/libpq.so, a link: got %q, %v, want what it links to", got, err)
	}

	// A directory that others can write to is not trusted, even with the binaries there.
	if err := os.Chmod(cache, 0o777); err != nil {
		t.Fatal(err)
	}
	if dir, err := unpackedIn(cache, jar, nil); err == nil {
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

func TestFreeAddr(t *testing.T) {
	addr := FreeAddr(t)
	if conn, err := net.Dial("tcp4", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial the free address: got %v, %v, want connection refused", conn, err)
	}
	listener, err := net.Listen("tcp4", addr)
	if err != nil {
		t.Fatalf("listen on the free address: %v", err)
	}
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
}
