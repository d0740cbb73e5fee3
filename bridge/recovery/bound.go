package recovery

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/replication"
)

// bound says which rows may not have been published, and what is read of the topics to find out. The zero bound is none.
type bound struct {
	since uint64    // rows of this transaction ID, with its epoch, and later ones; 0: all
	from  time.Time // records that were published at this time or later; zero: all
	why   string
}

func (b bound) String() string {
	from := "from the beginning"
	if !b.from.IsZero() {
		from = "from " + b.from.UTC().Format(time.RFC3339) + " on"
	}
	return b.why + "; topics are read " + from
}

// clocks is by how much the clocks of this host, of the bridge's and of the brokers may differ.
const clocks = 10 * time.Minute

// newBound finds the bound of what a checkpoint does not cover. shared is up to where the server has the checkpoint's history.
//
// A transaction that a snapshot's xmin is above has ended before the snapshot, and the snapshot is of a time before the
// position that it is written with. So whatever such a transaction has committed lies before the position, and is published.
// That goes for subtransactions as well, whose IDs no snapshot lists: they are above that of their transaction.
func newBound(c *checkpoint.Checkpoint, shared replication.LSN, f checkpoint.Found, entries []checkpoint.Entry) bound {
	if changed := c.Membership.Changed(f.Membership); changed != "" {
		return bound{why: "every row is a candidate, for " + changed + ": what was written meanwhile may lie before the checkpoint"}
	}
	entries = ofHistory(entries, f)
	snapshot, why := c.Snapshot, fmt.Sprintf("the checkpoint at %s", c.Pos)
	if c.Pos.LSN > shared {
		// New transactions may have the IDs of those that the promotion has lost.
		snapshot = ""
		for _, e := range entries { // the newest last
			if e.Pos.LSN <= shared && e.Snapshot != "" {
				snapshot, why = e.Snapshot, fmt.Sprintf("the position %s of %s: the server has lost WAL behind %s that the checkpoint is of", e.Pos, e.Time.UTC().Format(time.RFC3339), shared)
			}
		}
	}
	xmin, _, ok := limits(snapshot)
	if !ok {
		return bound{why: fmt.Sprintf("every row is a candidate, for it is not known which transactions had ended before %s", min(c.Pos.LSN, shared))}
	}
	return bound{since: xmin, from: published(xmin, entries), why: fmt.Sprintf("rows of transaction %d and later ones are candidates, by %s", xmin, why)}
}

// ofHistory returns the entries of what the server's history has.
func ofHistory(entries []checkpoint.Entry, f checkpoint.Found) (of []checkpoint.Entry) {
	for _, e := range entries {
		if end, ok := f.Timelines.End(e.Timeline); ok && e.SystemID == f.SystemID && e.Pos.LSN <= end {
			of = append(of, e)
		}
	}
	return of
}

// published returns a time before which no row of the transaction xid, or of a later one, was published.
//
// It had no ID yet when a snapshot was taken whose xmax is not above it. But an entry's snapshot is older than the entry, by as
// long as its position took to be reached. The keeper looks for a snapshot when the one before it has come true, not earlier; so
// this one was taken behind the last entry that has the one before the one before it.
func published(xid uint64, entries []checkpoint.Entry) time.Time {
	seen, different := "", 0
	for i := len(entries) - 1; i >= 0; i-- {
		e := entries[i]
		if _, xmax, ok := limits(e.Snapshot); !ok || xmax > xid || e.Snapshot == seen {
			continue
		}
		if seen, different = e.Snapshot, different+1; different == 3 {
			return e.Time.Add(-clocks)
		}
	}
	return time.Time{}
}

// limits returns xmin and xmax of a pg_snapshot's text.
func limits(snapshot string) (xmin, xmax uint64, ok bool) {
	parts := strings.SplitN(snapshot, ":", 3)
	if len(parts) != 3 {
		return 0, 0, false
	}
	xmin, err := strconv.ParseUint(parts[0], 10, 64)
	if err != nil {
		return 0, 0, false
	}
	xmax, err = strconv.ParseUint(parts[1], 10, 64)
	return xmin, xmax, err == nil && xmin > 0
}
