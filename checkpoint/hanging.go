package checkpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// Brokers may say that a transaction is over and never write its marker to some of its partitions: to those that had no leader
// when it was due (KAFKA-20734; Kafka 4.3.1 after all replicas were killed). There it hangs, and the next marker of the same producer
// ends it, whatever that says: events that were aborted become visible, or such as were committed never do. So whoever
// takes over events ends it first, as it was meant.

// fate is what became of the last transaction of a transactional ID.
type fate int

const (
	unknown fate = iota
	committed
	aborted
)

// HangingError is a transaction that hangs and of which the brokers do not say any more what became of it.
type HangingError struct {
	TransactionalID string
	Partitions      string // of it, as topic/partition, a space between them
}

func (e *HangingError) Error() string {
	return fmt.Sprintf("a transaction of %q hangs in %s: the brokers have never written its markers there, and do not know any more whether it was committed", e.TransactionalID, e.Partitions)
}

// errHangingAborted ends an attempt to open that has aborted a hanging transaction; the next one finds none.
var errHangingAborted = fmt.Errorf("a transaction that hung was aborted: %w", kerr.TransactionAbortable)

// endHanging ends the last transaction of the transactional ID where it hangs. What was committed is, with the first
// Write.
func (c *Store) endHanging(ctx context.Context) error {
	if !c.abilities.describe {
		return nil
	}
	last, err := c.lastTransaction(ctx) // taking over makes the brokers forget it
	if err != nil || last == nil {
		return err
	}
	id, _, err := c.client.ProducerID(ctx)
	if err != nil {
		return c.refused(ctx, err)
	}
	hanging, err := c.hanging(ctx, last.ProducerID)
	if err != nil || len(hanging) == 0 {
		return err
	}
	switch became := fateOf(last.State); {
	case became == unknown, id != last.ProducerID: // no marker of ours ends what another producer has begun
		return &HangingError{c.cfg.TransactionalID, partitions(hanging)}
	case became == committed:
		c.joins, c.hung = hanging, partitions(hanging)
		return nil
	}
	c.joins = hanging
	if err := c.produce(ctx, map[string][]byte{c.cfg.Key + sessionKey: opened()}); err != nil {
		return c.refused(ctx, err)
	}
	if err := c.client.EndTransaction(ctx, kgo.TryAbort); err != nil {
		return c.refused(ctx, err)
	}
	return errHangingAborted
}

// lastTransaction asks the brokers for the last transaction of the transactional ID; nil if there is none.
func (c *Store) lastTransaction(ctx context.Context) (*kadm.DescribedTransaction, error) {
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		described, err := kadm.NewClient(c.client).DescribeTransactions(ctx, c.cfg.TransactionalID)
		last, ok := described[c.cfg.TransactionalID]
		switch err := cmp.Or(err, last.Err); {
		case errors.Is(err, kerr.TransactionalIDNotFound), err == nil && !ok:
			return nil, nil
		case err == nil:
			return &last, nil
		case !kerr.IsRetriable(err) || ctx.Err() != nil: // a coordinator that is about to come is waited for: kadm does not
			return nil, fmt.Errorf("ask the brokers for the last transaction of %q: %w", c.cfg.TransactionalID, err)
		}
		select {
		case <-ctx.Done():
		case <-again.C:
		}
	}
}

// fateOf reads the state of a transaction (Kafka's TransactionState). One that is ongoing we abort by taking over, unless its
// owner has been faster.
func fateOf(state string) fate {
	switch state {
	case "PrepareCommit", "CompleteCommit":
		return committed
	case "PrepareAbort", "CompleteAbort":
		return aborted
	}
	return unknown
}

// hanging returns the partitions of the checkpoints and of events in which a transaction of the producer is open. Since we took over none should
// be. A partition that may not be read is taken for whole.
func (c *Store) hanging(ctx context.Context, producerID int64) (kadm.TopicsSet, error) {
	admin := kadm.NewClient(c.client)
	all, err := admin.ListTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	names := slices.DeleteFunc(all.Names(), func(name string) bool { return name != c.cfg.Topic && !c.cfg.IsEvents(name) })
	stable, err := admin.ListCommittedOffsets(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("look for transactions that hang: %w", err)
	}
	ends, err := admin.ListEndOffsets(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("look for transactions that hang: %w", err)
	}
	open := kadm.TopicsSet{}
	stable.Each(func(o kadm.ListedOffset) {
		end, _ := ends.Lookup(o.Topic, o.Partition)
		switch {
		case o.Err != nil || end.Err != nil: // without a leader it is where one may hang
			err = fmt.Errorf("look for transactions that hang in partition %d of topic %q: %w", o.Partition, o.Topic, errors.Join(o.Err, end.Err))
		case o.Offset < end.Offset: // somebody's is open
			open.Add(o.Topic, o.Partition)
		}
	})
	if err != nil || len(open) == 0 {
		return nil, err
	}
	producers, err := admin.DescribeProducers(ctx, open)
	if err != nil {
		return nil, fmt.Errorf("ask whose transactions are open: %w", err)
	}
	ours := kadm.TopicsSet{}
	producers.EachPartition(func(p kadm.DescribedProducersPartition) {
		for _, active := range p.ActiveProducers {
			if active.ProducerID == producerID && active.CurrentTxnStartOffset >= 0 {
				ours.Add(p.Topic, p.Partition)
			}
		}
	})
	return ours, nil
}

// Hung returns where a transaction of an earlier writer hung until it was ended, as topic/partition, a space between them;
// "" if none did.
func (c *Store) Hung() string { return c.hung }

// join makes partitions part of the open transaction, so that its end is written there. It needs the request of clients before
// Kafka 4.0: a later one has none, a partition joins with its first record.
func (c *Store) join(ctx context.Context, joins kadm.TopicsSet) error {
	client, err := c.cfg.newClient(ctx, kgo.MaxVersions(kversion.V3_0_0()))
	if err != nil {
		return err
	}
	defer client.Close()
	request := kmsg.NewPtrAddPartitionsToTxnRequest()
	request.TransactionalID = c.cfg.TransactionalID
	if request.ProducerID, request.ProducerEpoch, err = c.client.ProducerID(ctx); err != nil {
		return err
	}
	for _, list := range joins.IntoList() {
		topic := kmsg.NewAddPartitionsToTxnRequestTopic()
		topic.Topic, topic.Partitions = list.Topic, list.Partitions
		request.Topics = append(request.Topics, topic)
	}
	response, err := request.RequestWith(ctx, client)
	if err != nil {
		return err
	}
	for _, topic := range response.Topics {
		for _, p := range topic.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return fmt.Errorf("end a transaction that hangs in partition %d of topic %q: %w", p.Partition, topic.Topic, err)
			}
		}
	}
	return nil
}

func partitions(set kadm.TopicsSet) string {
	var names []string
	for _, list := range set.Sorted() {
		for _, p := range list.Partitions {
			names = append(names, fmt.Sprintf("%s/%d", list.Topic, p))
		}
	}
	return strings.Join(names, " ")
}
