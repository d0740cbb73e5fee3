package sim

import (
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/internal/walsender"
)

type lsn = pglogrepl.LSN

// history is what was committed, what is in Kafka and what was confirmed, and the judge of
// each of them at the moment when it happens:
//
//	no phantom   a record is a committed event, byte for byte
//	order        within one session the records of a partition are its events in commit
//	             order, without a gap, from where the slot stood when the session began;
//	             so over all sessions first occurrences are in commit order, and what comes
//	             again is only what was not confirmed, from there on
//	zombies      a session may go on behind its successor if its process was frozen, and at
//	             least once then appends what it had in flight between the records of its
//	             successor: still the next of its own, and nothing that the successor has
//	             found to be published and skips. Soon it ends. Exactly once, none of it
//	             is ever committed
//	ack safety   a status update confirms nothing that is not in Kafka at that moment, and
//	             only an LSN that the server has sent
//	no loss      at the end of a run everything is there
type history struct {
	world *world
	kafka *kfake.Cluster

	mu         sync.Mutex // guards the following; never held by who holds the server's lock
	txns       []*txn
	whole      int // txns before it are in Kafka with all their events
	byID       map[string]*event
	partitions map[place][]*event // in commit order
	places     map[lsn]bool       // where a record of the WAL begins or ends
	confirmed  []lsn              // in the order in which the server learned of them
	producers  map[producer]*stream
	topicNames map[[16]byte]string
	log        map[place]*partitionLog
	duplicates int
	records    int

	ending     ending     // of the transaction, by the request that is pending
	late       bool       // and that is of a former holder of the slot
	unended    []placed   // batches of events in the transaction that is open
	open       []position // checkpoints written in the transaction that is open
	checkpoint *position  // the last that was committed, nil: none was
	written    int        // checkpoints that were committed
}

// place is a partition.
type place struct {
	topic     string
	partition int32
}

// partitionLog is what we know of a partition: the batches of one request that may or may
// not have been appended yet, and the number of records before them.
type partitionLog struct {
	records int64
	pending *batch
}

// batch is a batch of records of a produce request.
type batch struct {
	by      *stream
	fenced  bool          // brokers know who may write it
	behind  *stream       // the successor that its session had when the request came, nil: none
	late    time.Duration // behind it
	records []kmsg.Record
}

// placed is a batch in a partition.
type placed struct {
	at place
	*batch
}

func newHistory(w *world, start lsn) *history {
	h := &history{
		world: w, byID: map[string]*event{}, partitions: map[place][]*event{}, places: map[lsn]bool{start: true},
		producers: map[producer]*stream{}, topicNames: map[[16]byte]string{}, log: map[place]*partitionLog{},
	}
	for _, topic := range topics {
		for p := range int32(partitions) {
			h.log[place{topic, p}] = &partitionLog{} // an aborted transaction may leave a marker before there is any record
		}
	}
	return h
}

// commit commits transactions as a group, and notes what must come of them before anybody
// can see it.
func (h *history) commit(txs []walsender.Tx, txns []*txn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, c := range h.world.pg.GroupCommit(txs...) {
		t := txns[i]
		t.Committed = c
		h.txns = append(h.txns, t)
		h.places[c.CommitLSN], h.places[c.EndLSN] = true, true
		for _, e := range t.events {
			at := place{e.topic, e.partition}
			e.ordinal = len(h.partitions[at])
			h.partitions[at] = append(h.partitions[at], e)
			h.byID[e.id] = e
		}
	}
}

// committed returns how many transactions there are.
func (h *history) committed() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.txns)
}

// advance writes WAL that is not for us.
func (h *history) advance(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.places[h.world.pg.AdvanceWAL(n)] = true
}

// produces is told of each produce request before the brokers see it.
func (h *history) produces(p *process, producer producer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.producers[producer] != nil {
		return
	}
	h.producers[producer] = p.latestStream() // a session opens its stream before its producer
}

// observe observes a request that may write, just before the cluster handles it, one at a time.
//
//nolint:revive // the signature is kfake's
func (h *history) observe(request kmsg.Request) (kmsg.Response, error, bool) {
	h.kafka.KeepControl()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.settle()
	if h.late {
		h.world.struck(&lateEnd)
	}
	h.ending, h.late = undecided, false
	for _, l := range h.log {
		if b := l.pending; b != nil && b.behind != nil && b.fenced {
			h.world.struck(&lateRefused)
		}
		l.pending = nil // it was refused, or a repetition that the broker knew
	}
	switch request := request.(type) {
	case *kmsg.ProduceRequest:
		h.produce(request)
	case *kmsg.InitProducerIDRequest:
		h.ending = aborted // which fences whoever has a transaction open
	case *kmsg.EndTxnRequest:
		h.ending = aborted
		if request.Commit {
			h.ending = committed
		}
		behind, _ := h.world.behind(h.producers[producer{request.ProducerID, request.ProducerEpoch}])
		h.late = behind != nil
	}
	return nil, nil, false
}

