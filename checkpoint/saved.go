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

// Put writes one value beside a checkpoint and takes the right to write it away from nobody: for keys that no Keeper writes.
// A nil value removes the key. When it returns nil all in-sync replicas have it. The topic must exist.
func Put(ctx context.Context, cfg Config, key string, value []byte) (err error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	defer func() { err = withCause(ctx, err) }()
	if !strings.HasPrefix(key, cfg.Key+"/") || !cfg.ours(key) {
		return fmt.Errorf("write beside the checkpoint in topic %q: a key does not begin with %q and a slash", cfg.Topic, cfg.Key)
	}
	client, err := cfg.newClient(ctx, kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerLinger(0), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return err
	}
	defer client.Close()
	exists, err := sink.TopicExists(ctx, client, cfg.Topic)
	switch {
	case err != nil:
		return fmt.Errorf("look up topic %q: %w", cfg.Topic, err)
	case !exists:
		return &sink.MissingTopicError{Topic: cfg.Topic}
	}
	if err := client.ProduceSync(ctx, &kgo.Record{Topic: cfg.Topic, Key: []byte(key), Value: value}).FirstErr(); err != nil {
		return fmt.Errorf("write beside the checkpoint in topic %q: %w", cfg.Topic, err)
	}
	return nil
}
