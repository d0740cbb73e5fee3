package sim

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// A process is frozen, by SIGSTOP or a hypervisor, at its wires: what it writes waits and goes out in order when it
// thaws, and so does what it would read. To Postgres and to the brokers it looks as if frozen: it is silent, and goes
// on with what it had in flight behind whoever has taken over. Nobody can stop goroutines in a bubble, so it is not
// frozen to itself. The differences:
//
//   - Its timers run. It may give up meanwhile, as a real one does at the moment when it thaws: for a read deadline, a
//     checkpoint that nobody answers, or a silent server; toldTimeout keeps it from the last. What it has written goes
//     out all the same, also on connections that it has closed.
//   - What it had buffered it writes while it is frozen, as far as Kafka's clients go without an answer. So all of it
//     goes out before it reads anything, where a real one may learn first that its stream has ended. This is the worse
//     of the two.
//   - A read deadline does not end a read before the process thaws.

// freezing is a freeze.
type freezing struct {
	fault  *fault
	length time.Duration // at most
	at     int16         // key of the request to Kafka that it strikes at
	skip   int           // so many of them pass
	until  int16         // key of the request of a successor that ends it
	thawed chan struct{} // closed when it is over
}

// anyTime is the key of no request.
const anyTime int16 = -1

// steps are the requests by which somebody takes over and publishes.
var steps = []int16{
	int16(kmsg.Metadata), int16(kmsg.InitProducerID), int16(kmsg.AddPartitionsToTxn), int16(kmsg.Produce), int16(kmsg.EndTxn), int16(kmsg.Fetch),
}

// planFreeze freezes a process for longer than the walsender waits for it, or not so long. What matters most is what it
// was about to send.
func planFreeze(w *world, r *rand.Rand, f *fault) {
	z := &freezing{
		fault: f, length: upTo(r, pick(r, w.profile.senderTimeout, 3*w.profile.senderTimeout)), skip: r.IntN(3),
		at: pick(r, anyTime, int16(kmsg.Produce), int16(kmsg.EndTxn), pick(r, steps...)), until: anyTime, thawed: make(chan struct{}),
	}
	if r.IntN(2) == 0 { // as soon as somebody takes over
		z.length, z.until = 3*w.profile.senderTimeout, pick(r, int16(kmsg.InitProducerID), pick(r, steps...))
	}
	if z.at == anyTime {
		if p := w.victim(r); p != nil {
			p.freeze(z)
		}
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.freezeAt = z
}

// requests freezes and thaws what has to at a request that the process is about to write.
func (p *process) requests(key int16) {
	w := p.world
	w.mu.Lock()
	for _, q := range w.current {
		if q != nil && q != p && q.freezing != nil && q.freezing.until == key && q.stream != nil && q.stream.next != nil {
			defer q.thaw(q.freezing)
		}
	}
	z := w.freezeAt
	if z != nil && z.at == key {
		z.skip--
	}
	strikes := z != nil && z.skip < 0
	if strikes {
		w.freezeAt = nil
		w.healing.Add(1) // before anybody waits for the end of all faults
		defer w.healing.Done()
	}
	w.mu.Unlock()
	if strikes {
		p.freeze(z)
	}
}

// freeze is SIGSTOP, and SIGCONT after a while.
func (p *process) freeze(z *freezing) {
	w := p.world
	w.mu.Lock()
	if p.killed || p.freezing != nil {
		w.mu.Unlock()
		return
	}
	p.freezing = z
	for wire := range p.live {
		wire.freeze(z.thawed)
	}
	w.tracef("process %d is frozen for %s, at request %d until request %d", p.n, z.length, z.at, z.until)
	w.mu.Unlock()
	w.struck(z.fault)
	w.healing.Go(func() {
		select {
		case <-z.thawed:
		case <-time.After(z.length):
			p.thaw(z)
		}
	})
}

// thaw is SIGCONT.
func (p *process) thaw(z *freezing) {
	w := p.world
	w.mu.Lock()
	if p.freezing != z { // it was killed
		w.mu.Unlock()
		return
	}
	p.freezing, p.thawed = nil, time.Now()
	w.tracef("process %d thaws, SIGTERM: %t", p.n, p.sigterm)
	for wire := range p.live {
		w.healing.Go(wire.thaw)
	}
	close(z.thawed) // last, or the faults could be over in between
	sigterm := p.sigterm
	w.mu.Unlock()
	if sigterm {
		p.terminate()
	}
}

// awake waits while the process is frozen.
func (p *process) awake(ctx context.Context) error {
	p.world.mu.Lock()
	z := p.freezing
	p.world.mu.Unlock()
	if z == nil {
		return nil
	}
	select {
	case <-z.thawed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hasSuccessor reports whether another process has the slot, or had it last, since this one had it.
func (p *process) hasSuccessor() bool {
	p.world.mu.Lock()
	defer p.world.mu.Unlock()
	return p.stream != nil && p.world.latest.process != p
}

// behind returns the stream of the next holder of the slot, nil if there is none, and for how long there has been one and
// the process of s was not frozen.
func (w *world) behind(s *stream) (next *stream, late time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s == nil || s.next == nil {
		return nil, 0
	}
	return s.next, min(time.Since(s.next.began), time.Since(s.process.thawed))
}

// precede reports whether a stream began before another one.
func (w *world) precede(s, later *stream) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s != nil && s.next != nil {
		if s = s.next; s == later {
			return true
		}
	}
	return false
}

func (w *wire) freeze(thawed chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holding, w.thawed = true, thawed
}

// thaw sends what was held back.
func (w *wire) thaw() {
	for b := w.next(); b != nil; b = w.next() {
		_, _ = w.send(b) // the process learns from what it reads
	}
	w.mu.Lock()
	closing := w.closing
	w.mu.Unlock()
	if closing {
		<-time.After(roundTrip) // a broker may not have taken the last request yet
		_ = w.Close()           // fails never
	}
}

// next returns what is to be sent next of what was held back, nil when that was all.
func (w *wire) next() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.held) == 0 {
		w.holding = false
		return nil
	}
	b := w.held[0]
	w.held = w.held[1:]
	return b
}

// hold holds b back while the process is frozen, and until it has sent what it had written before.
func (w *wire) hold(b []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.holding && !w.wasCut {
		w.held = append(w.held, bytes.Clone(b))
	}
	return w.holding && !w.wasCut
}

// closesLater reports whether a wire that is closed has to send first what was held back.
func (w *wire) closesLater() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	later := w.holding && !w.wasCut
	if later && !w.closing {
		w.closing = true
		close(w.dead)
		go func() { _, _ = io.Copy(io.Discard, w.Conn) }() // or a broker would wait for somebody to read its answers
	}
	return later
}

// awake waits while the process is frozen, but for a wire that is dead.
func (w *wire) awake() error {
	w.mu.Lock()
	thawed := w.thawed
	w.mu.Unlock()
	if thawed == nil {
		return nil
	}
	select {
	case <-thawed:
		return nil
	case <-w.dead:
		return syscall.ECONNRESET
	}
}
