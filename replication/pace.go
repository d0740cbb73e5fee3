package replication

import (
	"bufio"
	"context"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// paced reads from a socket in the rhythm in which Postgres sends fastest: in a backlog seldom and
// much, otherwise at once.
//
// A walsender sends each message by itself (TCP_NODELAY), which costs its kernel and ours more than
// decoding costs Postgres, unless there is no room in the receiver's window: then the kernel
// joins what waits in the send queue. So a reader that is faster than the walsender makes it slow.
// Whether messages are joined can be seen, in the bytes that a segment brings: fewer than
// joined, and the pause before a Read grows, else it shrinks. The time that the bridge takes
// for what it has read counts as pause by itself.
type paced struct {
	net.Conn
	in       *bufio.Reader // of what lies below, nil until a small read comes: TLS reads little at a time
	small    int           // bytes of such a read, and of in
	patience func() time.Duration
	received func() (bytes, segments uint64)
	pause    time.Duration

	bytes, segments uint64 // received up to the last Read

	fixed *receiveBuffer // nil: it grows as it likes
	stall stall
}

// stall is how long nobody has read, or how long somebody has again, in looks of Feedback.
type stall struct {
	idle, busy int
	free       bool // the receive buffer may grow
}

// After stallAfter looks without a Read nobody reads, and after readAgain looks with one somebody does: what has piled up is read then.
const stallAfter, readAgain = 2, 10

// look is told, ten times a second, whether somebody reads.
func (c *paced) look(reads bool) {
	s := &c.stall
	if reads {
		s.idle, s.busy = 0, s.busy+1
	} else {
		s.idle, s.busy = s.idle+1, 0
	}
	switch {
	case !s.free && s.idle >= stallAfter:
		s.free = true
		c.fixed.free()
	case s.free && s.busy >= readAgain:
		s.free = false
		c.fixed.fix()
	}
}

// ReceiveBuffer is the SO_RCVBUF of a stream whose server is near, in bytes: small, so that it is full most
// of the time. Every Linux grants as much, it is the usual net.core.rmem_max.
const ReceiveBuffer = 208 << 10

const (
	// joined is far from both regimes: a message of one row has some 300 bytes, and joined
	// segments have tens of thousands on one machine, and at least eight thousand by offload elsewhere.
	joined    = 4 << 10
	pauseMax  = 20 * time.Millisecond
	pauseStep = 100 * time.Microsecond
)

// Paced returns dial with connections that pace their reads where the kernel says how the bytes
// came: elsewhere, and from Unix sockets, which join nothing, they are read as they come. The buffer of who reads has
// this many bytes. patience says how long a read may wait; the goroutine that reads calls it.
func Paced(dial pgconn.DialFunc, buffer int, patience func() time.Duration) pgconn.DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		received, fixed := tcpReceived(conn)
		if received == nil {
			return conn, nil
		}
		p := newPaced(conn, buffer, patience, received)
		p.fixed = fixed
		return p, nil
	}
}

func newPaced(conn net.Conn, buffer int, patience func() time.Duration, received func() (bytes, segments uint64)) *paced {
	return &paced{Conn: conn, small: buffer / 2, patience: patience, received: received}
}

// Read implements net.Conn.
func (c *paced) Read(b []byte) (int, error) {
	if c.in == nil {
		if len(b) >= c.small {
			return (*pacedReader)(c).Read(b)
		}
		c.in = bufio.NewReaderSize((*pacedReader)(c), c.small)
	}
	return c.in.Read(b) // which reads what is large past its buffer
}

// pacedReader is what a paced reads from.
type pacedReader paced

func (c *pacedReader) Read(b []byte) (int, error) {
	patience := c.patience()
	if patience == 0 {
		return c.Conn.Read(b)
	}
	<-time.After(min(c.pause, patience))
	n, err := c.Conn.Read(b)
	c.adapt()
	return n, err
}

// adapt lengthens the pause by a quarter or shortens it by a thirty-second part: too short a pause costs much, too
// long a one a little.
func (c *pacedReader) adapt() {
	bytes, segments := c.received()
	if n := segments - c.segments; n > 0 {
		if (bytes-c.bytes)/n < joined {
			c.pause = min(c.pause+c.pause/4+pauseStep, pauseMax)
		} else {
			c.pause -= c.pause / 32
		}
	}
	c.bytes, c.segments = bytes, segments
}
