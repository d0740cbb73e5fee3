package replay

import (
	"fmt"

	"github.com/walferry/walferry/replication"
)

// outside refuses a range that is not in the window.
func outside(w *Window, format string, args ...any) error {
	return replication.Refuse("choose a range in it; what is still in the outbox table: --from-table; raise retain.max_bytes and retain.max_age for the next time",
		"%s lies outside of what can be replayed: %s", fmt.Sprintf(format, args...), w)
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