// produce notes the batches of a produce request; mu is held.
func (h *history) produce(request *kmsg.ProduceRequest) {
	for _, t := range request.Topics {
		topic := t.Topic
		if topic == "" {
			topic = h.topicName(t.TopicID)
		}
		for _, p := range t.Partitions {
			at := place{topic, p.Partition}
			if h.log[at] == nil {
				h.log[at] = &partitionLog{}
			}
			if len(p.Records) > 0 {
				h.log[at].pending = h.read(p.Records)
			}
		}
	}
}

func (h *history) topicName(id [16]byte) string {
	name, ok := h.topicNames[id]
	if !ok {
		name = h.kafka.TopicIDInfo(id).Topic
		h.topicNames[id] = name
	}
	return name
}

func (h *history) read(raw []byte) *batch {
	var b kmsg.RecordBatch
	if err := b.ReadFrom(raw); err != nil {
		h.world.violate("a record batch that cannot be read: %v", err)
		return nil
	}
	records, err := kfake.BatchRecords(b)
	if err != nil {
		h.world.violate("records that cannot be read: %v", err)
		return nil
	}
	by := h.producers[producer{b.ProducerID, b.ProducerEpoch}]
	behind, late := h.world.behind(by)
	return &batch{by, b.Attributes&0x10 != 0, behind, late, records}
}

// settle finds out whether the batches that are pending have been appended; mu is held.
func (h *history) settle() {
	if h.world.profile.exactlyOnce {
		h.settleTransaction()
		h.settleCheckpoint()
		return
	}
	h.settleCheckpoint()
	for at, l := range h.log {
		if l.pending == nil {
			continue
		}
		if at.topic == checkpointTopic {
			continue
		}
		switch end := h.kafka.PartitionInfo(at.topic, at.partition).HighWatermark; end {
		case l.records:
		case l.records + int64(len(l.pending.records)):
			l.records = end
			if l.pending.behind != nil {
				h.world.struck(&lateTaken)
			}
			for i := range l.pending.records {
				h.appended(at, l.pending, &l.pending.records[i])
			}
			l.pending = nil
		default:
			h.world.violate("%v holds %d records, want %d, and %d more at most", at, end, l.records, len(l.pending.records))
		}
	}
}

// settleTransaction is settle for events that are part of transactions: they count from the commit on; mu is held.
func (h *history) settleTransaction() {
	ended := false
	for at, l := range h.log {
		if at.topic == checkpointTopic {
			continue
		}
		end := h.kafka.PartitionInfo(at.topic, at.partition).HighWatermark
		if l.pending != nil && end >= l.records+int64(len(l.pending.records)) {
			l.records += int64(len(l.pending.records))
			h.unended = append(h.unended, placed{at, l.pending})
			l.pending = nil
		}
		if end == l.records+1 { // a marker; one that no request asked for is of a timeout
			l.records, ended = end, true
		}
		if end != l.records {
			h.world.violate("%v holds %d records, want %d", at, end, l.records)
			l.records = end
		}
	}
	if !ended {
		return
	}
	h.late = false
	if h.ending == committed {
		for _, b := range h.unended {
			for i := range b.records {
				h.appended(b.at, b.batch, &b.records[i])
			}
		}
	}
	h.unended = nil
}

// appended judges a record that is in the log, and committed.
func (h *history) appended(at place, b *batch, r *kmsg.Record) {
	h.records++
	s := b.by
	e := h.byID[header(r, "id")]
	if e == nil {
		h.world.violate("phantom: %v got event %q, which was never committed", at, header(r, "id"))
		return
	}
	position := fmt.Sprintf("7000/1/%s/%d", e.txn.CommitLSN, e.index)
	if at != (place{e.topic, e.partition}) || string(r.Key) != e.key || string(r.Value) != e.value ||
		(r.Value == nil) != e.tombstone || header(r, "walferry-position") != position {
		h.world.violate("altered: %v got event %s of %v as %q: %q at %s, want %q: %q at %s", at, e.id,
			place{e.topic, e.partition}, r.Key, r.Value, header(r, "walferry-position"), e.key, e.value, position)
		return
	}
	if s == nil {
		h.world.violate("phantom: event %s was produced without a stream", e.id)
		return
	}
	events := h.partitions[at]
	next, ok := s.due[at]
	if !ok {
		next = sort.Search(len(events), func(i int) bool { return !s.precedes(events[i]) })
	}
	if e.ordinal != next {
		h.world.violate("order: %v got event %s at %s, number %d of the partition, want number %d: the session of process %d began at %s",
			at, e.id, position, e.ordinal, next, s.process.n, s.start)
	}
	s.due[at] = e.ordinal + 1
	if b.behind != nil {
		h.zombie(b, e)
	}
	s.sent = max(s.sent, e.txn.EndLSN)
	if e.delivered {
		h.duplicates++
		if h.world.profile.exactlyOnce {
			h.world.violate("duplicates: %v got event %s at %s once more, of process %d", at, e.id, position, s.process.n)
		}
		h.again(e, s)
		return
	}
	if e.ordinal > 0 && !events[e.ordinal-1].delivered {
		h.world.violate("order: %v got event %s before event %s", at, e.id, events[e.ordinal-1].id)
	}
	e.delivered, e.by = true, s
	if e.txn.missing--; e.txn.missing == 0 {
		h.advanceWhole()
	}
}

