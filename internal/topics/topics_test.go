package topics

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/replication"
)

const topic = "events"

// rig is a cluster with a topic of two partitions.
type rig struct {
	*testing.T
	cluster *kfake.Cluster
	seeds   kgo.Opt
}

func newRig(t *testing.T, policy string) *rig {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, topic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	r := &rig{t, c, kgo.SeedBrokers(c.ListenAddrs()...)}
	set := []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "cleanup.policy", Value: &policy}}
	if _, err := kadm.NewClient(r.client()).AlterTopicConfigs(t.Context(), set, topic); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) client(opts ...kgo.Opt) *kgo.Client {
	c, err := kgo.NewClient(append(opts, r.seeds, kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(c.Close)
	return c
}

// write appends n records to each partition.
func (r *rig) write(c *kgo.Client, n int) {
	for i := range 2 * n {
		if err := c.ProduceSync(r.Context(), &kgo.Record{Topic: topic, Partition: int32(i % 2), Value: fmt.Append(nil, i)}).FirstErr(); err != nil {
			r.Fatal(err)
		}
	}
}

// begin opens a transaction and appends n records to each partition in it.
func (r *rig) begin(n int) (c *kgo.Client) {
	c = r.client(kgo.TransactionalID("somebody"))
	if err := c.BeginTransaction(); err != nil {
		r.Fatal(err)
	}
	r.write(c, n)
	return c
}

func (r *rig) commit(c *kgo.Client) {
	if err := c.EndTransaction(r.Context(), kgo.TryCommit); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) reader(o Options) *Reader {
	reader, err := New(r.Context(), []kgo.Opt{r.seeds}, o)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(reader.Close)
	return reader
}

// read reads everything and returns how many records it visited.
func (r *rig) read(reader *Reader, from time.Time, during func()) (visited int, err error) {
	var done, total int64
	err = reader.Read(r.Context(), []string{topic}, from, func(k *kgo.Record) error {
		if visited++; visited == 1 && during != nil {
			during()
		}
		return nil
	}, func(d, of int64) { done, total = d, of })
	if err == nil && done != total {
		r.Errorf("progress ends at %d of %d", done, total)
	}
	return visited, err
}

func TestReadsToTheEndsThatThereWere(t *testing.T) {
	r := newRig(t, "delete")
	plain, reader := r.client(), r.reader(Options{Timeout: time.Minute})
	r.write(plain, 3)
	r.commit(r.begin(2)) // ends with a control record
	if n, err := r.read(reader, time.Time{}, func() { r.write(plain, 4) }); n != 10 || err != nil {
		t.Errorf("visited %d, %v; want the 10 of before", n, err)
	}
	if n, err := r.read(reader, time.Time{}, nil); n != 18 || err != nil {
		t.Errorf("visited %d, %v; want all 18", n, err)
	}
	from := time.Now().Add(time.Hour)
	if n, err := r.read(reader, from, nil); n != 0 || err != nil {
		t.Errorf("visited %d, %v; want none that is older", n, err)
	}
	young := &kgo.Record{Topic: topic, Timestamp: from}
	if err := plain.ProduceSync(t.Context(), young).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if n, err := r.read(reader, from, nil); n != 1 || err != nil {
		t.Errorf("visited %d, %v; want the one that is younger", n, err)
	}
	if n, err := reader.Partitions(t.Context(), "nothing"); n != 0 || err != nil {
		t.Errorf("a topic that does not exist has %d partitions, %v", n, err)
	}
}

// A broker that is slow has not come to the end of a topic. Only of compacted ones the last offsets may have no record.
func TestSilenceIsNoEnd(t *testing.T) {
	for policy, want := range map[string]string{"delete": "the brokers have sent nothing", "compact": "", "compact,delete": ""} {
		t.Run(policy, func(t *testing.T) {
			r := newRig(t, policy)
			r.write(r.client(), 3)
			ctx, stop := context.WithCancel(t.Context())
			t.Cleanup(stop)
			r.cluster.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
				r.cluster.KeepControl()
				r.cluster.SleepControl(func() { <-ctx.Done() })
				return nil, nil, false
			})
			_, err := r.read(r.reader(Options{Timeout: 1500 * time.Millisecond}), time.Time{}, nil)
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}

func TestOpenTransactionOfSomebodyElse(t *testing.T) {
	r := newRig(t, "compact") // which does not end it
	r.write(r.client(), 3)
	open := r.begin(1)
	n, err := r.read(r.reader(Options{Timeout: 500 * time.Millisecond}), time.Time{}, nil)
	if e, ok := errors.AsType[*replication.PreconditionError](err); n != 6 || !ok || !strings.Contains(e.Reason, "has been open") {
		t.Errorf("visited %d, %v; want 6 and that it is open", n, err)
	}
	var waited []int32
	ended := make(chan error, 1)
	reader := r.reader(Options{Timeout: 500 * time.Millisecond, Waits: func(name string, p int32, offset int64) {
		if waited = append(waited, p); name != topic || offset != 3 {
			t.Errorf("waits in %s at %d, want %s at 3", name, offset, topic)
		}
		if len(waited) == 2 {
			time.AfterFunc(time.Second, func() { ended <- open.EndTransaction(context.Background(), kgo.TryCommit) }) // so long that it would be told again
		}
	}})
	if n, err = r.read(reader, time.Time{}, nil); n != 8 || err != nil {
		t.Errorf("visited %d, %v; want 8", n, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if slices.Sort(waited); !slices.Equal(waited, []int32{0, 1}) {
		t.Errorf("told of partitions %d, want each once", waited)
	}
}
