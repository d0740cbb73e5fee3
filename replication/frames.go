package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// frames splits what a server sends into the messages of the protocol. A body belongs to the
// frames and is valid until the next call.
//
// pgconn reads through it until the stream begins, and never gets bytes behind the message
// that it reads, so that none of the stream's stay in pgconn's own buffer.
type frames struct {
	r       io.Reader
	keep    int // bytes of buf, but while a larger message is in it
	buf     []byte
	at, end int // what is read and not taken
	rest    int // bytes of a message of which pgconn has taken the others

	last    time.Time     // of the last Read
	waiting atomic.Bool   // for the server
	reads   atomic.Uint64 // that brought something
}

const (
	frameHeader = 5
	// ReadBuffer holds some hundreds of messages: what a Read costs no longer matters.
	ReadBuffer = 512 << 10
	// frameMax is MaxAllocSize of Postgres, which builds each message in one piece of memory.
	frameMax = 1 << 30
)

func newFrames(r io.Reader, keep int) *frames {
	return &frames{r: r, keep: keep, buf: make([]byte, keep)}
}

// next returns the next message. A Read that fails because of a deadline loses nothing.
func (f *frames) next() (kind byte, body []byte, err error) {
	for {
		size, err := f.size()
		if err != nil {
			return 0, nil, err
		}
		if b := f.buf[f.at:f.end]; size > 0 && len(b) >= size {
			f.at += size
			return b[0], b[frameHeader:size:size], nil
		}
		if err := f.fill(size); err != nil {
			return 0, nil, err
		}
	}
}

// Read gives pgconn the current message, or less.
func (f *frames) Read(b []byte) (int, error) {
	for {
		if f.rest == 0 {
			var err error
			if f.rest, err = f.size(); err != nil {
				return 0, err
			}
		}
		if f.rest > 0 && f.at < f.end {
			n := copy(b[:min(len(b), f.rest)], f.buf[f.at:f.end])
			f.at, f.rest = f.at+n, f.rest-n
			return n, nil
		}
		if err := f.fill(0); err != nil {
			return 0, err
		}
	}
}

// more reports whether next returns without reading.
func (f *frames) more() bool {
	size, err := f.size()
	return err != nil || size > 0 && f.end-f.at >= size
}

// size returns the bytes of the message at hand, 0 while they are not known.
func (f *frames) size() (int, error) {
	b := f.buf[f.at:f.end]
	if len(b) < frameHeader {
		return 0, nil
	}
	size := int64(binary.BigEndian.Uint32(b[1:])) + 1
	if size < frameHeader || size > frameMax {
		return 0, &MalformedError{Size: int(size)}
	}
	return int(size), nil
}

// fill reads more. A message of size bytes will have room.
func (f *frames) fill(size int) error {
	if f.at > 0 {
		f.end = copy(f.buf, f.buf[f.at:f.end])
		f.at = 0
	}
	switch {
	case f.end == 0 && len(f.buf) > f.keep: // rare large messages must not fill memory for good
		f.buf = make([]byte, f.keep)
	case f.end == len(f.buf): // doubled as it comes: a size alone is no reason to take a gigabyte
		f.buf = append(make([]byte, 0, min(2*len(f.buf), max(size, f.keep))), f.buf...)
		f.buf = f.buf[:cap(f.buf)]
	}
	f.waiting.Store(true)
	n, err := f.r.Read(f.buf[f.end:])
	f.waiting.Store(false)
	if n > 0 {
		f.end += n
		f.last = time.Now()
		f.reads.Add(1)
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the server closed the connection: %w", io.ErrUnexpectedEOF)
	}
	return err
}
