package reconcile

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/internal/topics"
	"github.com/walferry/walferry/replication"
)

// A broker that has not heard of a topic yet says that there is none: all of its rows would be missing.
func TestATopicThatOneBrokerDoesNotKnow(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "known"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	reader, err := topics.New(t.Context(), []kgo.Opt{kgo.SeedBrokers(cluster.ListenAddrs()...)}, topics.Options{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	w := &work{reader: reader, hash: newHasher(), numbers: map[string]uint32{}, comparison: newComparison(t.TempDir(), 0)}
	lookUp := func(topic string, partitions int) {
		t.Helper()
		n, err := w.number(t.Context(), topic)
		if err != nil || len(w.comparison.topics[n].partitions) != partitions {
			t.Fatalf("topic %s: %+v, %v, want %d partitions", topic, w.comparison.topics, err, partitions)
		}
	}
	lookUp("absent", 0)
	if err := w.readTopics(t.Context()); err != nil {
		t.Fatal(err)
	}
	cluster.ControlKey(int16(kmsg.Metadata), func(request kmsg.Request) (kmsg.Response, error, bool) {
		response := kmsg.NewMetadataResponse()
		response.Version = request.GetVersion()
		topic := kmsg.NewMetadataResponseTopic()
		topic.Topic, topic.ErrorCode = kmsg.StringPtr("known"), kerr.UnknownTopicOrPartition.Code
		response.Topics = append(response.Topics, topic)
		return &response, nil, true
	})
	lookUp("known", 0)
	err = w.readTopics(t.Context())
	e, ok := errors.AsType[*replication.PreconditionError](err)
	if !ok || !strings.Contains(e.Reason, `topic "known" exists`) || e.Hint != "run it again" {
		t.Errorf("a topic that is there after all: %v", err)
	}
}