// lateLimit is how long a session may go on publishing behind a successor once its process can know: it waits for
// answers of Kafka, or the other way round.
const lateLimit = 10 * time.Second

// zombie judges a record that came behind its session's successor.
func (h *history) zombie(b *batch, e *event) {
	switch n := b.by.process.n; {
	case !h.world.profile.standby:
		h.world.violate("late: event %s of process %d comes behind its successor, and there was one process at a time", e.id, n)
	case b.behind.precedes(e):
		h.world.violate("late: event %s of process %d, which its successor has found to be published", e.id, n)
	case b.late > lateLimit:
		h.world.violate("late: event %s of process %d, %s after it could know that it has a successor", e.id, n, b.late)
	}
}

func header(r *kmsg.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// statusUpdate judges a status update before the server acts on it.
func (h *history) statusUpdate(u walsender.StatusUpdate) {
	s := h.world.streamOf(u.PID)
	h.mu.Lock()
	defer h.mu.Unlock()
	if s == nil { // another client
		return
	}
	h.settle()
	switch last := s.confirmed; {
	case u.Write != u.Flush || u.Flush != u.Apply:
		h.world.violate("ack: write %s, flush %s, apply %s", u.Write, u.Flush, u.Apply)
	case u.Flush == 0:
		h.world.violate("ack: 0/0 is confirmed")
	case u.Flush < last:
		h.world.violate("ack: %s is confirmed after %s", u.Flush, last)
	case !h.places[u.Flush]:
		h.world.violate("ack: %s is confirmed, where no record begins or ends", u.Flush)
	case h.world.profile.interval > 0 && u.Flush > s.start && (h.checkpoint == nil || u.Flush > h.checkpoint.Pos.LSN):
		h.world.violate("checkpoint: %s is confirmed, the checkpoint is at %v", u.Flush, h.checkpoint)
	case u.Flush > max(u.Sent, s.start):
		h.world.violate("ack: %s is confirmed, the server has sent up to %s", u.Flush, u.Sent)
	case !h.safe(u.Flush):
		t := h.txns[h.whole]
		h.world.violate("ack: %s is confirmed, but of the transaction %s to %s %d of %d events are not in Kafka",
			u.Flush, t.CommitLSN, t.EndLSN, t.missing, len(t.events))
	}
	s.confirmed = u.Flush
	if n := len(h.confirmed); n == 0 || h.confirmed[n-1] < u.Flush {
		h.confirmed = append(h.confirmed, u.Flush)
	}
}

// safe reports whether everything that ends up to an LSN is in Kafka; else txns[whole] is not.
func (h *history) safe(end lsn) bool {
	h.advanceWhole()
	return h.whole == len(h.txns) || h.txns[h.whole].EndLSN > end
}

func (h *history) advanceWhole() {
	for h.whole < len(h.txns) && h.txns[h.whole].missing == 0 {
		h.txns[h.whole].whole = time.Now()
		h.whole++
	}
}

// olderConfirmed returns what a server may find on disk as confirmed_flush_lsn: one that it
// had before, 0 if there is none.
func (h *history) olderConfirmed(choose func(n int) int) lsn {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := len(h.confirmed)
	if n < 2 {
		return 0
	}
	recent := h.confirmed[max(0, n-10) : n-1]
	return recent[choose(len(recent))]
}

// regress forgets what the server has forgotten.
func (h *history) regress(to lsn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.confirmed = slices.DeleteFunc(h.confirmed, func(l lsn) bool { return l > to })
}

// last returns the end of the last transaction.
func (h *history) last() lsn {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.txns[len(h.txns)-1].EndLSN
}

// orderly judges a process that was stopped in order: nothing of what its last session has
// sent comes again.
func (h *history) orderly(p *process) {
	s := p.latestStream()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.settle()
	if confirmed := h.world.pg.Confirmed(); s.sent > confirmed {
		h.world.violate("duplicates: process %d stopped in order, but sent events up to %s and confirmed %s", p.n, s.sent, confirmed)
	}
}

// complete judges a run at its end: nothing up to confirmed is lost, and Kafka holds what
// we saw.
func (h *history) complete(confirmed lsn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.settle()
	for _, t := range h.txns {
		if t.EndLSN <= confirmed && t.missing > 0 {
			h.world.violate("loss: of the transaction %s to %s %d of %d events are not in Kafka", t.CommitLSN, t.EndLSN, t.missing, len(t.events))
		}
	}
	for _, topic := range topics {
		for _, p := range h.kafka.PartitionInfos(topic) {
			l := h.log[place{topic, p.Partition}]
			if p.HighWatermark != l.records {
				h.world.violate("phantom: %s/%d holds %d records that nobody saw", topic, p.Partition, p.HighWatermark)
			}
		}
	}
}
