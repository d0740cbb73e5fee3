package sink

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/decode"
)

// Config is what a Kafka sink is made of. Sizes are bytes.
type Config struct {
	Client      []kgo.Opt // how to reach the brokers: addresses, TLS, SASL, logger
	Compression kgo.Opt   // LZ4, or one of kgo's
	Linger      time.Duration
	MaxBuffered int // of all records that are not acknowledged; Publish blocks at it. At least MaxRecord + BatchOverhead
	MaxRecord   int // of one record's key, value and header values
	// MaxBufferedRecords is how many records MaxBuffered may be: each costs more than its bytes.
	MaxBufferedRecords int
	CreateTopics       bool
	Routes             []Route            // by decode.Event.Source
	PositionHeader     string             // empty: none
	Headers            []kgo.RecordHeader // the last headers of each record
	Reserved           []string           // topics that no event may go to
	Topics             *Topics            // shared by the sinks that follow one another
	// Created, if not nil, is called with each topic that the sink had to create.
	Created func(topic string)
	// Like, if not nil, names the topic whose number of partitions a missing one is created with; without that one, and by
	// default, it is the brokers' default.
	Like func(topic string) string
	// Acknowledged, if not nil, is called for every acknowledged record, serially. It must be quick; the record is valid until
	// it returns.
	Acknowledged func(*kgo.Record)
	// Observe, if not nil, is called for every acknowledged record, serially. It must be quick.
	Observe func(topic string, bytes int, latency time.Duration)
}

// Kafka publishes events with acks=all and an idempotent or a transactional producer. It lives for one
// session: after an error nothing is repaired, a new one is made.
type Kafka struct {
	cfg    Config
	client *kgo.Client
	close  func()
	over   context.Context // has ended
	router router
	ready  map[string]bool // topics that this sink has seen to exist

	failed   atomic.Pointer[PublishError] // the first failure: nothing is published after it
	answered atomic.Pointer[time.Time]    // the brokers' last answer to a produce request
	requests atomic.Int64                 // produce requests on their way
	due      atomic.Bool                  // Send came, and what lingers is not sent yet
	records  records
	txn      *transaction // nil: events are done when they are acknowledged
}

// record is a Kafka record with what its promise needs. Pooled, it and the bytes that
// it points to are reused once the brokers have acknowledged it.
type record struct {
	kgo.Record
	headers  [3]kgo.RecordHeader
	bytes    []byte // key, value and header values
	kept     int    // see records
	position decode.Position
	source   int
	at       time.Time // see Publish; the client rounds the record's own
	done     func(error)
	promise  func(*kgo.Record, error) // bound to this record once
}

// records are those that may be used again, the last first: it is the one that the processor's
// caches still have.
type records struct {
	keep int // bytes: what the larger buffers of all may have

	mu   sync.Mutex
	free []*record
	kept int // bytes of the larger buffers
}

// smallBuffer is what a record always keeps, in bytes. All together, 16,384 in a process, that is as much as the
// default of kafka.max_buffered, 8 MiB.
const smallBuffer = 512

// get returns nil when there is none.
func (p *records) get() *record {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.free) - 1
	if n < 0 {
		return nil
	}
	r := p.free[n]
	p.free = p.free[:n]
	return r
}

// put takes a record back. Its buffer is left to the collector if it is large and there are enough of those: else
// each record would have one in the end, of the largest event that it ever carried.
func (p *records) put(r *record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept -= r.kept
	r.kept = 0
	switch size := cap(r.bytes); {
	case size <= smallBuffer:
	case p.kept+size <= p.keep:
		r.kept = size
		p.kept += size
	default:
		r.bytes = nil
	}
	p.free = append(p.free, r)
}

// PublishError is a record that the brokers, or the client in their stead, did not take.
type PublishError struct {
	Refused
	Err error
}

func (e *PublishError) Error() string {
	if e.Position == (decode.Position{}) { // of a row that was read from its table
		return fmt.Sprintf("publish an event to topic %q: %v", e.Topic, e.Err)
	}
	return fmt.Sprintf("publish event %s to topic %q: %v", e.Position, e.Topic, e.Err)
}

func (e *PublishError) Unwrap() error { return e.Err }

