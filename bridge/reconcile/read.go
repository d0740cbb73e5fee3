package reconcile

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

	"github.com/walferry/walferry/replication"
)

// reader reads topics from their start to the end that they have when it begins.
type reader struct {
	client  *kgo.Client
	admin   *kadm.Client
	timeout time.Duration // how long the brokers may send nothing
	// compact is the topics that may end in offsets whose records are gone.
	compact map[string]bool
}

const (
	// fetchBytes and partitionBytes bound a fetch, and fetches how many there are at a time: what the brokers send is kept until
	// it is compared, decompressed.
	fetchBytes     = 4 << 20
	partitionBytes = 512 << 10
	fetches        = 2
	// tail is how long nothing comes at the end of a compacted topic before that is taken for its end.
	tail = 10 * time.Second
)

func newReader(ctx context.Context, opts []kgo.Opt, timeout time.Duration) (*reader, error) {
	client, err := kgo.NewClient(slices.Concat(opts, []kgo.Opt{
		kgo.WithContext(ctx),                                                   // that of a request alone does not end a handshake
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), // the last of a transaction is one
		kgo.FetchMaxBytes(fetchBytes), kgo.FetchMaxPartitionBytes(partitionBytes), kgo.MaxConcurrentFetches(fetches),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.MetadataMinAge(500 * time.Millisecond),
	})...)
	if err != nil {
		return nil, fmt.Errorf("configure the Kafka client: %w", err)
	}
	return &reader{client, kadm.NewClient(client), timeout, map[string]bool{}}, nil
}

// partitions returns how many a topic has, 0 if it does not exist.
func (r *reader) partitions(ctx context.Context, topic string) (int, error) {
	topics, err := r.admin.ListTopics(ctx, topic)
	if err == nil {
		err = topics[topic].Err
	}
	switch {
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("look up topic %q: %w", topic, err)
	}
	return len(topics[topic].Partitions), nil
}

// compacted reports whether a topic's cleanup.policy is compact, also if it is delete as well, or cannot be read.
func (r *reader) compacted(ctx context.Context, topic string) (compacted, known bool, err error) {
	configs, err := r.admin.DescribeTopicConfigs(ctx, topic)
	if err == nil {
		var config kadm.ResourceConfig
		config, err = configs.On(topic, nil)
		err = cmp.Or(err, config.Err)
		for _, c := range config.Configs {
			if err == nil && c.Key == "cleanup.policy" {
				return strings.Contains(c.MaybeValue(), "compact"), true, nil
			}
		}
	}
	if err != nil && !errors.Is(err, kerr.TopicAuthorizationFailed) {
		return true, false, fmt.Errorf("look up cleanup.policy of topic %q: %w", topic, err)
	}
	return true, false, nil
}

// offsets returns offsets of topics by topic and partition; list is a method of kadm.Client.
func offsets(ctx context.Context, topics []string, list func(context.Context, ...string) (kadm.ListedOffsets, error)) (map[string]map[int32]int64, error) {
	listed, err := list(ctx, topics...)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("look up offsets of topics %s: %w", strings.Join(topics, ", "), err)
	}
	found := map[string]map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) {
		if found[o.Topic] == nil {
			found[o.Topic] = map[int32]int64{}
		}
		found[o.Topic][o.Partition] = o.Offset
	})
	return found, nil
}

// reading is what is left to read.
type reading struct {
	*reader
	next, end map[string]map[int32]int64 // offsets by topic and partition, of those that are not read yet
	done      int64                      // offsets
	total     int64
	heard     time.Time // when something came
}

