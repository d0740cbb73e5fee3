package bridge

import (
	"testing"
	"time"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/replication"
)

// What is kept by its size may be days old, and when it was published is known for as long as the index knows it.
func TestRetentionKnowsWhenWhatItKeepsWasPublished(t *testing.T) {
	s := &session{Bridge: &Bridge{db: config.Database{Retain: config.Retain{MaxBytes: 1 << 40}}}}
	r := &retention{s: s, every: retainEvery}
	begin := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	for n := range 3 * 24 * 6 {
		r.reached(&checkpoint.Checkpoint{Time: begin.Add(time.Duration(n) * 10 * time.Minute), Pos: checkpoint.LSN{LSN: replication.LSN(100 + n)}})
	}
	if at := r.timeOf(100); !at.Equal(begin) {
		t.Errorf("the oldest of three days is of %s, want %s", at, begin)
	}
}
