package sim

import (
	"cmp"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// side is what a connection leads to.
type side int

const (
	toPostgres side = iota
	toKafka
)

// wire is a connection of the bridge. It breaks where a fault says, to the byte, and to
// Kafka it has a latency. While its process is frozen nothing goes through it.
type wire struct {
	net.Conn
	process *process
	side    side
	dead    chan struct{} // closed when the wire is cut or closed
	poke    chan struct{} // the read deadline has changed

	mu        sync.Mutex // guards the following
	cutRead   int        // bytes still to be read before the wire is cut, negative: any number
	cutWrite  int        // the same for those that are written
	wasCut    bool
	closing   bool          // the process has closed it and was frozen
	holding   bool          // what is written is held back
	held      [][]byte      // so far
	thawed    chan struct{} // closed when the process is not frozen any more; nil: it never was
	requests  []int16       // keys of the requests to Kafka that have no response yet
	readUntil time.Time

	// of the goroutine that reads from Kafka
	r     *rand.Rand
	in    []byte // the response that is arriving
	ready []byte // what is left of the response that has arrived
	due   time.Time
}

func newWire(conn net.Conn, p *process, s side) *wire {
	w := &wire{
		Conn: conn, process: p, side: s, dead: make(chan struct{}), poke: make(chan struct{}, 1),
		cutRead: -1, cutWrite: -1,
	}
	p.world.mu.Lock()
	defer p.world.mu.Unlock()
	w.r = p.world.random(streamWire + p.world.wires)
	p.world.wires++
	if cut := p.world.nextCut[s]; cut != nil {
		p.world.nextCut[s] = nil
		w.cutRead, w.cutWrite = cut.read, cut.write
	}
	if p.killed {
		w.cut()
	}
	if p.freezing != nil {
		w.freeze(p.freezing.thawed)
	}
	p.live[w] = struct{}{}
	return w
}

// cut breaks the connection. What was written before still arrives.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.wasCut {
		w.wasCut, w.held = true, nil
		if !w.closing {
			close(w.dead)
		}
		w.Conn.Close()
	}
}

func (w *wire) Close() error {
	if !w.closesLater() {
		w.cut()
		w.process.forget(w)
	}
	return nil
}

// strike cuts the wire where a fault wanted it cut.
func (w *wire) strike() error {
	w.cut()
	w.process.world.struck(map[side]*fault{toPostgres: &cutPostgres, toKafka: &cutKafka}[w.side])
	return syscall.ECONNRESET
}

// failed makes errors of a cut wire look as those of a broken connection.
func (w *wire) failed(err error) error {
	select {
	case <-w.dead:
		return syscall.ECONNRESET
	default:
		return err
	}
}

func (w *wire) Write(b []byte) (int, error) {
	if w.side == toKafka {
		w.process.requests(requestKey(b))
		w.request(b)
	}
	if w.hold(b) {
		return len(b), nil
	}
	return w.send(b)
}

// send writes what the process has written.
func (w *wire) send(b []byte) (int, error) {
	if w.side == toKafka && takesOver(b) && w.process.hasSuccessor() {
		w.process.world.struck(&lateInit)
	}
	w.mu.Lock()
	limit := w.cutWrite
	if limit >= 0 {
		w.cutWrite = max(0, limit-len(b))
	}
	w.mu.Unlock()
	if limit < 0 || limit >= len(b) {
		n, err := w.Conn.Write(b)
		if err != nil {
			err = w.failed(err)
		}
		return n, err
	}
	n, err := w.Conn.Write(b[:limit])
	if err != nil {
		return n, w.failed(err)
	}
	return n, w.strike()
}

// requestKey returns which request of Kafka it is: the client writes each at once.
func requestKey(b []byte) int16 { return int16(binary.BigEndian.Uint16(b[4:])) }

// request notes a request to Kafka.
func (w *wire) request(b []byte) {
	key := requestKey(b)
	w.mu.Lock()
	w.requests = append(w.requests, key)
	w.mu.Unlock()
	if key != int16(kmsg.Produce) {
		return
	}
	if id, ok := producerOf(b); ok {
		w.process.world.history.produces(w.process, id)
	}
}

// producer is one life of a producer: brokers give a new epoch to each, and since KIP-890 to each transaction.
type producer struct {
	id    int64
	epoch int16
}

// parse reads a request.
func parse(b []byte, request kmsg.Request) {
	r := kbin.Reader{Src: b[6:]}
	request.SetVersion(r.Int16())
	r.Int32() // correlation ID
	r.NullableString()
	if request.IsFlexible() {
		kmsg.SkipTags(&r)
	}
	if err := request.ReadFrom(r.Src); err != nil {
		panic(err) // the client and we use the same library
	}
}

// takesOver reports whether a request takes the right to write checkpoints away from who has it.
func takesOver(b []byte) bool {
	if requestKey(b) != int16(kmsg.InitProducerID) {
		return false
	}
	request := kmsg.NewPtrInitProducerIDRequest()
	parse(b, request)
	return request.TransactionalID != nil
}

