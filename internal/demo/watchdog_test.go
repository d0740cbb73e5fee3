package demo

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestWatchWaitsForTheLeash(t *testing.T) {
	for _, keep := range []bool{false, true} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, dataDir), 0o700); err != nil {
			t.Fatal(err)
		}
		read, write := io.Pipe()
		watched := make(chan error, 1)
		go func() { watched <- Watch(t.Context(), read, dir, "/nonexistent", keep) }()
		if _, err := write.Write([]byte("x")); err != nil { // returns when the watchdog has read it
			t.Fatal(err)
		}
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("keep %v: before the leash ends: %v", keep, err)
		}
		if err := write.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-watched; err != nil {
			t.Errorf("keep %v: %v", keep, err)
		}
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) == keep {
			t.Errorf("keep %v: after the leash ended: %v", keep, err)
		}
	}
}