// Why returns the brokers' reason.
func (e *PublishError) Why() string {
	return fmt.Sprintf("the brokers refuse it for topic %q: %v", e.Topic, e.Err)
}

// connectTimeout bounds how long Open waits for the brokers.
const connectTimeout = 15 * time.Second

// Open connects and makes sure that the brokers let us produce idempotently.
func Open(ctx context.Context, cfg Config) (*Kafka, error) {
	alive, stop := context.WithCancel(context.WithoutCancel(ctx))
	k := newKafka(ctx, cfg)
	var err error
	if k.client, err = kgo.NewClient(slices.Concat(cfg.Client, k.options(), []kgo.Opt{kgo.WithContext(alive)})...); err != nil {
		stop()
		return nil, fmt.Errorf("configure the Kafka client: %w", err)
	}
	k.close = func() {
		stop()
		k.client.Close()
		_ = k.client.Flush(context.WithoutCancel(ctx)) // Close has failed all records, but it does not wait for their promises
	}
	if err := k.connect(ctx, stop); err != nil {
		k.Close()
		return nil, fmt.Errorf("connect to Kafka: %w", err)
	}
	return k, nil
}

func newKafka(ctx context.Context, cfg Config) *Kafka {
	k := &Kafka{cfg: cfg, ready: map[string]bool{}, router: newRouter(cfg), records: records{keep: cfg.MaxBuffered}, close: func() {}}
	over, end := context.WithCancel(context.WithoutCancel(ctx))
	end()
	k.over = over
	return k
}

// options are those of the client that publishes.
func (k *Kafka) options() []kgo.Opt {
	return []kgo.Opt{
		kgo.WithHooks(k),
		kgo.RequiredAcks(kgo.AllISRAcks()),   // idempotent as well, by default
		kgo.RecordPartitioner(Partitioner()), // murmur2 of the key, as Kafka's Java client
		k.cfg.Compression,
		kgo.ProducerLinger(k.cfg.Linger),
		kgo.ProducerBatchMaxBytes(int32(k.cfg.MaxRecord + BatchOverhead)),
		kgo.MaxBufferedBytes(k.cfg.MaxBuffered),
		kgo.BrokerMaxWriteBytes(int32(maxRequest(k.cfg))),
		kgo.MaxBufferedRecords(k.cfg.MaxBufferedRecords),
		// The default of 5 s would be 5 s of waiting for a partition's new leader.
		kgo.MetadataMinAge(500 * time.Millisecond),
		// On a gap in the sequence the client would start a new one, and reorder.
		kgo.StopProducerOnDataLossDetected(),
	}
}

const (
	// requestShare is the part of MaxBuffered that a produce request carries. A request is a buffer of its own, as
	// large as what it carries and larger while it grows: in one piece, all that is in flight would cost as much again.
	requestShare = 4
	// requestMax is Kafka's default of socket.request.max.bytes: a broker ends the connection over a larger one.
	requestMax = 100 << 20
	// requestOverhead and recordOverhead are the room for the framing of a request of one batch: client and topic, and for
	// each record what kgo counts for it before it knows the broker's version. A batch beyond the limit would never be sent.
	requestOverhead, recordOverhead = 4 << 10, 40
	// BatchOverhead is the room for the framing of a batch of one record: 61 bytes and
	// a few varints for the batch, the header keys, and lengths.
	BatchOverhead = 1 << 10
)

// maxRequest returns the bytes that a produce request may have before compression.
func maxRequest(cfg Config) int {
	least := cfg.MaxRecord + BatchOverhead + requestOverhead + cfg.MaxBufferedRecords*recordOverhead
	return min(max(cfg.MaxBuffered/requestShare, least), requestMax)
}

// connect waits for the brokers until ctx ends. A broker that accepts connections and says
// nothing holds up Ping whatever its context says: the client asks for the broker's versions
// under its own context (kgo's broker.go, requestAPIVersions).
func (k *Kafka) connect(ctx context.Context, stop context.CancelFunc) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, stop)()
	if err := k.client.Ping(ctx); err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	_, _, err := k.client.ProducerID(ctx)
	return err
}

func (k *Kafka) newRecord() *record {
	r := &record{}
	r.promise = func(_ *kgo.Record, err error) { k.finish(r, err) }
	return r
}

