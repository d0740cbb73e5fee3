package checkpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/sink"
)

// Config says where checkpoints are kept.
type Config struct {
	Client          []kgo.Opt // how to reach the brokers, as in sink.Config
	Topic           string    // compacted; checkpoints are in partition 0
	Key             string    // of the current checkpoint; all other keys of ours begin with Key + "/"
	TransactionalID string    // two writers of the same ID fence each other
	Create          bool      // a missing topic is created; else it is a *sink.MissingTopicError
	// Producer, if not nil, are the options of somebody who publishes events by the Store's client. Then a
	// transaction is always open, and Write commits what was published in it together with the values.
	Producer []kgo.Opt
	// Settle, with Producer, waits for the brokers to acknowledge those events. A Write fails with its error and commits
	// nothing.
	Settle func(context.Context) error
	// IsEvents, if not nil, reports whether whoever had the transactional ID may have published events to a topic in its transactions:
	// then Open ends what the brokers have left open there, and with it they forget how that was to end.
	IsEvents func(topic string) bool
}

// Store is the only writer of its keys in a compacted topic, but for those of Notes: whoever opens them
// later takes the right to write away from it. After an error nothing is repaired: it
// is closed and opened again. One goroutine uses it at a time; Close may be called
// from anywhere.
type Store struct {
	cfg       Config
	client    *kgo.Client
	stop      context.CancelFunc // ends whatever client is doing
	close     func()
	values    map[string][]byte
	last      int64          // offset of the last record that we wrote
	abilities abilities      // with Config.Producer
	producer  producer       // of the open transaction, with Config.Producer
	joins     kadm.TopicsSet // the next transaction, and are ended with it: see endHanging
	hung      string         // see Hung
	failed    error          // of the first Write that failed
}

// FencedError is a write that the brokers refused because the right to write is gone:
// somebody has opened the same checkpoints since. The brokers give the same answer to a
// writer that stood still for longer than transactionTimeout in the middle of a Write,
// and to one whose transactional ID they have forgotten, by default after 7 days
// (transactional.id.expiration.ms).
type FencedError struct {
	Topic, TransactionalID string
	Err                    error // the brokers' answer
}

func (e *FencedError) Error() string {
	return fmt.Sprintf("write checkpoints to topic %q: another instance with transactional ID %q has taken over, or the brokers have forgotten it: %v",
		e.Topic, e.TransactionalID, e.Err)
}

func (e *FencedError) Unwrap() error { return e.Err }

// ErrUnanswered is a Write that the brokers did not answer for so long that they will abort it: they are away.
var ErrUnanswered = errors.New("the brokers did not answer")

const (
	// openTimeout bounds opening and reading.
	openTimeout = 30 * time.Second
	// transactionTimeout is when the brokers abort what a dead writer has left open.
	transactionTimeout = 60 * time.Second
	// writeMargin is how long before the brokers a Write ends its transaction itself: that would look like fencing.
	writeMargin = 10 * time.Second
	// Only closed segments are compacted, and a start reads all that is not.
	segmentBytes, segmentMS = "16777216", "86400000"
	// sessionKey, after Key, is of the record that a writer begins with.
	sessionKey = "/session"
)

// Open takes over the right to write checkpoints and reads them. The topic must
// be compacted, else it fails with *TopicError; a missing one is created or is a
// *sink.MissingTopicError. The reading ends at a record of our own, so that it holds whatever
// any earlier writer has committed, and nothing that an earlier writer commits later counts.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	c, err := open(ctx, cfg)
	if errors.Is(err, errHangingAborted) && cfg.Producer == nil { // whose owner begins anew with options of its own
		c, err = open(ctx, cfg)
	}
	return c, err
}

