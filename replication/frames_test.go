package replication

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// chunked returns Reads of the given sizes, over and over.
type chunked struct {
	in    *bytes.Reader
	sizes []byte
	i     int
}

func (c *chunked) Read(b []byte) (int, error) {
	n := len(b)
	if len(c.sizes) > 0 {
		n = min(n, int(c.sizes[c.i%len(c.sizes)])+1)
		c.i++
	}
	return c.in.Read(b[:n])
}

// FuzzFrames splits messages, cut anywhere: pgproto3 reads the first ones through it, as pgconn does until
// the stream begins, and everything else must be there then.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("one\x00two"), []byte{3, 5}, byte(1))
	f.Add(bytes.Repeat([]byte("abc\x00"), 100), []byte{0}, byte(50))
	f.Add(bytes.Repeat([]byte{'x'}, 3000), []byte{}, byte(0))
	f.Fuzz(func(t *testing.T, text, sizes []byte, first byte) {
		bodies := bytes.Split(text, []byte{0})
		var wire []byte
		for _, body := range bodies {
			var err error
			if wire, err = (&pgproto3.CopyData{Data: body}).Encode(wire); err != nil {
				t.Fatal(err)
			}
		}
		fr := newFrames(&chunked{in: bytes.NewReader(wire), sizes: sizes}, ReadBuffer)
		frontend := pgproto3.NewFrontend(fr, io.Discard)
		for i, body := range bodies {
			if i < int(first) {
				m, err := frontend.Receive()
				if err != nil || !bytes.Equal(m.(*pgproto3.CopyData).Data, body) {
					t.Fatalf("message %d through pgproto3: %v, %v", i, m, err)
				}
				if n := frontend.ReadBufferLen(); n != 0 {
					t.Fatalf("pgproto3 holds %d bytes behind message %d", n, i)
				}
				continue
			}
			kind, got, err := fr.next()
			if err != nil || kind != 'd' || !bytes.Equal(got, body) {
				t.Fatalf("message %d: %q %q, %v, want %q", i, kind, got, err, body)
			}
		}
		if _, _, err := fr.next(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("behind the last message: %v", err)
		}
	})
}

func TestFrameOfAnySize(t *testing.T) {
	for _, size := range []int{0, ReadBuffer - 6, ReadBuffer - 5, ReadBuffer - 4, 3 * ReadBuffer, 40 << 20} {
		body := bytes.Repeat([]byte{'x'}, size)
		wire, err := (&pgproto3.CopyData{Data: body}).Encode([]byte{'d', 0, 0, 0, 5, '1'})
		if err != nil {
			t.Fatal(err)
		}
		fr := newFrames(iotest.HalfReader(bytes.NewReader(append(wire, 'd', 0, 0, 0, 5, '2'))), ReadBuffer)
		for i, want := range [][]byte{{'1'}, body, {'2'}} {
			if _, got, err := fr.next(); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("size %d, message %d: %d bytes, %v", size, i, len(got), err)
			}
		}
		if cap(fr.buf) > ReadBuffer && size <= ReadBuffer-5 {
			t.Errorf("a message of %d bytes took a buffer of %d", size, cap(fr.buf))
		}
		_, _, _ = fr.next()
		if cap(fr.buf) != ReadBuffer {
			t.Errorf("%d bytes are kept after a message of %d", cap(fr.buf), size)
		}
	}
}

// A length alone must not make the bridge take a gigabyte.
func TestFrameSizeIsNotBelieved(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, _, err := newFrames(bytes.NewReader([]byte{'d', 0x3f, 0xff, 0xff, 0xff}), ReadBuffer).next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a message that does not come: %v", err)
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 8*ReadBuffer {
		t.Errorf("%d bytes were allocated", grown)
	}
	for _, size := range [][]byte{{0, 0, 0, 0}, {0, 0, 0, 3}, {0x40, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff}} {
		var malformed *MalformedError
		if _, _, err := newFrames(bytes.NewReader(append([]byte{'d'}, size...)), ReadBuffer).next(); !errors.As(err, &malformed) {
			t.Errorf("size % x: %v", size, err)
		}
	}
}

// A deadline in the middle of a message loses nothing of it.
func TestFrameIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		fr := newFrames(client, ReadBuffer)
		for _, part := range []string{"d", "\x00\x00\x00", "\x08da", "ta"} {
			if err := client.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := fr.next(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("before %q: %v", part, err)
			}
			if err := client.SetReadDeadline(time.Time{}); err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = server.Write([]byte(part)) }() // in memory
			go func() { <-time.After(time.Second); _ = client.SetReadDeadline(time.Now()) }()
			if kind, body, err := fr.next(); part != "ta" && !errors.Is(err, os.ErrDeadlineExceeded) ||
				part == "ta" && (err != nil || kind != 'd' || string(body) != "data") {
				t.Fatalf("after %q: %q %q %v", part, kind, body, err)
			}
			<-time.After(2 * time.Second)
		}
	})
}
