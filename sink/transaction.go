package sink

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// transaction is what was published since the last commit. The goroutine that publishes and the one that commits
// take turns; they see to that.
type transaction struct {
	done         []func(error) // of each event, in order
	bytes        int           // of keys, values and header values
	acknowledged atomic.Int64  // events
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

// Uncommitted returns how many events were published since the last commit, and their bytes.
func (k *Kafka) Uncommitted() (events, bytes int) { return len(k.txn.done), k.txn.bytes }

// Settle waits until the brokers have acknowledged every event of the transaction. Only then may it be committed: it
// fails with the first failure, or when ctx ends.
func (k *Kafka) Settle(ctx context.Context) error {
	if err := k.Flush(ctx); err != nil {
		return err
	}
	if published, acknowledged := len(k.txn.done), int(k.txn.acknowledged.Load()); published != acknowledged {
		return fmt.Errorf("of %d events of a transaction the brokers have acknowledged %d", published, acknowledged)
	}
	return nil
}

// Committed says that the transaction is: its events are done.
func (k *Kafka) Committed() {
	t, now := k.txn, time.Now()
	k.answered.Store(&now)
	for _, done := range t.done {
		done(nil)
	}
	clear(t.done)
	t.done, t.bytes = t.done[:0], 0
	t.acknowledged.Store(0)
}