func open(ctx context.Context, cfg Config) (_ *Store, err error) {
	alive, stop := context.WithCancel(context.WithoutCancel(ctx))
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, stop)()
	producer := cfg.Producer
	if producer == nil {
		producer = []kgo.Opt{kgo.ProducerLinger(0)}
	}
	client, err := cfg.newClient(alive, slices.Concat(producer, []kgo.Opt{
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(partitioner{own: cfg.Topic, events: sink.Partitioner()}),
		kgo.TransactionalID(cfg.TransactionalID),
		kgo.TransactionTimeout(cfg.timeout()),
	})...)
	if err != nil {
		stop()
		return nil, err
	}
	c := &Store{cfg: cfg, client: client, stop: stop, close: sync.OnceFunc(client.Close)}
	if err := c.open(ctx); err != nil {
		c.Close()
		return nil, withCause(ctx, err)
	}
	return c, nil
}

func (c *Store) open(ctx context.Context) (err error) {
	if err := c.cfg.ensureTopic(ctx, c.client); err != nil {
		return err
	}
	if c.cfg.Producer != nil || c.cfg.IsEvents != nil {
		if c.abilities, err = brokersAbilities(ctx, c.client); err != nil {
			return err
		}
	}
	if c.cfg.IsEvents != nil {
		if err := c.endHanging(ctx); err != nil {
			return err
		}
	}
	if err := c.write(ctx, map[string][]byte{c.cfg.Key + sessionKey: opened()}); err != nil {
		return err
	}
	c.values, err = c.cfg.read(ctx, c.client, c.last, (*contents).settled)
	c.client.RemoveConsumePartitions(map[string][]int32{c.cfg.Topic: {0}})
	if err != nil || c.cfg.Producer == nil {
		return err
	}
	return c.refused(ctx, c.begin(ctx))
}

// opened is the value of the record that a writer begins with.
func opened() []byte { return fmt.Appendf(nil, `{"opened":%q}`, time.Now().UTC().Format(time.RFC3339)) }

// Values returns what the topic held when it was opened: the latest value by key, of our
// keys only, without tombstones. The map belongs to the caller.
func (c *Store) Values() map[string][]byte { return c.values }

// Write writes values by key in one Kafka transaction and returns when it is committed, or
// fails when ctx ends or, with ErrUnanswered, after a time. A nil value removes its key. After an error
// it is not known whether the values are committed; every later Write fails with the same
// error. It fails with *FencedError if somebody else has taken over.
func (c *Store) Write(ctx context.Context, values map[string][]byte) error {
	for key := range values {
		if !c.cfg.ours(key) {
			return fmt.Errorf("write checkpoints to topic %q: a key is not %q and does not begin with it and a slash", c.cfg.Topic, c.cfg.Key)
		}
	}
	if c.failed == nil {
		ctx, cancel := c.patient(ctx)
		defer cancel()
		c.failed = c.write(ctx, values)
	}
	return c.failed
}

// patient returns a context that ends, with ErrUnanswered, before the brokers abort a transaction.
func (c *Store) patient(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := c.cfg.timeout() - writeMargin
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w for %s", ErrUnanswered, limit))
}

// Close lets go of the brokers; a Write in progress fails. It does not wait for them: a
// transaction left open is aborted by whoever opens the checkpoints next, or by the
// brokers after transactionTimeout.
func (c *Store) Close() {
	c.stop() // else the client would tell the brokers that it goes
	c.close()
}

