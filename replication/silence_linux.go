package replication

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// endUnanswered has the kernel end a connection whose other side acknowledges nothing of what was sent for that long. Who
// writes would not notice before the send buffer is full.
func endUnanswered(conn net.Conn, limit time.Duration) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return // it is closed
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds())) // since Linux 2.6.37
	})
}
