package checkpoint

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/sink"
)

// savedKey is of checkpoints that people have saved, behind Key, followed by the name.
const savedKey = "/saved/"

// SavedKey returns the key of the checkpoint that is saved under a name.
func SavedKey(key, name string) string { return key + savedKey + name }

// SavedNames returns the names of the checkpoints that are saved beside the one at key, sorted.
func SavedNames(values map[string][]byte, key string) (names []string) {
	for _, k := range slices.Sorted(maps.Keys(values)) {
		if name, ok := strings.CutPrefix(k, key+savedKey); ok {
			names = append(names, name)
		}
	}
	return names
}

// Notes writes values beside a checkpoint and takes the right to write it away from nobody: under keys that no Keeper writes. The
// topic must exist. It is used by one goroutine at a time.
type Notes struct {
	Config Config

	client *kgo.Client // nil: the next Put connects
	stop   context.CancelFunc
}

// Put writes a value; a nil value removes the key. When it returns nil all in-sync replicas have it. After an error the next one
// connects anew.
func (n *Notes) Put(ctx context.Context, key string, value []byte) (err error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	cfg := &n.Config
	if !strings.HasPrefix(key, cfg.Key+"/") || !cfg.ours(key) {
		return fmt.Errorf("write beside the checkpoint in topic %q: a key does not begin with %q and a slash", cfg.Topic, cfg.Key)
	}
	defer func() {
		if err = withCause(ctx, err); err != nil || ctx.Err() != nil {
			n.Close()
		}
	}()
	if n.client == nil {
		if err := n.connect(ctx); err != nil {
			return err
		}
	}
	defer context.AfterFunc(ctx, n.stop)()
	if err := n.client.ProduceSync(ctx, &kgo.Record{Topic: cfg.Topic, Key: []byte(key), Value: value}).FirstErr(); err != nil {
		return fmt.Errorf("write beside the checkpoint in topic %q: %w", cfg.Topic, err)
	}
	return nil
}

func (n *Notes) connect(ctx context.Context) (err error) {
	alive, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.client, err = n.Config.newClient(alive, kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerLinger(0), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		stop()
		return err
	}
	n.stop = stop
	defer context.AfterFunc(ctx, stop)()
	exists, err := sink.TopicExists(ctx, n.client, n.Config.Topic)
	switch {
	case err != nil:
		return fmt.Errorf("look up topic %q: %w", n.Config.Topic, err)
	case !exists:
		return &sink.MissingTopicError{Topic: n.Config.Topic}
	}
	return nil
}

// Close closes the connections, if there are any.
func (n *Notes) Close() {
	if n.client != nil {
		n.client.Close()
		n.stop()
		n.client = nil
	}
}