// Read reads what Open would, without taking over from anybody. It
// leaves out what is not committed yet. A topic that does not exist holds nothing.
func Read(ctx context.Context, cfg Config) (_ map[string][]byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	defer func() { err = withCause(ctx, err) }()
	client, err := cfg.newClient(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	exists, err := sink.TopicExists(ctx, client, cfg.Topic)
	if err != nil {
		return nil, fmt.Errorf("look up topic %q: %w", cfg.Topic, err)
	}
	if !exists {
		return map[string][]byte{}, nil
	}
	start, err := cfg.offset(ctx, kadm.NewClient(client).ListStartOffsets)
	if err != nil {
		return nil, err
	}
	end, err := cfg.offset(ctx, kadm.NewClient(client).ListEndOffsets)
	if err != nil || start == end {
		return map[string][]byte{}, err
	}
	return cfg.read(ctx, client, end-1, (*contents).complete)
}

func (cfg Config) offset(ctx context.Context, list func(context.Context, ...string) (kadm.ListedOffsets, error)) (int64, error) {
	listed, err := list(ctx, cfg.Topic)
	partition, _ := listed.Lookup(cfg.Topic, 0)
	if err := cmp.Or(err, partition.Err); err != nil {
		return 0, fmt.Errorf("look up offsets of topic %q: %w", cfg.Topic, err)
	}
	return partition.Offset, nil
}

// newClient returns a client that fails whatever it is doing when alive ends. The context
// of a request alone does not end a handshake.
func (cfg Config) newClient(alive context.Context, opts ...kgo.Opt) (*kgo.Client, error) {
	client, err := kgo.NewClient(slices.Concat(cfg.Client, opts, []kgo.Opt{
		kgo.WithContext(alive),
		kgo.MetadataMinAge(500 * time.Millisecond),
		kgo.KeepControlRecords(), // see contents
	})...)
	if err != nil {
		return nil, fmt.Errorf("configure the Kafka client: %w", err)
	}
	return client, nil
}

// withCause adds to an error that ctx has ended, if it has: the client, which ends with it,
// says only that it is closed.
func withCause(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil || errors.Is(err, context.Cause(ctx)) {
		return err
	}
	return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
}

// ours tells whether a key is of a checkpoint of ours.
func (cfg Config) ours(key string) bool {
	return key == cfg.Key || strings.HasPrefix(key, cfg.Key+"/") && key != cfg.Key+sessionKey
}

// write writes values in one transaction.
func (c *Store) write(ctx context.Context, values map[string][]byte) error {
	defer context.AfterFunc(ctx, c.stop)()
	if err := c.produce(ctx, values); err != nil {
		return c.refused(ctx, err)
	}
	if c.hasEvents() {
		if err := c.cfg.Settle(ctx); err != nil {
			return withCause(ctx, err)
		}
	}
	// EndTransaction sees only partitions that the client has stored, and those of a new
	// topic it sends to before it stores them (storePartitionsUpdate of franz-go 1.22.2):
	// it would abort and return nil. This waits for their lock; nothing is left to abort.
	if err := c.client.AbortBufferedRecords(ctx); err != nil {
		return c.refused(ctx, err)
	}
	if c.hasEvents() {
		if err := c.sameProducer(ctx); err != nil {
			return c.refused(ctx, err)
		}
	}
	err := c.client.EndTransaction(ctx, kgo.TryCommit)
	if err == nil && c.hasEvents() {
		err = c.begin(ctx)
	}
	return c.refused(ctx, err)
}

// produce writes values in a transaction and leaves it open.
func (c *Store) produce(ctx context.Context, values map[string][]byte) error {
	// The first time this fences older writers. BeginTransaction would swallow some errors.
	if _, _, err := c.client.ProducerID(ctx); err != nil {
		return err
	}
	if !c.hasEvents() { // else it is open
		if err := c.client.BeginTransaction(); err != nil {
			return err
		}
	}
	failed := make(chan error, len(values))
	for key, value := range values {
		c.client.Produce(ctx, &kgo.Record{Topic: c.cfg.Topic, Key: []byte(key), Value: value}, func(r *kgo.Record, err error) {
			if err != nil {
				failed <- err
			}
			c.last = r.Offset
		})
	}
	err := c.client.Flush(ctx) // when it returns nil, all of the functions above have returned
	select {
	case err = <-failed:
	default:
	}
	if err == nil && c.joins != nil {
		err, c.joins = c.join(ctx, c.joins), nil
	}
	return err
}

// refused tells being fenced from other errors of writing; nil stays nil.
func (c *Store) refused(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	for _, fenced := range []error{kerr.InvalidProducerEpoch, kerr.ProducerFenced, kerr.InvalidProducerIDMapping} {
		if errors.Is(err, fenced) {
			return &FencedError{c.cfg.Topic, c.cfg.TransactionalID, err}
		}
	}
	return withCause(ctx, fmt.Errorf("write checkpoints to topic %q: %w", c.cfg.Topic, err))
}
