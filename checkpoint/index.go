package checkpoint

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/walferry/walferry/replication"
)

// Entry says what was reached at a time. All of a slot's are the index, beside its checkpoint: for one to go back to a time, and
// to know what the transaction IDs were then.
type Entry struct {
	Pos      LSN       `json:"pos"`
	Time     time.Time `json:"time"` // by our clock
	Timeline uint32    `json:"timeline,omitempty"`
	// SystemID is that of the checkpoint: the transaction IDs of another cluster say nothing of this one's.
	SystemID string `json:"system_id,omitempty"`
	// Snapshot has the bounds of the checkpoint's, "xmin:xmax:" as pg_current_snapshot() prints them, and none of the
	// transactions between them. It is empty if there was none.
	Snapshot string `json:"snapshot,omitempty"`
}

// The index has an entry for each minute of the last hours, and one for each ten minutes before: whoever opens checkpoints reads
// that of all databases, and a week in minutes would be 2.4 MB of each. A minute without progress has none.
const (
	indexKey    = "/t/" // behind Key, followed by the minute
	indexFormat = "2006-01-02T15:04Z"
	indexFine   = time.Minute
	indexCoarse = 10 * time.Minute
	finely      = 2 * time.Hour // for how long the minutes are kept
	// IndexKept is how long an entry is kept, unless Keeper.Kept is longer.
	IndexKept = 7 * 24 * time.Hour
)

// Index returns the index of the checkpoint at key, the oldest entry first. What cannot be read is left out.
func Index(values map[string][]byte, key string) (entries []Entry) {
	for _, k := range slices.Sorted(maps.Keys(values)) {
		var e Entry
		if strings.HasPrefix(k, key+indexKey) && json.Unmarshal(values[k], &e) == nil && e.Pos.LSN != 0 {
			entries = append(entries, e)
		}
	}
	return entries
}

// minute is the key of an entry, behind indexKey.
func minute(t time.Time) string { return t.UTC().Truncate(indexFine).Format(indexFormat) }

// On reports whether the entry lies on the history of a server: not in WAL that a promotion has lost, nor in another cluster's.
func (e *Entry) On(systemID string, t replication.Timelines) bool {
	left, ok := t.End(e.Timeline)
	return ok && e.SystemID == systemID && e.Pos.LSN <= left
}

// Entry returns the entry of the index that a checkpoint makes.
func (c *Checkpoint) Entry() Entry {
	e := Entry{Pos: c.Pos, Time: c.Time, Timeline: c.Timeline, SystemID: c.SystemID}
	if parts := strings.SplitAfterN(c.Snapshot, ":", 3); len(parts) == 3 {
		e.Snapshot = parts[0] + parts[1]
	}
	return e
}

// index adds an entry for c to values, and tombstones for those that have become too many.
func (k *Keeper) index(values map[string][]byte, c *Checkpoint) {
	prefix := k.Key + indexKey
	value, _ := json.Marshal(c.Entry()) // it has only what can be encoded
	held := k.Store.Values()
	values[prefix+minute(c.Time)] = value
	held[prefix+minute(c.Time)] = value
	var last time.Time // of the ten minutes of the last entry that stays
	for _, key := range slices.Sorted(maps.Keys(held)) {
		text, ok := strings.CutPrefix(key, prefix)
		if !ok {
			continue
		}
		at, err := time.Parse(indexFormat, text)
		age, coarse := c.Time.Sub(at), at.Truncate(indexCoarse)
		switch {
		case err != nil, age > max(IndexKept, k.Kept), age > finely && coarse.Equal(last):
			values[key] = nil
			delete(held, key)
		case age > finely:
			last = coarse
		}
	}
}
