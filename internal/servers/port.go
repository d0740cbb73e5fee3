package servers

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"
)

// A port is a TCP port of 127.0.0.1 that is kept for one server, also while the server is down.
//
// Holding it is a bound socket that never listens. The kernel then gives the port to nobody else: not to another test,
// and not as the source port of an outgoing connection, which could otherwise take the port of a killed server or,
// when a client dials it again and again, connect to itself. The server can still listen, because it binds with
// SO_REUSEADDR, as servers do, and the holding socket has that option too (but only after it was bound without it,
// so that the kernel chose a port with no other owner).
type port struct {
	number int
	held   *os.File
}

func holdPort() (port, error) {
	fd, err := bindLoopback(0)
	if err != nil {
		return port{}, fmt.Errorf("hold a free port of 127.0.0.1: %w", err)
	}
	held := os.NewFile(uintptr(fd), "held port")
	address, err := syscall.Getsockname(fd)
	if err == nil {
		err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	}
	if err != nil {
		return port{}, errors.Join(fmt.Errorf("hold a free port of 127.0.0.1: %w", err), held.Close())
	}
	return port{number: address.(*syscall.SockaddrInet4).Port, held: held}, nil
}

// bindLoopback returns a socket that is bound to the port of 127.0.0.1, or for 0 to one that the kernel chooses.
func bindLoopback(port int) (int, error) {
	syscall.ForkLock.RLock() // no child may inherit the socket between the next two calls
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		_ = syscall.Close(fd)
		return 0, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

func (p port) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.number)) }

func (p port) release() error { return p.held.Close() }

// FreeAddr returns host:port of 127.0.0.1 that nobody listens on: a connection to it is refused until the test listens
// there. Unlike the ports of the servers here it is not held, because other systems than Linux let nobody listen beside
// the holder.
func FreeAddr(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	return listener.Addr().String()
}
