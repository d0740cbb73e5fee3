package replay

import (
	"fmt"
	"time"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/replication"
)

// Ask is a range as somebody asks for it. Exactly one of FromLSN, FromTime and FromName is set, and at most one of ToLSN and ToTime;
// without these it ends where the bridge has come to.
type Ask struct {
	FromLSN  replication.LSN
	FromTime time.Time
	FromName string // of a saved checkpoint
	ToLSN    replication.LSN
	ToTime   time.Time
}

// Range is what is replayed: the transactions whose commit record lies at or behind From and before To, and which were
// committed, by Postgres' clock, neither before Since nor behind Until, unless those are zero.
type Range struct {
	From  checkpoint.LSN `json:"from"`
	To    checkpoint.LSN `json:"to"`
	Since time.Time      `json:"since,omitzero"`
	Until time.Time      `json:"until,omitzero"`
}

// holds reports whether a transaction that was committed then is in the range.
func (r *Range) holds(committed time.Time) bool {
	return !committed.Before(r.Since) && (r.Until.IsZero() || !committed.After(r.Until))
}

// passed reports whether no transaction behind one that was committed then is in the range: commit times are in the order of commits
// but for a little.
func (r *Range) passed(committed time.Time) bool {
	return !r.Until.IsZero() && committed.Sub(r.Until) > skew
}

// resolve finds the range in the window.
func (a *Ask) resolve(w *Window, k *known, found checkpoint.Found) (r Range, err error) {
	r.To = w.To
	what := ""
	switch {
	case a.FromName != "":
		saved, err := k.saved(a.FromName)
		if err != nil {
			return r, err
		}
		found.Slot = w.Slot
		left, err := saved.Shared(found)
		switch {
		case err != nil:
			return r, err
		case saved.Pos.LSN > left:
			return r, outside(w, "checkpoint %q, at %s, lies in WAL that a promotion at %s has lost: it", a.FromName, saved.Pos, left)
		}
		r.From, what = saved.Pos, fmt.Sprintf("checkpoint %q, at %s,", a.FromName, saved.Pos)
	case !a.FromTime.IsZero():
		at := w.before(a.FromTime.Add(-skew))
		if at == nil {
			return r, outside(w, "time %s", a.FromTime.Format(time.RFC3339))
		}
		r.From, r.Since = at.Pos, a.FromTime
	default:
		r.From.LSN, what = a.FromLSN, "LSN "+a.FromLSN.String()
	}
	if r.From.LSN < w.From.LSN || r.From.LSN > w.To.LSN {
		return r, outside(w, "%s", what)
	}
	switch {
	case a.ToLSN != 0 && a.ToLSN > w.To.LSN:
		return r, outside(w, "LSN %s", a.ToLSN)
	case a.ToLSN != 0 && a.ToLSN < r.From.LSN:
		return r, replication.Refuse("give an end behind that", "LSN %s lies before %s, where the replay would begin", a.ToLSN, r.From)
	case a.ToLSN != 0:
		r.To.LSN = a.ToLSN
	case !a.ToTime.IsZero() && len(w.entries) > 0 && a.ToTime.Before(w.entries[0].Time.Add(-skew)):
		return r, outside(w, "time %s", a.ToTime.Format(time.RFC3339))
	case !a.ToTime.IsZero():
		r.Until = a.ToTime // what was committed before and is not published yet, the bridge publishes
	}
	return r, nil
}

// before returns the last entry that was written at a time or before, nil if there is none.
func (w *Window) before(at time.Time) (last *checkpoint.Entry) {
	for i := range w.entries {
		if !w.entries[i].Time.After(at) {
			last = &w.entries[i]
		}
	}
	return last
}

func (k *known) saved(name string) (*checkpoint.Checkpoint, error) {
	value := k.values[checkpoint.SavedKey(k.cfg.Key, name)]
	if value == nil {
		return nil, replication.Refuse("`walferry checkpoint list` shows those that are", "no checkpoint is saved as %q", name)
	}
	return checkpoint.Parse(value)
}