// read visits what is committed in topics, which must exist, up to the end that they have now, and returns where their logs start
// once that is done. Control records are not visited. The end is the last offset that is replicated, not the last one that is
// committed: what is ours is committed, but may lie behind a transaction of somebody else that is still open. Such a one is waited
// for, as long as anything comes.
func (r *reader) read(ctx context.Context, topics []string, visit func(*kgo.Record) error, progress func(done, total int64)) (start map[string]map[int32]int64, err error) {
	if len(topics) == 0 { // to kadm that would be all of them
		return nil, nil
	}
	w := &reading{reader: r, heard: time.Now()}
	if w.next, err = offsets(ctx, topics, r.admin.ListStartOffsets); err != nil {
		return nil, err
	}
	if w.end, err = offsets(ctx, topics, r.admin.ListEndOffsets); err != nil {
		return nil, err
	}
	from := map[string]map[int32]kgo.Offset{}
	for topic, ends := range w.end {
		from[topic] = map[int32]kgo.Offset{}
		for p, end := range ends {
			if at := w.next[topic][p]; at < end {
				from[topic][p] = kgo.NewOffset().At(at)
				w.total += end - at
			} else {
				delete(ends, p)
			}
		}
	}
	r.client.AddConsumePartitions(from)
	defer r.client.PurgeTopicsFromConsuming(topics...)
	for w.left() {
		progress(w.done, w.total)
		if err := w.poll(ctx, visit); err != nil {
			return nil, err
		}
	}
	progress(w.total, w.total)
	return offsets(ctx, topics, r.admin.ListStartOffsets)
}

func (w *reading) left() bool {
	for _, ends := range w.end {
		if len(ends) > 0 {
			return true
		}
	}
	return false
}

// poll visits what comes next.
func (w *reading) poll(ctx context.Context, visit func(*kgo.Record) error) error {
	polling, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	fetched := w.client.PollFetches(polling)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, e := range fetched.Errors() {
		if !errors.Is(e.Err, context.DeadlineExceeded) {
			return fmt.Errorf("read topic %q, partition %d: %w", e.Topic, e.Partition, e.Err)
		}
	}
	var err error
	fetched.EachRecord(func(k *kgo.Record) {
		if err == nil {
			err = w.record(k, visit)
		}
	})
	if silence := time.Since(w.heard); err == nil && silence > min(tail, w.timeout) {
		return w.silent(ctx, silence)
	}
	return err
}

// record visits the next record of a partition and notes how far that is read.
func (w *reading) record(k *kgo.Record, visit func(*kgo.Record) error) (err error) {
	end, reading := w.end[k.Topic][k.Partition]
	if !reading {
		return nil
	}
	w.heard = time.Now()
	if k.Offset < end && !k.Attrs.IsControl() {
		err = visit(k)
	}
	next := min(k.Offset+1, end)
	w.done += next - w.next[k.Topic][k.Partition]
	w.next[k.Topic][k.Partition] = next
	if next == end {
		delete(w.end[k.Topic], k.Partition)
		w.client.RemoveConsumePartitions(map[string][]int32{k.Topic: {k.Partition}}) // or it would be read on while it is written to
	}
	return err
}

// silent ends the reading of partitions that have nothing more before their end, since it was deleted, or compacted and all that is
// left is committed; and it fails once the brokers have been silent for too long.
func (w *reading) silent(ctx context.Context, silence time.Duration) error {
	var topics []string
	for topic, ends := range w.end {
		if len(ends) > 0 {
			topics = append(topics, topic)
		}
	}
	committed, err := offsets(ctx, topics, w.admin.ListCommittedOffsets)
	if err != nil {
		return err
	}
	start, err := offsets(ctx, topics, w.admin.ListStartOffsets)
	if err != nil {
		return err
	}
	for topic, ends := range w.end {
		for p, end := range ends {
			switch {
			case start[topic][p] >= end, committed[topic][p] >= end && w.compact[topic]:
				w.done += end - w.next[topic][p]
				delete(ends, p)
			case silence < w.timeout:
			case committed[topic][p] < end:
				return &replication.PreconditionError{
					Reason: fmt.Sprintf("partition %d of topic %q can be read to offset %d only, and ends at %d: somebody's transaction has been open for more than %s",
						p, topic, committed[topic][p], end, w.timeout),
					Hint: "consumers wait behind it as well: kafka-transactions.sh --bootstrap-server <broker> find-hanging --broker-id <id>; or raise --timeout",
				}
			default:
				return fmt.Errorf("read topic %q, partition %d: the brokers have sent nothing for %s, at offset %d of %d", topic, p, w.timeout, w.next[topic][p], end)
			}
		}
	}
	return nil
}
