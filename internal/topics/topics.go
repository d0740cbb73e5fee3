// Package topics reads what is committed in Kafka topics, up to the ends that they have when that begins.
package topics

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

	"github.com/walferry/walferry/replication"
)

const (
	// fetchBytes and partitionBytes bound a fetch, and fetches how many there are at a time: what the brokers send is kept until
	// it is visited, decompressed.
	fetchBytes     = 4 << 20
	partitionBytes = 512 << 10
	fetches        = 2
	// tail is how long nothing comes before a Reader looks why, and then again before it takes that for the end of what is compacted.
	tail = 10 * time.Second
)

// Options say how a Reader waits.
type Options struct {
	// Timeout bounds how long the brokers may send nothing although they have something, and a transaction may be open.
	Timeout time.Duration
	// Waits, if not nil, is told of each partition, once, that ends in a transaction which is open, from an offset on. Then such
	// ones are waited for as long as they last.
	Waits func(topic string, partition int32, offset int64)
}

// Reader reads topics, one call at a time. It keeps its connections until Close.
type Reader struct {
	Options
	client  *kgo.Client
	admin   *kadm.Client
	waited  map[place]bool // of which Waits was told
	compact map[string]policy
}

// place is a partition.
type place struct {
	topic     string
	partition int32
}

// policy is what is known of a topic's cleanup.policy.
type policy struct{ compacted, known bool }

// New returns a Reader whose client has opts. It ends with ctx.
func New(ctx context.Context, opts []kgo.Opt, o Options) (*Reader, error) {
	client, err := kgo.NewClient(slices.Concat(opts, []kgo.Opt{
		kgo.WithContext(ctx),                                                   // that of a request alone does not end a handshake
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), // the last of a transaction is one
		kgo.FetchMaxBytes(fetchBytes), kgo.FetchMaxPartitionBytes(partitionBytes), kgo.MaxConcurrentFetches(fetches),
		kgo.FetchMaxWait(500 * time.Millisecond), // the end of a transaction does not end a broker's wait
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.MetadataMinAge(500 * time.Millisecond),
	})...)
	if err != nil {
		return nil, fmt.Errorf("configure the Kafka client: %w", err)
	}
	return &Reader{o, client, kadm.NewClient(client), map[place]bool{}, map[string]policy{}}, nil
}

// Close closes the connections.
func (r *Reader) Close() { r.client.Close() }

// Partitions returns how many a topic has, 0 if it does not exist, as one broker knows it now: not by the client's cache.
func (r *Reader) Partitions(ctx context.Context, topic string) (int, error) {
	request := kmsg.NewPtrMetadataRequest()
	request.AllowAutoTopicCreation = false
	request.Topics = append(request.Topics, kmsg.MetadataRequestTopic{Topic: &topic})
	response, err := request.RequestWith(ctx, r.client)
	if err == nil && len(response.Topics) != 1 {
		err = fmt.Errorf("metadata of %d topics, want 1", len(response.Topics))
	}
	if err == nil {
		err = kerr.ErrorForCode(response.Topics[0].ErrorCode)
	}
	switch {
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("look up topic %q: %w", topic, err)
	}
	return len(response.Topics[0].Partitions), nil
}

// Compacted reports whether a topic's cleanup.policy is compact, also if it is delete as well, or cannot be read.
func (r *Reader) Compacted(ctx context.Context, topic string) (compacted, known bool, err error) {
	p, ok := r.compact[topic]
	if !ok {
		if p, err = r.policy(ctx, topic); err == nil {
			r.compact[topic] = p
		}
	}
	return p.compacted, p.known, err
}

func (r *Reader) policy(ctx context.Context, topic string) (policy, error) {
	configs, err := r.admin.DescribeTopicConfigs(ctx, topic)
	if err == nil {
		var config kadm.ResourceConfig
		config, err = configs.On(topic, nil)
		err = cmp.Or(err, config.Err)
		for _, c := range config.Configs {
			if err == nil && c.Key == "cleanup.policy" {
				return policy{strings.Contains(c.MaybeValue(), "compact"), true}, nil
			}
		}
	}
	if err != nil && !errors.Is(err, kerr.TopicAuthorizationFailed) {
		return policy{}, fmt.Errorf("look up cleanup.policy of topic %q: %w", topic, err)
	}
	return policy{compacted: true}, nil
}

