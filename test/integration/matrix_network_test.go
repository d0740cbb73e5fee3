//go:build faults

package integration

import (
	wire "encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
)

func (p *proxy) carryBy(c carrier) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.carry = c
}

// late delays each chunk by about that much.
func late(latency time.Duration) carrier {
	return func(to net.Conn, chunk []byte, _ bool) error {
		<-time.After(latency/2 + rand.N(latency))
		_, err := to.Write(chunk)
		return err
	}
}

// narrow lets so many bytes pass in a second, each connection and direction for itself.
func narrow(bytesPerSecond int) carrier {
	return func(to net.Conn, chunk []byte, _ bool) error {
		for len(chunk) > 0 {
			n := min(len(chunk), 1024)
			<-time.After(time.Duration(n) * time.Second / time.Duration(bytesPerSecond))
			if _, err := to.Write(chunk[:n]); err != nil {
				return err
			}
			chunk = chunk[n:]
		}
		return nil
	}
}

// sliced writes pieces of 1 to 50 bytes.
func sliced(to net.Conn, chunk []byte, _ bool) error {
	for len(chunk) > 0 {
		n := min(len(chunk), 1+rand.IntN(50))
		if _, err := to.Write(chunk[:n]); err != nil {
			return err
		}
		chunk = chunk[n:]
	}
	return nil
}

// cutBehind resets all connections behind a request of a kind that the broker has got, so that its answer is lost. armed
// counts the cuts that are still to come.
func cutBehind(kind kmsg.Key, p *proxy, armed *atomic.Int32) carrier {
	return func(to net.Conn, chunk []byte, fromServer bool) error {
		_, err := to.Write(chunk)
		// A request begins with its length and the number of its kind; what is longer than a chunk is not cut.
		if !fromServer && len(chunk) >= 6 && int(wire.BigEndian.Uint32(chunk)) == len(chunk)-4 &&
			kmsg.Key(wire.BigEndian.Uint16(chunk[4:])) == kind && armed.Add(-1) >= 0 {
			p.resetAfter(0)
		}
		return err
	}
}

// faultyNetwork runs a world through proxies, breaks the network as scene says while there is load, and verifies.
func (f *faultRun) faultyNetwork(name string, scene func(r *running, l *load, postgres, kafka *proxy)) {
	f.Helper()
	w := newWorld(f.T, newest(f.T), func(cfg *config.Config) { senderTimeout(cfg, 4*time.Second) })
	postgres, kafka := w.throughProxies()
	l := f.load(w)
	r := w.run("")
	r.awaitState(bridge.Streaming)
	l.more(20)
	began := time.Now()
	scene(r, l, postgres, kafka)
	l.stop()
	duplicates := f.verify(l)
	sessions := r.bridge.Status().Sessions
	f.note("%s: %s, %d sessions, %d duplicates;", name, short(time.Since(began)), sessions, duplicates)
	if sessions == 1 && duplicates > 0 {
		f.Errorf("%s: %d duplicates within one session, whose producer is idempotent", name, duplicates)
	}
	r.drain()
}

// mild are faults that a session outlives.
var mild = []struct {
	name  string
	carry carrier
}{{"latency 500 ms", late(500 * time.Millisecond)}, {"50 kB/s", narrow(50_000)}, {"slices", sliced}}

// networkBeforePostgres has every fault of a network in front of Postgres.
func networkBeforePostgres(f *faultRun) {
	for _, m := range mild {
		f.faultyNetwork(m.name, func(r *running, l *load, postgres, _ *proxy) {
			postgres.carryBy(m.carry)
			l.more(200)
			l.stop()
			l.w.awaitCaughtUp()
			if n := r.bridge.Status().Sessions; n != 1 {
				f.Errorf("%s: %d sessions, want 1", m.name, n)
			}
		})
	}
	f.faultyNetwork("resets", func(r *running, l *load, postgres, _ *proxy) {
		for range 10 {
			r.awaitState(bridge.Streaming)
			before := r.bridge.Status().Sessions
			postgres.resetAfter(f.random.IntN(64 << 10))
			await(f.T, "another session", func() error {
				if r.bridge.Status().Sessions == before {
					return errors.New("still the same")
				}
				return nil
			})
		}
	})
	f.faultyNetwork("black hole", func(r *running, l *load, postgres, _ *proxy) {
		postgres.blackHole()
		began := time.Now()
		await(f.T, "the session to end", func() error {
			if !r.bridge.Status().LastErrorAt.After(began) {
				return errors.New("it lives")
			}
			return nil
		})
		took := time.Since(began)
		f.note("noticed after %s", short(took))
		f.within("to notice a black hole", took, 5*time.Second) // wal_sender_timeout is 4 s
		postgres.heal()
		healed := time.Now()
		r.awaitState(bridge.Streaming)
		f.recovered(l.w, healed, l.w.insertLSN())
	})
}

