package sim

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/walferry/walferry/internal/pgoutput"
	"github.com/walferry/walferry/internal/walsender"
)

// profile is what a seed chooses once for its whole run.
type profile struct {
	keys          int
	transactions  int // at least
	huge          int // rows of one huge transaction, 0: there is none
	compression   string
	maxRecord     string
	maxBuffered   string
	linger        time.Duration
	senderTimeout time.Duration // wal_sender_timeout
	toldTimeout   time.Duration // what the bridge is told of it
	keepalives    bool          // one behind each COMMIT
	latency       time.Duration // of the brokers' answers, on average
	brokers       int
	versions      *kversion.Versions // of Kafka
	faults        int                // how many strike
	interval      time.Duration      // of checkpoints; 0: there are none
	exactlyOnce   bool
	standby       bool          // a second process runs all the time
	freezes       int           // how many times a process is frozen
	pace          time.Duration // factor of the time between two transactions
}

const (
	checkpointTopic = "walferry.checkpoints"
	partitions      = 3
	minTransactions = 50
)

// newProfile returns a profile; with zombies it has a standby, and processes that freeze.
func newProfile(r *rand.Rand, zombies bool) profile {
	p := profile{
		keys: 1 + r.IntN(12), transactions: minTransactions + r.IntN(10),
		compression: pick(r, "none", "none", "none", "none", "none", "none", "lz4", "snappy"),
		maxRecord:   "1020KiB", maxBuffered: "8MiB",
		linger:        pick(r, 20*time.Millisecond, 20*time.Millisecond, 0, 5*time.Millisecond),
		senderTimeout: pick(r, 6*time.Second, 60*time.Second),
		keepalives:    r.IntN(3) == 0,
		latency:       pick(r, 0, time.Millisecond, 5*time.Millisecond, 20*time.Millisecond, 80*time.Millisecond, 300*time.Millisecond),
		brokers:       2 + r.IntN(2),
		// Of those after 3.6 the client asks whether they want its metrics, which takes time.
		versions: pick(r, versions...),
		faults:   r.IntN(8),
	}
	if r.IntN(4) == 0 { // so little that Publish blocks
		p.maxRecord, p.maxBuffered = "1KiB", "4KiB"
		p.latency = min(p.latency, 20*time.Millisecond) // or nothing would get through in time
	}
	if r.IntN(3) == 0 {
		p.interval = pick(r, 100*time.Millisecond, 300*time.Millisecond, time.Second)
	}
	if r.IntN(16) == 0 {
		p.huge = 600 + r.IntN(1000)
	}
	p.exactlyOnce = p.interval > 0 && r.IntN(2) == 0
	p.toldTimeout, p.pace = p.senderTimeout, 1
	if r.IntN(5) == 0 || zombies {
		p.addStandby(r)
		if zombies {
			p.freezes += 2
		}
	}
	return p
}

// addStandby makes it a profile of two processes, of which one may freeze while the other takes over.
func (p *profile) addStandby(r *rand.Rand) {
	p.standby, p.freezes = true, r.IntN(3)
	p.senderTimeout = pick(r, 6*time.Second, 6*time.Second, 6*time.Second, 20*time.Second)
	p.toldTimeout = pick(r, p.senderTimeout, 5*p.senderTimeout/2) // a heartbeat is a third of it
	p.pace = pick[time.Duration](r, 1, 5)
	if r.IntN(6) > 0 {
		p.interval = pick(r, 100*time.Millisecond, 300*time.Millisecond, time.Second)
		p.exactlyOnce = r.IntN(2) == 0
	}
}

// instances returns how many processes run at a time.
func (p profile) instances() int {
	if p.standby {
		return 2
	}
	return 1
}

// delivery is the part of the configuration.
func (p profile) delivery() string {
	if p.exactlyOnce {
		return "exactly_once"
	}
	return "at_least_once"
}

var versions = []*kversion.Versions{kversion.V2_8_0(), kversion.V3_6_0(), kversion.V3_6_0(), kversion.V4_0_0()}

// checkpoint is the part of the configuration.
func (p profile) checkpoint() string {
	if p.interval == 0 {
		return `{topic: ""}`
	}
	return fmt.Sprintf("{topic: %s, interval: %s}", checkpointTopic, p.interval)
}

func pick[T any](r *rand.Rand, choices ...T) T { return choices[r.IntN(len(choices))] }

var (
	types  = []string{"order", "invoice"}
	topics = []string{"outbox.event.order", "outbox.event.invoice"}

	outbox = pgoutput.Relation{ID: 16400, Namespace: "public", Name: "outbox", ReplicaIdentity: 'd', Columns: []pgoutput.Column{
		{Key: true, Name: "id", TypeOID: 25, TypeMod: -1},
		{Name: "aggregatetype", TypeOID: 1043, TypeMod: -1},
		{Name: "aggregateid", TypeOID: 1043, TypeMod: -1},
		{Name: "type", TypeOID: 1043, TypeMod: -1},
		{Name: "payload", TypeOID: 3802, TypeMod: -1},
		{Name: "created_at", TypeOID: 1184, TypeMod: -1},
	}}
	foreign = pgoutput.Relation{ID: 16500, Namespace: "public", Name: "orders", ReplicaIdentity: 'd', Columns: []pgoutput.Column{
		{Name: "id", TypeOID: 20, TypeMod: -1},
	}}
)

