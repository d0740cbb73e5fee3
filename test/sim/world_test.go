package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/walsender"
)

// world is one run of one seed: a scripted Postgres, a fake Kafka, and the bridge between
// them, process after process, and for some seeds a standby beside it, in one bubble of fake time.
type world struct {
	t       *testing.T
	seed    uint64
	profile profile
	config  *config.Config
	pg      *walsender.Server
	kafka   *kfake.Cluster
	network *kfake.VirtualNetwork
	history *history
	load    *load
	log     zerolog.Logger

	healing sync.WaitGroup // faults that are not over
	over    chan struct{}  // closed when no process is to be started any more
	gone    chan struct{}  // closed when the operators have gone home

	mu        sync.Mutex // guards the following; nothing is called while it is held
	current   []*process // of each operator, nil: none yet
	processes []*process
	started   int                // processes so far
	streams   map[uint32]*stream // by the server's pid
	latest    *stream
	freezeAt  *freezing       // the next process that writes a request like that
	wires     uint64          // so far
	nextCut   map[side]*cutAt // for the next wire
	slow      time.Duration   // added to every answer to a produce request
	lose      int             // answers to produce requests
	loseEnds  int             // answers to requests that end a transaction
	noBrokers bool
	noServer  bool // Postgres is down or on its way there
	cutOff    bool // the network to Postgres swallows everything
	strikes   map[*fault]int
	breaks    int // strikes that may keep a process from an orderly stop
	trace     []string
	faults    []string // violations
}

// process is one life of the bridge's process.
type process struct {
	world  *world
	n      int
	bridge *bridge.Bridge
	stop   context.CancelFunc
	ended  chan struct{} // closed when Run has returned
	dead   chan struct{} // closed when it was killed

	// The world's lock guards the following.
	killed  bool
	live    map[*wire]struct{}
	stream  *stream // the latest
	asked   time.Time
	orderly bool // it was streaming when it was asked to stop
	breaks  int  // the world's, when its latest stream began
	slowed  int  // strikes of slowAcks, likewise

	freezing *freezing // nil unless it is frozen
	thawed   time.Time // the last time
	sigterm  bool      // it came while the process was frozen
}

// stream is one session's replication stream.
type stream struct {
	process *process
	start   lsn
	began   time.Time

	next *stream // that of the slot's next holder; nil: this is the latest. The world's lock guards it.

	// The lock of history guards the following.
	confirmed lsn
	sent      lsn           // end of the last transaction of which it has put something into Kafka
	opened    bool          // it has fenced who had the checkpoints before, and reads them
	resume    *position     // from where it publishes: what was the checkpoint then
	due       map[place]int // ordinal of the next event by partition
	crashed   time.Time     // when it was ended while nothing else was in its way; else zero
}

// Streams of random numbers of a seed. Each has a purpose of its own, so that one more draw
// for one of them does not change the others.
const (
	streamProfile uint64 = iota
	streamLoad
	streamFaults
	streamOperator
	streamStandby
	streamWire uint64 = 1 << 16
)

func (w *world) random(purpose uint64) *rand.Rand { return rand.New(rand.NewPCG(w.seed, purpose)) }

// ports of the brokers; in each bubble there is a network of its own.
var ports = []int{9092, 9093, 9094}

// metrics are shared by all runs: what they count is not looked at.
var metrics = sync.OnceValue(func() *bridge.Metrics { return bridge.NewMetrics(prometheus.NewRegistry(), "sim", "sim") })

const walStart lsn = 0x1500000

