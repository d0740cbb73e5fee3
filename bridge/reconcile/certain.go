package reconcile

import (
	"math"
	"strconv"
	"strings"
)

// partition is what is known of a partition once all of it is read.
type partition struct {
	start int64 // log start offset: what is before has expired, or was deleted
	// The first record of a row that it holds, by its offset, and that row's transaction ID. Without one they are -1 and never.
	first    int64
	firstXID uint64
	behind   uint64 // the transaction ID from which on rows were published later than first
}

// topic is what is known of a topic. The zero topic, without partitions, does not exist.
type topic struct {
	name       string
	compacted  bool // also
	partitions []partition
	whole      uint64 // the least transaction ID of a row with a whole record, see record; never: there is none
	behind     uint64 // the one from which on rows were published when there were as many partitions as now
	counts     Counts
}

// snapshot is a pg_current_snapshot() of the past: every transaction below xmin was over, none from xmax on had an ID.
type snapshot struct{ xmin, xmax uint64 }

func parseSnapshot(text string) (s snapshot, ok bool) {
	parts := strings.SplitN(text, ":", 3)
	if len(parts) != 3 {
		return s, false
	}
	var err1, err2 error
	s.xmin, err1 = strconv.ParseUint(parts[0], 10, 64)
	s.xmax, err2 = strconv.ParseUint(parts[1], 10, 64)
	return s, err1 == nil && err2 == nil && s.xmin <= s.xmax
}

// never is more than any transaction ID.
const never = math.MaxUint64

// behind returns the transaction ID from which on rows were published later than the row of transaction xid. history is
// snapshots of the past, from the oldest on.
//
// A bridge publishes to a partition in the order of commits, and what it repeats it repeats in that order. So a row whose
// transaction had no ID yet when a snapshot was taken that saw the transaction of another row is behind that one. No clock is
// asked: a record has the time when its event came, and behind brokers that stand still it is appended hours later. One
// record that is held stands for all. One that a replay or a repair made does not count: it came when somebody wanted it.
func behind(xid uint64, history []snapshot) uint64 {
	for _, s := range history { // the oldest has the least xmax
		if xid < s.xmin {
			return s.xmax
		}
	}
	return never
}

// judge computes what is behind the records that are held.
func (t *topic) judge(history []snapshot) {
	t.behind = behind(t.whole, history)
	for i := range t.partitions {
		p := &t.partitions[i]
		p.behind = behind(p.firstXID, history)
	}
}

// holds reports whether the partition must have the record of a row of this transaction, if it was ever published to it: it has
// thrown nothing away, or nothing that was appended behind something that it holds.
func (p *partition) holds(xid uint64) bool { return p.start == 0 || xid >= p.behind }

// holds reports whether the topic must have the record of a row, if it was ever published: the rule by which what may have
// expired is unknown, never missing.
//
// What was published to a topic when it had fewer partitions lies wherever its key belonged then. A row that is behind a whole
// record was published when there were as many as now; any other may be in every partition. Of a compacted
// topic nothing is certain: a record makes way for a later one of its key, and that one, being a tombstone, for nothing at all.
func (t *topic) holds(partition int32, xid uint64) bool {
	n := len(t.partitions)
	switch {
	case n == 0:
		return true // it was deleted, with all that it held, or never was
	case t.compacted:
		return false
	case xid >= t.behind:
		return t.partitions[partition].holds(xid)
	}
	for i := range t.partitions {
		if !t.partitions[i].holds(xid) {
			return false
		}
	}
	return true
}

// wrapped reports whether rows may be 2^32 transactions older than they seem, so that their IDs prove nothing: a row keeps its 32
// bits for ever, see table.FullXID. It is believed that whoever keeps such a row has one as well that is half as old: eldest is the
// transaction that the oldest row of the table seems to be of, next the first one that has no ID yet.
func wrapped(eldest, next uint64) bool { return next >= 1<<32 && eldest <= next-1<<31 }
