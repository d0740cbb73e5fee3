package replication

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// near is a round trip that so small a buffer does not hold up: it lets 200 MB/s pass.
const near = time.Millisecond

// tcpReceived returns a function that says what a connection has received so far, nil if the
// kernel does not: tcp_info has segments since Linux 4.6. The connection's receive
// buffer gets a fixed size if the server is near.
func tcpReceived(conn net.Conn) func() (bytes, segments uint64) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
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
		return nil
	}
	if time.Duration(first.Rtt)*time.Microsecond < near {
		_ = tcp.SetReadBuffer(ReceiveBuffer) // else it grows as it likes, and the pauses with it
	}
	return func() (bytes, segments uint64) {
		i, err := info()
		if err != nil {
			return 0, 0 // the connection's own error comes with the next Read
		}
		return i.Bytes_received, uint64(i.Data_segs_in)
	}
}
