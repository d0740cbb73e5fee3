package checkpoint

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A marker ends all that its producer has open in the partition, also what an earlier transaction has left there. So brokers and
// consumers take it, and a checkpoint that is read otherwise is not the one that they have.
func TestAMarkerEndsWhatHungBeforeIt(t *testing.T) {
	cfg := Config{Topic: checkpointTopic, Key: checkpointKey}
	record := func(offset, producer int64, control bool, key, value string) *kgo.Record {
		return &kgo.Record{
			Offset: offset, ProducerID: producer, Key: []byte(key), Value: []byte(value),
			Attrs: kgo.NewRecordAttrs(kgo.RecordAttrsOpts{Transactional: true, Control: control}),
		}
	}
	commit, abort := "\x00\x00\x00\x01", "\x00\x00\x00\x00"
	for _, c := range []struct{ name, marker, want string }{
		{"that is committed with the writer's first record", commit, "hung"},
		{"that is aborted with it", abort, "before"},
	} {
		t.Run(c.name, func(t *testing.T) {
			read := &contents{cfg: cfg, last: 4, at: -1, latest: map[string]*kgo.Record{}, open: map[int64]map[string]*kgo.Record{}}
			for _, r := range []*kgo.Record{
				record(0, 7, false, checkpointKey, "before"),
				record(1, 7, true, commit, ""),
				record(2, 7, false, checkpointKey, "hung"), // and has no marker
				record(3, 8, false, checkpointKey, "another's, open"),
				record(4, 7, false, checkpointKey+sessionKey, "{}"),
				record(5, 7, true, c.marker, ""),
				record(6, 8, true, commit, ""), // later than all that counts
			} {
				read.add(r)
			}
			if got := string(read.latest[checkpointKey].Value); got != c.want || !read.settled() {
				t.Errorf("the checkpoint is %q, settled %t; want %q", got, read.settled(), c.want)
			}
		})
	}
}
