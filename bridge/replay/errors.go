package replay

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
)

// outside refuses a range that is not in the window.
func outside(w *Window, format string, args ...any) error {
	return replication.Refuse("choose a range in it; what is still in the outbox table: --from-table; raise retain.max_bytes and retain.max_age for the next time",
		"%s lies outside of what can be replayed: %s", fmt.Sprintf(format, args...), w)
}

// meant says what errors mean for a replay, where that is not what they mean for a bridge: nothing has to be recovered, and no
// event can be moved out of the way.
func meant(err error) error {
	const table = "what is still in the outbox table: --from-table"
	if lost, ok := errors.AsType[*replication.SlotLostError](err); ok {
		return replication.Refuse("`walferry init` makes a new one, and nothing before that can be replayed; "+table+"; keep retain.max_bytes below max_slot_wal_keep_size",
			"slot %q, which kept WAL for replays, is lost (%s)", lost.Slot, lost.Reason)
	}
	if errors.Is(err, replication.ErrNoSlot) {
		return replication.Refuse("`walferry init` makes it, and nothing before that can be replayed; "+table, "nothing keeps WAL for replays: %v", err)
	}
	if gap, ok := errors.AsType[*replication.GapError](err); ok {
		return replication.Refuse("connect to the server that the bridge reads from; "+table, "nothing of what was published can be replayed from this server: %s", gap.Reason)
	}
	if poison, ok := errors.AsType[*sink.PoisonError](err); ok {
		return replication.Refuse("choose another --topic-prefix", "%v", poison)
	}
	if refused, ok := errors.AsType[*sink.PublishError](err); ok && (errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge)) {
		return replication.Refuse("raise max.message.bytes of the topic to that of the one that the event went to first", "%v", refused)
	}
	return err
}

// stopped is the error of a replay that was stopped before its end. id is "" if it cannot be resumed.
func stopped(id string, cause error) error {
	hint := "start it again"
	if id != "" {
		hint = resumes(id)
	}
	return replication.Refuse(hint, "the replay was stopped: %v", cause)
}

func resumes(id string) string { return "`walferry replay --resume " + id + "` goes on where it was" }