// Publish hands ev to the brokers. It copies what it needs, so that ev's bytes may be
// reused when it returns, and blocks while MaxBuffered is reached: this is the only
// backpressure. When it returns nil, done is called exactly once, from another
// goroutine, one at a time for all events: with nil after all in-sync replicas have the
// record, else with the error that ends the session. Events of one key keep their order.
//
// at is when the event came: the record's timestamp, and where its latency begins.
//
// It fails, without calling done, with *PoisonError for an event that can never be
// published, with *TopicError, and with the first failure once any event has failed.
func (k *Kafka) Publish(ctx context.Context, ev *decode.Event, at time.Time, done func(error)) error {
	if err := k.failed.Load(); err != nil {
		return err
	}
	r := k.records.get()
	if r == nil {
		r = k.newRecord()
	}
	if err := k.router.fill(r, ev); err != nil {
		return err
	}
	if !k.ready[r.Topic] {
		if err := k.ensureTopic(ctx, r.Topic); err != nil {
			return noTopic(ev, r.Topic, err)
		}
	}
	r.done, r.at, r.Timestamp = done, at, at
	if k.txn != nil && k.txn.add(ctx, r) {
		return nil
	}
	k.client.Produce(ctx, &r.Record, r.promise)
	return nil
}

// finish is the promise of every record; kgo calls it serially.
func (k *Kafka) finish(r *record, err error) {
	if err != nil {
		failure := &PublishError{Refused{r.position, r.source, string(r.headers[0].Value), r.Topic}, err}
		k.failed.CompareAndSwap(nil, failure)
		r.done(failure)
		return // and leave the record to the collector: nothing of a failed client is reused
	}
	if k.cfg.Observe != nil {
		k.cfg.Observe(r.Topic, len(r.bytes), k.Answered().Sub(r.at))
	}
	if k.cfg.Acknowledged != nil {
		k.cfg.Acknowledged(&r.Record)
	}
	if k.txn == nil {
		r.done(nil)
	} else {
		k.txn.acknowledged.Add(1)
	}
	k.records.put(r)
}

// Answered is when the brokers last answered a produce request, and so, while done is called, about when they
// acknowledged what it is called for. To look at the clock for each event would cost more than to decode it.
func (k *Kafka) Answered() time.Time {
	if at := k.answered.Load(); at != nil {
		return *at
	}
	return time.Now()
}

// OnBrokerWrite implements kgo.HookBrokerWrite.
func (k *Kafka) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, written int, _, _ time.Duration, _ error) {
	if key == int16(kmsg.Produce) && written > 0 {
		k.requests.Add(1)
	}
}

// OnBrokerE2E implements kgo.HookBrokerE2E: it comes once for each request that was written, also if there is no answer,
// and for those that were never written.
func (k *Kafka) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, e2e kgo.BrokerE2E) {
	if key != int16(kmsg.Produce) || e2e.BytesWritten == 0 {
		return
	}
	now := time.Now()
	k.answered.Store(&now)
	k.requests.Add(-1)
	k.sendDue()
}

// Send sends what lingers, and does not wait for the brokers: at once, or as soon as a request that is on its way is
// answered. What comes meanwhile fills the next one, which is batching without a wait of its own, and linger bounds it.
func (k *Kafka) Send() {
	if k.cfg.Linger == 0 {
		return
	}
	k.due.Store(true) // first, or the last answer could come in between and find nothing due
	if k.requests.Load() == 0 {
		k.sendDue()
	}
}

func (k *Kafka) sendDue() {
	if k.due.CompareAndSwap(true, false) {
		_ = k.client.Flush(k.over) // it ends every linger, and has no time to wait
	}
}

// Flush waits until done has been called for every event. It fails with the first
// failure, or when ctx ends.
func (k *Kafka) Flush(ctx context.Context) error {
	if err := k.client.Flush(ctx); err != nil {
		return fmt.Errorf("wait for Kafka's acknowledgements: %w", err)
	}
	return k.Failed()
}

// Failed returns the first failure of an event, nil if there is none.
func (k *Kafka) Failed() error {
	if err := k.failed.Load(); err != nil {
		return err
	}
	return nil
}

// Close drops what is not acknowledged. When it returns done was called for all of it, with an error.
func (k *Kafka) Close() { k.close() }
