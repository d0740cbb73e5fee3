package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/sink"
)

// topicsClient returns a client that reads what is committed. It ends with ctx, for that of a request does not end a handshake.
func (r *recovery) topicsClient(ctx context.Context) (*kgo.Client, error) {
	opts, err := r.KafkaClient()
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(opts,
		kgo.WithContext(ctx),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxWait(500*time.Millisecond), // the end of a transaction does not end a broker's wait
		kgo.KeepControlRecords(),               // the last record of a partition may be one
	)...)
	if err != nil {
		return nil, fmt.Errorf("configure the Kafka client: %w", err)
	}
	return client, nil
}

// place is a partition.
type place struct {
	topic     string
	partition int32
}

// readTopics visits the records that topics hold now, from a time on or, if it is zero, from the beginning. A topic that does
// not exist holds none. It waits for transactions that are open now to end.
func (r *recovery) readTopics(ctx context.Context, client *kgo.Client, topics []string, from time.Time, visit func(*kgo.Record) error) error {
	last, total, err := assign(ctx, client, topics, from)
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	read := int64(0)
	for len(last) > 0 {
		fetches, err := r.poll(ctx, client, last)
		if err != nil {
			return err
		}
		fetches.EachRecord(func(rec *kgo.Record) {
			at := place{rec.Topic, rec.Partition}
			end, ok := last[at]
			if ok && rec.Offset <= end && !rec.Attrs.IsControl() && err == nil {
				err = visit(rec)
			}
			if ok && rec.Offset >= end {
				delete(last, at)
				client.PauseFetchPartitions(map[string][]int32{at.topic: {at.partition}})
			}
			read++
		})
		if err != nil {
			return err
		}
		r.progress(stageTopics, min(read, total), total)
	}
	client.PurgeTopicsFromConsuming(topics...)
	return nil
}

// assign lets the client consume topics, and returns the offset of the last record of each partition that has any, and how many
// offsets there are.
func assign(ctx context.Context, client *kgo.Client, topics []string, from time.Time) (last map[place]int64, total int64, err error) {
	admin, last := kadm.NewClient(client), map[place]int64{}
	offsets := map[string]map[int32]kgo.Offset{}
	for _, topic := range topics {
		exists, err := sink.TopicExists(ctx, client, topic)
		if err != nil {
			return nil, 0, fmt.Errorf("look up topic %q: %w", topic, err)
		}
		if !exists {
			continue
		}
		ends, err := admin.ListEndOffsets(ctx, topic)
		if err == nil {
			err = ends.Error()
		}
		var starts kadm.ListedOffsets
		switch {
		case err != nil:
		case from.IsZero():
			starts, err = admin.ListStartOffsets(ctx, topic)
		default:
			starts, err = admin.ListOffsetsAfterMilli(ctx, from.UnixMilli(), topic)
		}
		if err == nil {
			err = starts.Error()
		}
		if err != nil {
			return nil, 0, fmt.Errorf("look up offsets of topic %q: %w", topic, err)
		}
		offsets[topic] = map[int32]kgo.Offset{}
		ends.Each(func(end kadm.ListedOffset) {
			start, _ := starts.Lookup(topic, end.Partition)
			if start.Offset < end.Offset {
				offsets[topic][end.Partition] = kgo.NewOffset().At(start.Offset)
				last[place{topic, end.Partition}] = end.Offset - 1
				total += end.Offset - start.Offset
			}
		})
	}
	client.AddConsumePartitions(offsets)
	return last, total, nil
}

// quiet is how long nothing comes before poll looks why.
const quiet = 10 * time.Second

// poll returns the next records. Where nothing comes although all transactions are over nothing is left to come: brokers that
// compact topics may leave the last offsets without a record.
func (r *recovery) poll(ctx context.Context, client *kgo.Client, last map[place]int64) (kgo.Fetches, error) {
	patient, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	fetches := client.PollFetches(patient)
	switch err := fetches.Err(); {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, context.DeadlineExceeded):
	case err != nil:
		return nil, fmt.Errorf("read topics: %w", err)
	default:
		return fetches, nil
	}
	var topics []string
	for at := range last {
		topics = append(topics, at.topic)
	}
	stable, err := kadm.NewClient(client).ListCommittedOffsets(ctx, topics...)
	if err == nil {
		err = stable.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("look up offsets of topics: %w", err)
	}
	for at, end := range last {
		if o, ok := stable.Lookup(at.topic, at.partition); ok && o.Offset > end {
			delete(last, at)
		}
	}
	return nil, nil
}
