package walsender

import (
	"bytes"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Pipe returns the two ends of an in-memory connection that behaves like TCP on one machine: each direction buffers up to
// size bytes, the peer of a closed end can still read what was sent, deadlines work. Nothing in it is a system call, so
// that a goroutine waiting on it is durably blocked in a testing/synctest bubble.
func Pipe(size int) (client, server net.Conn) { return newPipe(size) }

// pipe is what both ends share.
type pipe struct {
	size int
	mu   sync.Mutex
	cond sync.Cond // something below or in an end changed
	cut  bool      // both ends fail at once; what was on its way is lost

	stalled bool // nothing arrives
}

// pipeEnd is one end of a pipe, whose lock guards its fields.
type pipeEnd struct {
	*pipe
	peer        *pipeEnd
	in          bytes.Buffer // sent by the peer, not read yet
	left        int          // bytes still to be read before the pipe is cut
	closed      bool
	refused     bool // something was written after the peer had closed
	read, write deadline
}

func newPipe(size int) (client, server *pipeEnd) {
	p := &pipe{size: size}
	p.cond.L = &p.mu
	client, server = &pipeEnd{pipe: p, left: math.MaxInt}, &pipeEnd{pipe: p, left: math.MaxInt}
	client.peer, server.peer = server, client
	return client, server
}

func (e *pipeEnd) Read(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		if err := e.failure(e.read); err != nil {
			return 0, err
		}
		switch {
		case e.stalled:
		case e.in.Len() > 0:
			n, _ := e.in.Read(b[:min(len(b), e.left)]) // fails only when empty
			e.left -= n
			e.cut = e.left == 0
			e.cond.Broadcast()
			return n, nil
		case e.peer.closed:
			return 0, io.EOF
		}
		e.cond.Wait()
	}
}

func (e *pipeEnd) Write(b []byte) (written int, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for written < len(b) {
		if err := e.failure(e.write); err != nil {
			return written, err
		}
		room := min(e.size-e.peer.in.Len(), len(b)-written)
		switch {
		case e.peer.closed && e.refused && !e.stalled:
			return written, syscall.EPIPE
		case e.peer.closed && !e.stalled: // as TCP, which learns only by the answer to this write
			e.refused = true
			return len(b), nil
		case room > 0:
			e.peer.in.Write(b[written : written+room])
			written += room
			e.cond.Broadcast()
		default:
			e.cond.Wait()
		}
	}
	return written, nil
}

// failure is why nothing can be read or written now.
func (e *pipeEnd) failure(d deadline) error {
	switch {
	case e.closed:
		return net.ErrClosed
	case e.cut:
		return syscall.ECONNRESET
	case !d.at.IsZero() && !time.Now().Before(d.at):
		return os.ErrDeadlineExceeded
	}
	return nil
}

// Close ends the connection in the orderly way.
func (e *pipeEnd) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return net.ErrClosed
	}
	e.closed = true
	e.read.set(time.Time{}, e.pipe)
	e.write.set(time.Time{}, e.pipe)
	return nil
}

// cutAfter breaks the connection when this end has read n more bytes: both ends then fail with ECONNRESET.
func (e *pipeEnd) cutAfter(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left = n
	e.cut = e.cut || n == 0
	e.cond.Broadcast()
}

// stall makes what is sent stay on its way, or lets it arrive.
func (e *pipeEnd) stall(stalled bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stalled = stalled
	e.cond.Broadcast()
}

// deadline is when reads or writes begin to fail; the zero time means never.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) set(t time.Time, p *pipe) {
	if d.timer != nil {
		d.timer.Stop()
	}
	d.at = t
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), p.wake)
	}
	p.cond.Broadcast()
}

// wake makes the waiting look at their deadlines. The lock keeps it from falling between looking and waiting.
func (p *pipe) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cond.Broadcast()
}

func (e *pipeEnd) SetReadDeadline(t time.Time) error { return e.setDeadlines(t, &e.read) }

func (e *pipeEnd) SetWriteDeadline(t time.Time) error { return e.setDeadlines(t, &e.write) }

func (e *pipeEnd) SetDeadline(t time.Time) error { return e.setDeadlines(t, &e.read, &e.write) }

func (e *pipeEnd) setDeadlines(t time.Time, deadlines ...*deadline) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return net.ErrClosed
	}
	for _, d := range deadlines {
		d.set(t, e.pipe)
	}
	return nil
}

func (e *pipeEnd) LocalAddr() net.Addr  { return pipeAddr{} }
func (e *pipeEnd) RemoteAddr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "tcp" }
func (pipeAddr) String() string  { return "127.0.0.1:5432" }