func newWorld(t *testing.T, seed uint64, zombies bool, log zerolog.Logger) *world {
	w := &world{
		t: t, seed: seed, log: log, network: &kfake.VirtualNetwork{}, over: make(chan struct{}), gone: make(chan struct{}),
		streams: map[uint32]*stream{}, nextCut: map[side]*cutAt{}, strikes: map[*fault]int{},
	}
	w.profile = newProfile(w.random(streamProfile), zombies)
	w.current = make([]*process, w.profile.instances())
	w.load = newLoad(w.random(streamLoad), w.profile, w.struck)
	w.history = newHistory(w, walStart)
	var err error
	w.kafka, err = kfake.NewCluster(kfake.Ports(ports[:w.profile.brokers]...), kfake.ListenFn(w.network.Listen),
		kfake.SeedTopics(partitions, topics...), kfake.MaxVersions(w.profile.versions))
	if err != nil {
		t.Fatal(err)
	}
	w.history.kafka = w.kafka
	for _, key := range []kmsg.Key{kmsg.Produce, kmsg.InitProducerID, kmsg.AddPartitionsToTxn, kmsg.EndTxn} {
		w.kafka.ControlKey(int16(key), w.history.observe)
	}
	w.pg = walsender.New(walsender.Config{
		Slot: "walferry", Start: walStart, SystemID: "7000", Timeline: 1, SenderTimeout: w.profile.senderTimeout,
		KeepaliveAfterCommit: w.profile.keepalives, OnStatusUpdate: w.history.statusUpdate, OnStream: w.streaming,
	})
	w.answerSQL()
	w.config, err = config.Parse("sim.yaml", []byte(fmt.Sprintf(`
databases:
  - {name: shop, dsn: "postgres://walferry@127.0.0.1:5432/shop", slot: walferry, publication: walferry, outbox: [{table: public.outbox}]}
kafka:
  brokers: %q
  compression: %s
  linger: %s
  max_record: %s
  max_buffered: %s
checkpoint: %s
delivery: %s
`, strings.Join(w.kafka.ListenAddrs(), ","), w.profile.compression, w.profile.linger, w.profile.maxRecord, w.profile.maxBuffered, w.profile.checkpoint(), w.profile.delivery())), nil)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// answerSQL answers the bridge's queries as a server does that is set up well.
func (w *world) answerSQL() {
	row := func(tag string, values func() []any) {
		w.pg.Handle(tag, func(string) walsender.Result { return walsender.Answer(values()...) })
	}
	row("server", func() []any {
		return []any{"7000", 1, 180001, "logical", false, "UTF8", "shop", int(w.profile.toldTimeout.Milliseconds())}
	})
	row("publication", func() []any { return []any{"16390/700", true, true} })
	row("holder", func() []any { return []any{"pid 1 application somebody"} })
	row("table", func() []any {
		return []any{outbox.ID, "r", "p", walsender.JSON(`["id","aggregatetype","aggregateid","type","payload","created_at"]`), walsender.JSON("{}"), "16410/700"}
	})
	row("has-slot", func() []any { return []any{false} })
	row("slot", func() []any {
		at := w.pg.Confirmed()
		return []any{"pgoutput", "logical", "shop", w.pg.ActivePID() != "", w.pg.ActivePID(), at, at, "reserved", -1, "", false, w.pg.WALEnd(), "100:100:", w.pg.WALEnd(), false}
	})
}

// streaming is told of each stream by the server, which holds its lock.
func (w *world) streaming(s walsender.Streaming) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.processes {
		if p.name() == s.Application {
			p.stream = &stream{process: p, start: s.Start, began: time.Now(), confirmed: s.Start, due: map[place]int{}}
			p.breaks, p.slowed = w.breaks, w.strikes[&slowAcks]
			w.streams[s.PID] = p.stream
			w.tracef("stream of process %d from %s", p.n, s.Start)
			if w.latest != nil {
				w.latest.next = p.stream
				if w.latest.process.freezing != nil {
					w.strikes[&takenOver]++
				}
			}
			w.latest = p.stream
		}
	}
}

func (w *world) streamOf(pid uint32) *stream {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.streams[pid]
}

func (p *process) latestStream() *stream {
	p.world.mu.Lock()
	defer p.world.mu.Unlock()
	return p.stream
}

func (p *process) name() string { return fmt.Sprintf("process-%d", p.n) }

func (p *process) isKilled() bool {
	p.world.mu.Lock()
	defer p.world.mu.Unlock()
	return p.killed
}

func (p *process) forget(wire *wire) {
	p.world.mu.Lock()
	defer p.world.mu.Unlock()
	delete(p.live, wire)
}

// start starts a process of an operator.
func (w *world) start(operator int) *process {
	ctx, stop := context.WithCancel(context.Background())
	p := &process{
		world: w, stop: stop, ended: make(chan struct{}), dead: make(chan struct{}), live: map[*wire]struct{}{},
	}
	w.mu.Lock()
	w.started++
	p.n = w.started
	w.mu.Unlock()
	database := w.config.Databases[0]
	database.DSN += config.Secret("?sslmode=disable&application_name=" + p.name())
	p.bridge = bridge.New(bridge.Options{
		Database: database, Kafka: w.config.Kafka, Checkpoint: w.config.Checkpoint, ExactlyOnce: w.config.ExactlyOnce(), AdoptSlot: !w.history.hasCheckpoint(),
		Log: w.log.With().Int("process", p.n).Logger(), Metrics: metrics(), Dial: p.dialKafka, DialPostgres: p.dialPostgres,
	})
	w.mu.Lock()
	w.processes = append(w.processes, p)
	w.current[operator] = p
	w.tracef("process %d starts", p.n)
	w.mu.Unlock()
	go func() {
		defer close(p.ended)
		defer stop()
		if err := p.bridge.Run(ctx); err != nil && !p.isKilled() {
			w.violate("process %d has given up: %v", p.n, err)
		}
	}()
	return p
}

