package checkpoint

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// Entry says which position was reached at a time.
type Entry struct {
	Pos      LSN       `json:"pos"`
	Time     time.Time `json:"time"` // when it was written, by our clock
	Timeline uint32    `json:"timeline,omitempty"`
	SystemID string    `json:"system_id,omitempty"` // of the Postgres cluster
	// Snapshot is xmin and xmax of a pg_current_snapshot() of which all that commits below xmin does so before Pos: "xmin:xmax:".
	// Empty if there is none, or if the entry was written before entries had it.
	Snapshot string `json:"snapshot,omitempty"`
}

// Index returns the entries of the checkpoint under a key, oldest first. What cannot be read is left out.
func Index(values map[string][]byte, key string) []Entry {
	var entries []Entry
	for k, value := range values {
		var e Entry
		if strings.HasPrefix(k, key+"/t/") && json.Unmarshal(value, &e) == nil && e.Pos.LSN != 0 {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int { return a.Time.Compare(b.Time) })
	return entries
}

// limits returns the first two numbers of a snapshot, "xmin:xmax:".
func limits(snapshot string) string {
	if parts := strings.SplitN(snapshot, ":", 3); len(parts) == 3 {
		return parts[0] + ":" + parts[1] + ":"
	}
	return ""
}
