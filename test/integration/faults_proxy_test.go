package integration

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// proxy is a TCP proxy in front of one server, and the network's faults.
type proxy struct {
	upstream string
	listener net.Listener
	pumps    sync.WaitGroup

	mu      sync.Mutex // guards the following
	links   map[*link]bool
	latency time.Duration // of each chunk of bytes, either way
	budget  int           // bytes from the server until a reset; negative: without end
	hole    bool          // new connections are swallowed
	carry   carrier       // nil: at once and whole
}

// carrier writes a chunk of bytes to one side of a connection in a way of its own.
type carrier func(to net.Conn, chunk []byte, fromServer bool) error

// link is one connection through a proxy.
type link struct {
	client, server net.Conn
	swallowed      bool // nothing comes through any more, and nobody is told
}

// newProxy listens for connections to upstream until the end of the test.
func newProxy(t *testing.T, upstream string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{upstream: upstream, listener: listener, links: map[*link]bool{}, budget: -1}
	p.pumps.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.reset()
		p.pumps.Wait()
	})
	return p
}

// dial connects through the proxy, whatever the address.
func (p *proxy) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, p.listener.Addr().String())
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed at the end of the test
		}
		server, err := net.Dial("tcp", p.upstream)
		if err != nil {
			_ = client.Close()
			continue
		}
		l := &link{client: client, server: server}
		p.mu.Lock()
		l.swallowed = p.hole
		p.links[l] = true
		p.mu.Unlock()
		p.pumps.Go(func() { p.pump(l, client, server, false) })
		p.pumps.Go(func() { p.pump(l, server, client, true) })
	}
}

// pump carries one direction until either side closes.
func (p *proxy) pump(l *link, from, to net.Conn, fromServer bool) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		n, latency, cut := p.admit(l, n, fromServer)
		if latency > 0 && n > 0 {
			<-time.After(latency)
		}
		if n > 0 {
			if writeErr := p.write(to, buffer[:n], fromServer); writeErr != nil && err == nil {
				err = writeErr
			}
		}
		if cut {
			p.reset()
		}
		if err != nil && !p.swallows(l) {
			_, _ = from.Close(), to.Close() // one of them has failed
			p.mu.Lock()
			delete(p.links, l)
			p.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

func (p *proxy) write(to net.Conn, chunk []byte, fromServer bool) error {
	p.mu.Lock()
	carry := p.carry
	p.mu.Unlock()
	if carry != nil {
		return carry(to, chunk, fromServer)
	}
	_, err := to.Write(chunk)
	return err
}

// admit says how many of n bytes come through, how late, and whether the budget ends there.
func (p *proxy) admit(l *link, n int, fromServer bool) (admitted int, latency time.Duration, cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.swallowed {
		return 0, 0, false
	}
	if fromServer && p.budget >= 0 {
		if n >= p.budget {
			n, cut = p.budget, true
			p.budget = -1
		} else {
			p.budget -= n
		}
	}
	return n, p.latency, cut
}

func (p *proxy) swallows(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return l.swallowed
}

// reset ends all connections with RST.
func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		for _, c := range []net.Conn{l.client, l.server} {
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	}
	clear(p.links)
}

// blackHole swallows everything on all connections, the open ones for ever, new ones
// until heal.
func (p *proxy) blackHole() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hole = true
	for l := range p.links {
		l.swallowed = true
	}
}

func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hole = false
}

// resetAfter resets all connections after so many more bytes from the server.
func (p *proxy) resetAfter(bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.budget = bytes
}

func (p *proxy) delay(latency time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latency = latency
}

// throughProxies puts a proxy between the world's bridges and each server.
func (w *world) throughProxies() (postgres, kafka *proxy) {
	w.t.Helper()
	cfg, err := pgx.ParseConfig(w.dsn())
	if err != nil {
		w.t.Fatal(err)
	}
	postgres = newProxy(w.t, net.JoinHostPort(cfg.Host, fmt.Sprint(cfg.Port)))
	kafka = newProxy(w.t, w.cfg.Kafka.Brokers[0])
	w.dialPostgres, w.dialKafka = postgres.dial, kafka.dial
	return postgres, kafka
}
