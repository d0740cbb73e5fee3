package walsender_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walferry/walferry/internal/walsender"
)

func TestPipeBuffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := walsender.Pipe(8)
		sent := []byte("0123456789abcdef")
		var written int
		var writeErr error
		done := make(chan struct{})
		go func() {
			defer close(done)
			written, writeErr = server.Write(sent)
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("16 bytes fitted into a buffer of 8")
		default:
		}
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(client, got); err != nil {
			t.Fatal(err)
		}
		<-done
		if written != len(sent) || writeErr != nil {
			t.Errorf("Write: got %d, %v, want %d, nil", written, writeErr, len(sent))
		}
		if !bytes.Equal(got, sent) {
			t.Errorf("read %q, want %q", got, sent)
		}
	})
}

func TestPipeDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := walsender.Pipe(4)
		start := time.Now()
		if err := client.SetReadDeadline(start.Add(2 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := client.SetWriteDeadline(start.Add(3 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read: got %v, want %v", err, os.ErrDeadlineExceeded)
		}
		if got, want := time.Since(start), 2*time.Second; got != want {
			t.Errorf("Read failed after %s, want %s", got, want)
		}
		n, err := client.Write([]byte("123456"))
		if n != 4 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write: got %d, %v, want 4, %v", n, err, os.ErrDeadlineExceeded)
		}
		if got, want := time.Since(start), 3*time.Second; got != want {
			t.Errorf("Write failed after %s, want %s", got, want)
		}
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%v is not a timeout", err)
		}

		// A deadline that is moved lets the pipe work again, one in the past also stops who waits already.
		if err := client.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		failed := make(chan error)
		go func() {
			_, err := client.Read(make([]byte, 1))
			failed <- err
		}()
		synctest.Wait()
		if err := client.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read with a past deadline: got %v, want %v", err, os.ErrDeadlineExceeded)
		}
		if _, err := io.ReadFull(server, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte("ok")); err != nil {
			t.Errorf("Write after a past read deadline: %v", err)
		}
	})
}

func TestPipeClose(t *testing.T) {
	client, server := walsender.Pipe(8)
	if _, err := server.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("too late")); err != nil {
		t.Errorf("peer's first Write: got %v, want success as with TCP", err)
	}
	got, err := io.ReadAll(client)
	if string(got) != "last" || err != nil {
		t.Errorf("peer read %q, %v, want %q and EOF", got, err, "last")
	}
	if _, err := client.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("peer's second Write: got %v, want %v", err, syscall.EPIPE)
	}
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("own Read: got %v, want %v", err, net.ErrClosed)
	}
	if err := server.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: got %v, want %v", err, net.ErrClosed)
	}
}
