package checkpoint

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// exactlyOnceTimeout is transactionTimeout with events. Until then consumers that read what is committed wait
// behind the events of a bridge that is gone and has no successor; a broker that falls silent for longer costs the
// bridge its transaction.
const exactlyOnceTimeout = 30 * time.Second

func (cfg Config) timeout() time.Duration {
	if cfg.Producer != nil {
		return exactlyOnceTimeout
	}
	return transactionTimeout
}

// partitioner puts checkpoints where their records say, into partition 0, and events where they belong.
type partitioner struct {
	own    string
	events kgo.Partitioner
}

// ForTopic implements kgo.Partitioner.
func (p partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	if topic == p.own {
		return kgo.ManualPartitioner().ForTopic(topic)
	}
	return p.events.ForTopic(topic)
}

// abilities are what brokers can do about transactions.
type abilities struct {
	// version is the finalized level of their feature transaction.version, 0 if they have none. From 2 on each transaction
	// has an epoch of its own (KIP-890): what arrives late cannot become part of the next one.
	version int16
	// describe says that they tell what becomes of transactions (KIP-664, Kafka 3.0).
	describe bool
}

func brokersAbilities(ctx context.Context, client *kgo.Client) (a abilities, err error) {
	request := kmsg.NewPtrApiVersionsRequest()
	request.ClientSoftwareName, request.ClientSoftwareVersion = "walferry", "0"
	response, err := request.RequestWith(ctx, client)
	if err != nil {
		return a, fmt.Errorf("ask the brokers what they can: %w", err)
	}
	for _, f := range response.FinalizedFeatures {
		if f.Name == "transaction.version" {
			a.version = f.MaxVersionLevel
		}
	}
	a.describe = slices.ContainsFunc(response.ApiKeys, func(k kmsg.ApiVersionsResponseApiKey) bool {
		return kmsg.Key(k.ApiKey) == kmsg.DescribeTransactions
	})
	return a, nil
}

// Client returns the client that publishes events with Config.Producer. It belongs to the Store.
func (c *Store) Client() *kgo.Client { return c.client }

// TransactionVersion returns the brokers' transaction.version, with Config.Producer; see KIP-890.
func (c *Store) TransactionVersion() int16 { return c.abilities.version }

// hasEvents reports whether a transaction of somebody's events is open: with Config.Producer always, once the checkpoints
// are read.
func (c *Store) hasEvents() bool { return c.values != nil && c.cfg.Producer != nil }

// producer is what the brokers know a client by.
type producer struct {
	id    int64
	epoch int16
}

// begin begins a transaction for events.
func (c *Store) begin(ctx context.Context) (err error) {
	if err := c.client.BeginTransaction(); err != nil {
		return err
	}
	c.producer.id, c.producer.epoch, err = c.client.ProducerID(ctx)
	return err
}

// sameProducer fails if the client has become another producer since begin: the brokers have aborted then what the first one
// had published. kgo does so by itself when a partition has lost all of its records (sink.go, handleReqRespBatch).
func (c *Store) sameProducer(ctx context.Context) error {
	id, epoch, err := c.client.ProducerID(ctx)
	if now := (producer{id, epoch}); err == nil && now != c.producer {
		err = fmt.Errorf("the producer has changed from %+v to %+v in the middle of a transaction: %w", c.producer, now, kerr.TransactionAbortable)
	}
	return err
}