// producerOf returns the producer of a produce request, unless all its batches are empty:
// the client may have given them up while the request was on its way.
func producerOf(b []byte) (_ producer, ok bool) {
	request := kmsg.NewPtrProduceRequest()
	parse(b, request)
	const id, epoch = 43, 51 // offsets in a record batch
	for _, t := range request.Topics {
		for _, p := range t.Partitions {
			if len(p.Records) > 0 {
				return producer{int64(binary.BigEndian.Uint64(p.Records[id:])), int16(binary.BigEndian.Uint16(p.Records[epoch:]))}, true
			}
		}
	}
	return producer{}, false
}

func (w *wire) Read(b []byte) (int, error) {
	if err := w.awake(); err != nil {
		return 0, err
	}
	n, err := w.receive(b)
	return n, cmp.Or(w.awake(), err) // what has come meanwhile is read by who is awake
}

// receive reads what the process is to read.
func (w *wire) receive(b []byte) (int, error) {
	w.mu.Lock()
	limit := w.cutRead
	w.mu.Unlock()
	if limit == 0 {
		return 0, w.strike()
	}
	if limit > 0 {
		b = b[:min(len(b), limit)]
	}
	n, err := w.arrived(b)
	if limit > 0 {
		w.mu.Lock()
		w.cutRead = limit - n
		w.mu.Unlock()
	}
	if err != nil {
		err = w.failed(err)
	}
	return n, err
}

// arrived reads what has arrived. A response of Kafka arrives whole, after its latency.
func (w *wire) arrived(b []byte) (int, error) {
	if w.side == toPostgres {
		return w.Conn.Read(b)
	}
	if len(w.ready) == 0 {
		if err := w.response(); err != nil {
			return 0, err
		}
	}
	n := copy(b, w.ready)
	w.ready = w.ready[n:]
	return n, nil
}

// response reads the next response of Kafka and lets its latency pass.
func (w *wire) response() error {
	if w.due.IsZero() {
		if err := w.fill(4); err != nil {
			return err
		}
		if err := w.fill(4 + int(binary.BigEndian.Uint32(w.in))); err != nil {
			return err
		}
		w.mu.Lock()
		key := w.requests[0]
		w.requests = w.requests[1:]
		w.mu.Unlock()
		delay, lost := w.process.world.answered(w.r, key)
		if lost {
			w.cut()
			return syscall.ECONNRESET
		}
		w.due = time.Now().Add(delay)
	}
	if err := w.wait(); err != nil {
		return err
	}
	w.ready, w.in, w.due = w.in, nil, time.Time{}
	return nil
}

// fill reads until n bytes of the response are there.
func (w *wire) fill(n int) error {
	for len(w.in) < n {
		b := make([]byte, n-len(w.in))
		read, err := w.Conn.Read(b)
		w.in = append(w.in, b[:read]...)
		if err != nil {
			return err
		}
	}
	return nil
}

// wait waits until the response is due.
func (w *wire) wait() error {
	for {
		w.mu.Lock()
		until := w.readUntil
		w.mu.Unlock()
		now := time.Now()
		switch {
		case !until.IsZero() && !now.Before(until):
			return os.ErrDeadlineExceeded
		case !now.Before(w.due):
			return nil
		}
		next := w.due
		if !until.IsZero() && until.Before(next) {
			next = until
		}
		timer := time.NewTimer(next.Sub(now))
		select {
		case <-timer.C:
		case <-w.poke:
		case <-w.dead:
			timer.Stop()
			return syscall.ECONNRESET
		}
		timer.Stop()
	}
}

func (w *wire) SetReadDeadline(t time.Time) error {
	w.mu.Lock()
	w.readUntil = t
	w.mu.Unlock()
	select {
	case w.poke <- struct{}{}:
	default:
	}
	return w.Conn.SetReadDeadline(t)
}

func (w *wire) SetDeadline(t time.Time) error {
	if err := w.SetReadDeadline(t); err != nil {
		return err
	}
	return w.Conn.SetWriteDeadline(t)
}

// roundTrip is how long it takes to be refused.
const roundTrip = 20 * time.Millisecond

// cutAt says where a wire will break.
type cutAt struct{ read, write int }

// refused is a dial that nobody answers.
func refused(network string) error {
	return &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
}

func (p *process) dialPostgres(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := p.awake(ctx); err != nil {
		return nil, err
	}
	if p.isKilled() {
		return nil, refused(network)
	}
	conn, err := p.world.pg.Dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return newWire(conn, p, toPostgres), nil
}

func (p *process) dialKafka(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := p.awake(ctx); err != nil {
		return nil, err
	}
	if p.isKilled() || p.world.brokersAreDown() {
		// It takes a moment, for franz-go 1.22.2 tries again without a pause when it cannot add
		// partitions to a transaction, and time would stand still.
		select {
		case <-time.After(roundTrip):
		case <-ctx.Done():
		}
		return nil, refused(network)
	}
	conn, err := p.world.network.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return newWire(conn, p, toKafka), nil
}
