package replication

import (
	"context"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestConnectionsThatAreNotAnsweredEnd(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for timeout, want := range map[time.Duration]int{9 * time.Second: 6000, 0: 0} {
		s := &Stream{Server: Server{SenderTimeout: timeout}}
		conn, err := s.ending((&net.Dialer{}).DialContext)(context.Background(), "tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			if err != nil || got != want {
				t.Errorf("wal_sender_timeout %s: TCP_USER_TIMEOUT is %d ms, %v, want %d", timeout, got, err, want)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
}
