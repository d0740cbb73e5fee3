package sink

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// transaction is what was published and is not committed. The goroutine that publishes and the one that commits
// take turns; they see to that. While a commit is under way, what is published waits for the next transaction.
type transaction struct {
	done         []func(error) // of each event, in order
	cut          bool          // a commit is under way
	events       int           // of done, that it commits: those before the cut
	held         []*record     // behind the cut
	bytes        int           // of keys, values and header values of the transaction that is filled
	acknowledged atomic.Int64  // events before the cut
}

// add takes an event, and reports whether it has to wait for the next transaction.
func (t *transaction) add(ctx context.Context, r *record) (held bool) {
	t.done = append(t.done, r.done)
	t.bytes += len(r.bytes)
	if t.cut {
		r.Context = ctx
		t.held = append(t.held, r)
	}
	return t.cut
}

// NewTransactional returns a Kafka whose events become visible, and are done, when somebody commits the Kafka transaction
// that they are part of. It publishes nothing before Use. The options are for the client that it will use.
func NewTransactional(ctx context.Context, cfg Config) (*Kafka, []kgo.Opt) {
	k := newKafka(ctx, cfg)
	k.txn = &transaction{}
	return k, k.options()
}

// Use lets k publish with a client that was made with its options and has a transaction open. Close leaves it alone.
func (k *Kafka) Use(client *kgo.Client) { k.client = client }

// Full reports whether the transaction that is filled has so many events, or so many bytes. One that waits for the commit
// of the one before it has no more than half of what the client buffers.
func (k *Kafka) Full(events, bytes int) bool {
	t := k.txn
	if t.cut {
		events, bytes = min(events, k.cfg.MaxBufferedRecords/2), min(bytes, k.cfg.MaxBuffered/2)
	}
	return len(t.done)-t.events >= events || t.bytes >= bytes
}

// Cut ends the transaction to more events: it is going to be committed. Those that are published from now on go into the
// next one, when Committed says so.
func (k *Kafka) Cut() {
	t := k.txn
	t.cut, t.events, t.bytes = true, len(t.done), 0
}

// Settle waits until the brokers have acknowledged every event before the cut. Only then may the transaction be committed:
// it fails with the first failure, or when ctx ends. It needs no turn.
func (k *Kafka) Settle(ctx context.Context) error {
	if err := k.Flush(ctx); err != nil {
		return err
	}
	if published, acknowledged := k.txn.events, int(k.txn.acknowledged.Load()); published != acknowledged {
		return fmt.Errorf("of %d events of a transaction the brokers have acknowledged %d", published, acknowledged)
	}
	return nil
}

// Committed says that what is before the cut is, and the next transaction open: those events are done, and those behind the
// cut are handed to the brokers.
func (k *Kafka) Committed() {
	t, now := k.txn, time.Now()
	k.answered.Store(&now)
	for _, done := range t.done[:t.events] {
		done(nil)
	}
	t.done = slices.Delete(t.done, 0, t.events)
	t.cut, t.events = false, 0
	t.acknowledged.Store(0)
	for _, r := range t.held {
		k.client.Produce(r.Context, &r.Record, r.promise)
	}
	clear(t.held)
	t.held = t.held[:0]
}
