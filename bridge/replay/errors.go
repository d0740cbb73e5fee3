package replay

import (
	"errors"
	"fmt"

	"github.com/walferry/walferry/replication"
)

// outside refuses a range that is not in the window.
func outside(w *Window, format string, args ...any) error {
	return replication.Refuse("choose a range in it; what is still in the outbox table: --from-table; raise retain.max_bytes and retain.max_age for the next time",
		"%s lies outside of what can be replayed: %s", fmt.Sprintf(format, args...), w)
}

// unkept says of a retention slot that is gone or lost what to do. It is not the slot that events come from, and nothing has to be
// recovered.
func unkept(err error) error {
	lost, is := errors.AsType[*replication.SlotLostError](err)
	switch {
	case is:
		return replication.Refuse("`walferry init` makes a new one, and nothing before that can be replayed; what is still in the outbox table: --from-table; keep retain.max_bytes below max_slot_wal_keep_size",
			"slot %q, which kept WAL for replays, is lost (%s)", lost.Slot, lost.Reason)
	case errors.Is(err, replication.ErrNoSlot):
		return replication.Refuse("`walferry init` makes it, and nothing before that can be replayed; what is still in the outbox table: --from-table", "nothing keeps WAL for replays: %v", err)
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