// networkBeforeKafka has every fault of a network in front of Kafka.
func networkBeforeKafka(f *faultRun) {
	for _, m := range mild {
		f.faultyNetwork(m.name, func(_ *running, l *load, _, kafka *proxy) {
			kafka.carryBy(m.carry)
			l.more(200)
			l.stop()
			l.w.awaitCaughtUp()
		})
	}
	f.faultyNetwork("resets", func(_ *running, l *load, _, kafka *proxy) {
		for round := range 20 {
			l.more(f.random.IntN(30))
			if round%2 == 0 {
				kafka.reset()
			} else {
				kafka.resetAfter(f.random.IntN(256)) // in the middle of an acknowledgement
			}
		}
	})
	for _, kind := range []kmsg.Key{kmsg.Produce, kmsg.EndTxn} {
		f.faultyNetwork("20 cut behind "+kind.Name(), func(_ *running, l *load, _, kafka *proxy) {
			var armed atomic.Int32
			kafka.carryBy(cutBehind(kind, kafka, &armed))
			for range 20 {
				armed.Store(1)
				await(f.T, "a cut", func() error {
					if armed.Load() > 0 {
						return errors.New("no such request")
					}
					return nil
				})
				l.more(10)
			}
		})
	}
	f.faultyNetwork("black hole of 10 s", func(_ *running, l *load, _, kafka *proxy) {
		kafka.blackHole()
		<-time.After(10 * time.Second)
		kafka.heal()
		healed := time.Now()
		f.recovered(l.w, healed, l.w.insertLSN())
	})
}

// answers stands between a bridge and a broker and gives produce requests other answers than the broker's.
type answers struct {
	upstream string
	listener net.Listener

	mu         sync.Mutex      // guards the following
	code       int16           // of the next answer; 0: the broker's own
	after      bool            // the broker gets the request all the same
	given      int             // how many answers were changed
	refused    map[string]bool // by producer and partition: it was answered with an error that is not tried again
	overtaking map[string]bool // events that such a producer sent to the partition after that
	trace      []string        // all produce requests
}

func (f *faultRun) newAnswers(upstream string) *answers {
	f.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	a := &answers{upstream: upstream, listener: listener, refused: map[string]bool{}, overtaking: map[string]bool{}}
	var links sync.WaitGroup
	links.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // at the end of the test
			}
			links.Go(func() { a.serve(client) })
		}
	})
	f.Cleanup(func() {
		_ = listener.Close()
		links.Wait()
	})
	return a
}

// arm has the next produce request answered with an error.
func (a *answers) arm(code int16, after bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.code, a.after = code, after
}

func (a *answers) changed() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.given
}

// take returns what the next produce request is to be answered with.
func (a *answers) take() (code int16, after bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	code, after = a.code, a.after
	if a.code = 0; code != 0 {
		a.given++
	}
	return code, after
}

func (a *answers) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", a.upstream)
	if err != nil {
		return
	}
	defer server.Close()
	l := &answeredLink{answers: a, client: client, server: server, changes: map[uint32]change{}}
	l.idle = sync.NewCond(&l.mu)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer client.Close()
		l.responses()
	}()
	l.requests()
	_ = server.Close()
	<-done
}

// readFrame returns the next request or response, with its length in front.
func readFrame(conn net.Conn) ([]byte, error) {
	var length [4]byte
	if _, err := readFull(conn, length[:]); err != nil {
		return nil, err
	}
	n := wire.BigEndian.Uint32(length[:])
	if n > 64<<20 {
		return nil, fmt.Errorf("a frame of %d bytes", n)
	}
	frame := make([]byte, 4+n)
	copy(frame, length[:])
	_, err := readFull(conn, frame[4:])
	return frame, err
}