// event is an event that was committed, and the record that has to become of it.
type event struct {
	id        string
	topic     string
	partition int32
	key       string
	value     string
	tombstone bool
	index     int // in its transaction
	txn       *txn
	ordinal   int     // in its partition, in commit order
	delivered bool    // it is in Kafka
	by        *stream // whose session sent it first
}

// txn is a transaction that was committed.
type txn struct {
	walsender.Committed
	events  []*event
	missing int       // events that are not in Kafka
	whole   time.Time // when it and everything before it was in Kafka
}

// load makes transactions of a seed.
type load struct {
	r      *rand.Rand
	p      profile
	n      int // events so far
	keys   []key
	struck func(*fault)
}

// key is an aggregate, with where its events go.
type key struct {
	id, kind, topic string
	partition       int32
}

func newLoad(r *rand.Rand, p profile, struck func(*fault)) *load {
	l := &load{r: r, p: p, struck: struck}
	for n := range p.keys {
		t := r.IntN(len(types))
		k := key{id: "k-" + strconv.Itoa(n), kind: types[t], topic: topics[t]}
		partitioner := kgo.StickyKeyPartitioner(nil).ForTopic(k.topic)
		k.partition = int32(partitioner.Partition(&kgo.Record{Key: []byte(k.id)}, partitions))
		l.keys = append(l.keys, k)
	}
	return l
}

// group returns transactions that commit together, most often a single one.
func (l *load) group() (txs []walsender.Tx, txns []*txn) {
	n := 1
	if l.r.IntN(7) == 0 {
		n = 2 + l.r.IntN(3)
		l.struck(&equalLSNs)
	}
	for range n {
		tx, t := l.transaction(l.size())
		txs, txns = append(txs, tx), append(txns, t)
	}
	return txs, txns
}

// size is mostly that of a web request's transaction, sometimes that of a job's.
func (l *load) size() int {
	switch n := l.r.IntN(100); {
	case n < 4:
		return 0
	case n < 85:
		return 1 + l.r.IntN(4)
	case n < 99:
		return 5 + l.r.IntN(6)
	default:
		return 20 + l.r.IntN(180)
	}
}

// transaction returns a transaction of so many changes, and what must come of it.
func (l *load) transaction(changes int) (walsender.Tx, *txn) {
	var tx walsender.Tx
	t := &txn{}
	if changes == 0 && l.r.IntN(2) == 0 { // BEGIN and COMMIT alone, as Postgres 14 sends them
		tx = append(tx, walsender.Keepalive(false))
	}
	for index := range changes {
		if l.r.IntN(40) == 0 {
			tx = append(tx, walsender.Keepalive(l.r.IntN(2) == 0)) // not a change of its own
			l.struck(&keepalive)
		}
		change, e := l.change()
		if e != nil {
			e.index, e.txn = index, t
			t.events = append(t.events, e)
		}
		tx = append(tx, change)
	}
	t.missing = len(t.events)
	return tx, t
}

// change returns one change, most often with an event.
func (l *load) change() (walsender.Change, *event) {
	switch n := l.r.IntN(50); {
	case n < 2:
		return walsender.Insert(foreign, pgoutput.Text(strconv.Itoa(l.n))), nil
	case n < 3:
		return walsender.Row(foreign, pgoutput.AppendUpdate(nil, foreign.ID, nil, []pgoutput.Value{pgoutput.Text("7")})), nil
	case n < 4:
		return walsender.Message("somebody-else", []byte("not for us")), nil
	case n < 8:
		e := l.event()
		content := fmt.Sprintf(`{"id": %q, "aggregatetype": %q, "aggregateid": %q, "type": "T", "payload": %s}`,
			e.id, strings.TrimPrefix(e.topic, "outbox.event."), e.key, e.value)
		return walsender.Message("outbox", []byte(content)), e
	}
	e := l.event()
	payload := pgoutput.Text(e.value)
	if l.r.IntN(40) == 0 {
		e.tombstone, e.value = true, ""
		payload = pgoutput.Null()
	}
	return walsender.Insert(outbox, pgoutput.Text(e.id), pgoutput.Text(strings.TrimPrefix(e.topic, "outbox.event.")),
		pgoutput.Text(e.key), pgoutput.Text("T"), payload, pgoutput.Text("2026-01-01 00:00:00+00")), e
}

func (l *load) event() *event {
	k := pick(l.r, l.keys...)
	l.n++
	pad := l.r.IntN(60)
	if l.r.IntN(30) == 0 {
		pad = 800
	}
	return &event{
		id: "e-" + strconv.Itoa(l.n), topic: k.topic, partition: k.partition, key: k.id,
		value: fmt.Sprintf(`{"n": %d, "pad": "%s"}`, l.n, strings.Repeat("x", pad)),
	}
}

// pause is the time between two steps: often none.
func pause(r *rand.Rand) time.Duration {
	switch n := r.IntN(20); {
	case n < 10:
		return 0
	case n < 17:
		return time.Duration(r.Int64N(int64(50 * time.Millisecond)))
	default:
		return time.Duration(r.Int64N(int64(time.Second)))
	}
}
