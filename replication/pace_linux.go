package replication

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// near is a round trip that so small a buffer does not hold up: it lets 200 MB/s pass.
const near = time.Millisecond

// tcpReceived returns a function that says what a connection has received so far, nil if the
// kernel does not: tcp_info has segments since Linux 4.6. The connection's receive
// buffer gets a fixed size if the server is near.
func tcpReceived(conn net.Conn) (received func() (bytes, segments uint64), buffer *receiveBuffer) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, nil
	}
	info := func() (info *unix.TCPInfo, err error) {
		controlErr := raw.Control(func(fd uintptr) {
			info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		})
		if controlErr != nil {
			return nil, controlErr
		}
		return info, err
	}
	first, err := info()
	if err != nil {
		return nil, nil
	}
	if time.Duration(first.Rtt)*time.Microsecond < near {
		buffer = fixReceiveBuffer(tcp, raw)
	}
	return func() (bytes, segments uint64) {
		i, err := info()
		if err != nil {
			return 0, 0 // the connection's own error comes with the next Read
		}
		return i.Bytes_received, uint64(i.Data_segs_in)
	}, buffer
}

// receiveBuffer is that of a socket, of a fixed size while it is read. While nobody reads it must be able to grow: one that overflows
// drops segments and closes the window over what it has offered, and whatever comes behind it, the acknowledgements of what we send
// among it, is not accepted any more (tcp_input.c, tcp_sequence). Then no status update would pass, and Postgres give up on us.
type receiveBuffer struct {
	tcp *net.TCPConn
	raw syscall.RawConn
}

// fixReceiveBuffer returns nil where the size cannot be made free again: before Linux 5.14 it stays as it is.
func fixReceiveBuffer(tcp *net.TCPConn, raw syscall.RawConn) *receiveBuffer {
	b := &receiveBuffer{tcp, raw}
	if b.unlock() != nil {
		return nil
	}
	b.fix()
	return b
}

// fix gives the buffer its size. A buffer that grows as it likes would make the pauses grow with it.
func (b *receiveBuffer) fix() {
	if b != nil {
		_ = b.tcp.SetReadBuffer(ReceiveBuffer) // that fails on a closed connection only, as unlock
	}
}

// free lets the buffer grow by what has to find room. If it has overflowed already that is not enough: since Linux 6.17 not even what
// was dropped is accepted while the window is closed, so nothing arrives that it would grow for. More room opens the window.
// The kernel grants up to net.core.rmem_max, which has been 4 MiB since then.
func (b *receiveBuffer) free() {
	if b != nil {
		_ = b.tcp.SetReadBuffer(2 * ReceiveBuffer)
		_ = b.unlock()
	}
}

func (b *receiveBuffer) unlock() (err error) {
	if controlErr := b.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0)
	}); controlErr != nil {
		return controlErr
	}
	return err
}
