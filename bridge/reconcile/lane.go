package reconcile

import "cmp"

// lane is the first copies of one key in one partition, by their offsets. At least once allows that a stretch of the stream
// is repeated in its order, so first copies alone say in which order events came.
//
// Positions are the truth where records have them: they are the order of commits, of one cluster. Where they have none, because
// kafka.position_header is off, it is the ranks of the rows, if the table has an order that is worth it: its order column, or
// the times of its commits as far as they are apart. Ranks do not overrule positions: a sequence is drawn before the commit,
// so of two transactions that ran at the same time the later one may have the lower number.
type lane struct {
	topic     uint32
	partition int32
	key       uint64

	placed   bool // at is known
	at       position
	atOffset int64

	ranked     bool // rank is known
	source     uint16
	rank       uint64
	rankOffset int64
}

// enter goes to the lane of a suspect.
func (l *lane) enter(s *suspect) {
	if l.topic != s.row.topic || l.partition != s.row.partition || l.key != s.row.key {
		*l = lane{topic: s.row.topic, partition: s.row.partition, key: s.row.key}
	}
}

// take takes the next first copy. It returns the offset of a record before it that should be behind it, or -1, and false
// if nothing says where it belongs. Ranks that differ by no more than slack say nothing.
func (l *lane) take(s *suspect, slack uint64) (before int64, known bool) {
	before, known = -1, s.placed || s.row.rank != 0
	switch {
	case s.placed && l.placed && l.at.system == s.at.system && s.at.compare(&l.at) < 0:
		before = l.atOffset
	case s.placed: // or nothing can be said of two clusters
		l.placed, l.at, l.atOffset = true, s.at, s.offset
	case l.ranked && l.source == s.row.source && s.row.rank < l.rank && l.rank-s.row.rank > slack:
		before = l.rankOffset
	}
	if s.row.rank != 0 && (!l.ranked || l.source != s.row.source || s.row.rank > l.rank) {
		l.ranked, l.source, l.rank, l.rankOffset = true, s.row.source, s.row.rank, s.offset
	}
	return before, known
}

func (p *position) compare(q *position) int {
	return cmp.Or(cmp.Compare(p.timeline, q.timeline), cmp.Compare(p.commit, q.commit), cmp.Compare(p.index, q.index))
}