// Starts returns where the logs of topics start, by topic and partition.
func (r *Reader) Starts(ctx context.Context, topics []string) (map[string]map[int32]int64, error) {
	return offsets(ctx, topics, r.admin.ListStartOffsets)
}

// offsets returns offsets of topics by topic and partition; list is a method of kadm.Client.
func offsets(ctx context.Context, topics []string, list func(context.Context, ...string) (kadm.ListedOffsets, error)) (map[string]map[int32]int64, error) {
	if len(topics) == 0 { // to kadm that would be all of them
		return nil, nil
	}
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
	*Reader
	next, end map[string]map[int32]int64 // offsets by topic and partition, of those that are not read yet
	done      int64                      // offsets
	total     int64
	heard     time.Time // when something came
	// closed is since when it is known that no transaction is open before a partition's end. One that has just ended is still to come.
	closed map[place]time.Time
}

// Read visits what is committed in topics, which must exist, from the first record that is not older than a time, or from the
// beginning if it is zero, up to the end that they have now. Control records are not visited. The end is the last offset that is replicated, not the last one that is committed: what is sought is committed, but
// may lie behind a transaction of somebody else that is still open. progress is told of offsets.
func (r *Reader) Read(ctx context.Context, topics []string, from time.Time, visit func(*kgo.Record) error, progress func(done, total int64)) error {
	first := r.admin.ListStartOffsets
	if !from.IsZero() {
		first = func(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
			return r.admin.ListOffsetsAfterMilli(ctx, from.UnixMilli(), topics...)
		}
	}
	w := &reading{Reader: r, heard: time.Now(), closed: map[place]time.Time{}}
	var err error
	if w.next, err = offsets(ctx, topics, first); err == nil {
		w.end, err = offsets(ctx, topics, r.admin.ListEndOffsets)
	}
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	at := map[string]map[int32]kgo.Offset{}
	for topic, ends := range w.end {
		at[topic] = map[int32]kgo.Offset{}
		for p, end := range ends {
			if next := w.next[topic][p]; next < end {
				at[topic][p] = kgo.NewOffset().At(next)
				w.total += end - next
			} else {
				delete(ends, p)
			}
		}
	}
	r.client.AddConsumePartitions(at)
	defer r.client.PurgeTopicsFromConsuming(topics...)
	for w.left() {
		progress(w.done, w.total)
		if err := w.poll(ctx, visit); err != nil {
			return err
		}
	}
	progress(w.total, w.total)
	return nil
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
	if silence := time.Since(w.heard); err == nil && silence > w.patience() {
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
// left has been committed for a while; and it fails once the brokers have been silent for too long.
func (w *reading) silent(ctx context.Context, silence time.Duration) error {
	var topics []string
	for topic, ends := range w.end {
		if len(ends) > 0 {
			topics = append(topics, topic)
		}
	}
	committed, err := offsets(ctx, topics, w.admin.ListCommittedOffsets)
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	start, err := w.Starts(ctx, topics)
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	for topic, ends := range w.end {
		compacted, _, err := w.Compacted(ctx, topic)
		if err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
		for p, end := range ends {
			at := place{topic, p}
			open := committed[topic][p] < end
			if _, ok := w.closed[at]; !open && !ok {
				w.closed[at] = time.Now()
			}
			switch {
			case start[topic][p] >= end, !open && compacted && time.Since(w.closed[at]) > w.patience():
				w.done += end - w.next[topic][p]
				delete(ends, p)
			case open && w.Waits != nil:
				w.heard = time.Now() // it is not the brokers that are silent
				if !w.waited[at] {
					w.waited[at] = true
					w.Waits(topic, p, committed[topic][p])
				}
			case silence < w.Timeout, !open && compacted:
			case open:
				return &replication.PreconditionError{
					Reason: fmt.Sprintf("partition %d of topic %q can be read to offset %d only, and ends at %d: somebody's transaction has been open for more than %s",
						p, topic, committed[topic][p], end, w.Timeout),
					Hint: "consumers wait behind it as well: kafka-transactions.sh --bootstrap-server <broker> find-hanging --broker-id <id>; or raise --timeout",
				}
			default:
				return fmt.Errorf("read topic %q, partition %d: the brokers have sent nothing for %s, at offset %d of %d", topic, p, w.Timeout, w.next[topic][p], end)
			}
		}
	}
	return nil
}

// patience is how long nothing comes before silent looks why.
func (r *Reader) patience() time.Duration { return min(tail, r.Timeout) }
