package replication

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"
)

// Timelines is the history of a cluster's timelines, from which follows the one
// that an LSN lies on.
type Timelines struct {
	current uint32
	past    []timeline // oldest first
}

type timeline struct {
	id  uint32
	end LSN // the first LSN that lies on a later timeline
}

// Of returns the timeline that lsn lies on.
func (t Timelines) Of(lsn LSN) uint32 {
	for _, p := range t.past {
		if lsn < p.end {
			return p.id
		}
	}
	return t.current
}

// Current returns the present timeline.
func (t Timelines) Current() uint32 { return t.current }

// End returns the LSN at which the timeline was left, the highest there is for the present
// one. It reports false for a timeline that the server has never been on.
func (t Timelines) End(id uint32) (LSN, bool) {
	for _, p := range t.past {
		if p.id == id {
			return p.end, true
		}
	}
	return math.MaxUint64, id == t.current
}

// Began returns the LSN at which the timeline began, 0 if that is not known or it is the first.
// Two promotions of one cluster may give their timelines the same number.
func (t Timelines) Began(id uint32) (began LSN) {
	for _, p := range t.past {
		if p.id == id {
			break
		}
		began = p.end
	}
	return began
}

// ParseTimelines reads a timeline history file: per line a timeline that was left,
// the LSN at which it was left, and a reason
// (src/backend/access/transam/timeline.c, readTimeLineHistory).
func ParseTimelines(current uint32, history string) (Timelines, error) {
	t := Timelines{current: current}
	for line := range strings.Lines(history) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) < 2 {
			return t, fmt.Errorf("history of timeline %d: a line of %d fields, want timeline and LSN", current, len(fields))
		}
		id, idErr := strconv.ParseUint(fields[0], 10, 32)
		lsn, lsnErr := pglogrepl.ParseLSN(fields[1])
		if err := cmp.Or(idErr, lsnErr); err != nil {
			return t, fmt.Errorf("history of timeline %d: %w", current, err)
		}
		t.past = append(t.past, timeline{uint32(id), lsn})
	}
	return t, nil
}