// operate is what systemd or Kubernetes does, on one of several machines: it starts a process whenever there is none.
func (w *world) operate(operator int) {
	r := w.random(streamOperator + uint64(operator))
	for {
		p := w.start(operator)
		select {
		case <-p.ended:
			w.judgeStop(p)
		case <-p.dead:
		}
		select {
		case <-w.over:
			return
		case <-time.After(time.Duration(r.Int64N(int64(2 * time.Second)))):
		}
	}
}

// terminate is SIGTERM. A frozen process hears of it when it goes on.
func (p *process) terminate() {
	streaming := p.bridge.Status().State == bridge.Streaming
	w := p.world
	w.mu.Lock()
	if p.freezing != nil {
		p.sigterm = true
		w.mu.Unlock()
		return
	}
	if p.asked.IsZero() {
		p.asked, p.orderly = time.Now(), streaming
	}
	w.tracef("SIGTERM to process %d, streaming: %t", p.n, streaming)
	w.mu.Unlock()
	p.stop()
}

// kill is SIGKILL: connections break, and nothing that the process does reaches anybody.
func (p *process) kill() {
	w := p.world
	w.mu.Lock()
	p.killed = true
	wires := p.live
	p.live = map[*wire]struct{}{}
	if p.freezing != nil { // for those who wait for its end
		close(p.freezing.thawed)
		p.freezing = nil
	}
	w.tracef("SIGKILL to process %d", p.n)
	s := p.undisturbed()
	w.mu.Unlock()
	w.history.crash(s)
	for wire := range wires {
		wire.cut()
	}
	close(p.dead)
	p.stop()
}

// judgeStop judges a process that has ended as it was asked to: unless something was in its
// way, nothing that it sent comes again.
func (w *world) judgeStop(p *process) {
	w.mu.Lock()
	took := time.Since(p.asked)
	inOrder := p.orderly && p.breaks == w.breaks && took < w.config.Databases[0].DrainTimeout
	w.tracef("process %d has stopped after %s, in order: %t", p.n, took, inOrder)
	w.mu.Unlock()
	if inOrder {
		orderlyStops.Add(1)
		w.history.orderly(p)
	}
}

// answered is told of each response of a broker, and says how late it comes and whether it
// is lost instead.
func (w *world) answered(r *rand.Rand, key int16) (delay time.Duration, lost bool) {
	w.mu.Lock()
	slow := w.slow
	by := &lostResponse
	switch {
	case key == int16(kmsg.Produce) && w.lose > 0:
		w.lose--
		lost = true
	case key == int16(kmsg.EndTxn) && w.loseEnds > 0:
		w.loseEnds--
		lost, by = true, &lostCommit
	}
	if key != int16(kmsg.Produce) {
		slow = 0
	}
	w.mu.Unlock()
	if slow > 0 {
		w.struck(&slowAcks)
	}
	if lost {
		w.struck(by)
	}
	if latency := int64(w.profile.latency); latency > 0 {
		delay = time.Duration(latency/2 + r.Int64N(latency))
	}
	return delay + slow, lost
}

func (w *world) brokersAreDown() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.noBrokers
}

// struck counts a fault that has had an effect.
func (w *world) struck(f *fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.strikes[f]++
	if f.breaks {
		w.breaks++
		w.tracef("struck: %s", f.name)
	}
}

// violate notes that a promise was broken.
func (w *world) violate(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.faults) < 5 {
		w.faults = append(w.faults, fmt.Sprintf(format, args...))
		w.tracef("VIOLATION "+format, args...)
	}
}

// tracef notes what happens, for the report of a violation; mu is held.
func (w *world) tracef(format string, args ...any) {
	w.trace = append(w.trace, time.Now().Format("04:05.000000 ")+fmt.Sprintf(format, args...))
}

var orderlyStops atomic.Int64
