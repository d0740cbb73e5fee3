package sim

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/bridge/config"
)

// fault is a way in which the world is unkind.
type fault struct {
	name string
	// breaks says that a process which meets it may have to end without an orderly stop.
	breaks bool
	// plan makes it strike now or soon; nil: it lies in the load.
	plan func(*world, *rand.Rand, *fault)
}

// The faults. A fault counts when it has had an effect, not when it was planned.
var (
	cutPostgres      = fault{name: "connection to Postgres cut", breaks: true, plan: planCut(toPostgres)}
	cutKafka         = fault{name: "connection to a broker cut", breaks: true, plan: planCut(toKafka)}
	lostResponse     = fault{name: "produce response lost after the write", breaks: true, plan: planLostResponse}
	lostCommit       = fault{name: "answer to the end of a transaction lost", breaks: true, plan: planLostCommit}
	notLeader        = fault{name: "leader of a partition moved", breaks: true, plan: planNotLeader}
	batchFailed      = fault{name: "batch failed for good", breaks: true, plan: planBatchFailed}
	batchRefused     = fault{name: "batch failed, retriable", breaks: true, plan: planBatchRefused}
	errorAfterAppend = fault{name: "batch appended, then reported as failed", breaks: true, plan: planErrorAfterAppend}
	slowAcks         = fault{name: "acknowledgement slow", plan: planSlowAcks}
	brokersDown      = fault{name: "brokers unreachable", breaks: true, plan: planBrokersDown}
	keepalive        = fault{name: "keepalive at any point", plan: planKeepalive}
	crash            = fault{name: "Postgres crashed", breaks: true, plan: planCrash}
	wentBack         = fault{name: "confirmed LSN went back", breaks: true}
	shutdown         = fault{name: "Postgres shut down", breaks: true, plan: planShutdown}
	partition        = fault{name: "network to Postgres swallowed packets", breaks: true, plan: planPartition}
	terminated       = fault{name: "walsender terminated", breaks: true, plan: planTerminated}
	slotTaken        = fault{name: "slot taken by another client", breaks: true, plan: planSlotTaken}
	sigterm          = fault{name: "SIGTERM", plan: planSigterm}
	sigkill          = fault{name: "SIGKILL", plan: planSigkill}
	huge             = fault{name: "huge transaction"}
	equalLSNs        = fault{name: "interleaved transactions with equal LSNs"}
	freeze           = fault{name: "process frozen", breaks: true, plan: planFreeze}
	takenOver        = fault{name: "slot taken over from a frozen process"}
	lateTaken        = fault{name: "batch of a former holder of the slot appended"}
	lateRefused      = fault{name: "batch of a former holder of the slot refused"}
	lateEnd          = fault{name: "end of a transaction by a former holder of the slot refused"}
	lateInit         = fault{name: "checkpoints taken over by a former holder of the slot", breaks: true}
)

var faults = []*fault{
	&cutPostgres, &cutKafka, &lostResponse, &notLeader, &batchFailed, &batchRefused, &errorAfterAppend, &slowAcks,
	&brokersDown, &keepalive, &crash, &wentBack, &shutdown, &partition, &terminated, &slotTaken, &sigterm, &sigkill,
	&huge, &equalLSNs, &lostCommit, &freeze, &takenOver, &lateTaken, &lateRefused, &lateEnd, &lateInit,
}

// swarm chooses the faults of a run: few kinds of them, so that each run is unkind in its
// own way.
func swarm(r *rand.Rand) (chosen []*fault) {
	for _, f := range faults {
		if f.plan != nil && f != &freeze && r.IntN(4) == 0 { // the profile says how many times one freezes
			chosen = append(chosen, f)
		}
	}
	return chosen
}

// during runs f at once and over after d, or when the last fault has to be over.
func (w *world) during(d time.Duration, over func()) {
	w.healing.Go(func() {
		<-time.After(d)
		over()
	})
}

func upTo(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }

// planCut cuts a connection of the process after so many bytes, or the next one that it opens.
func planCut(s side) func(*world, *rand.Rand, *fault) {
	return func(w *world, r *rand.Rand, _ *fault) {
		at := cutAt{-1, -1}
		bytes := r.IntN(1 << r.IntN(13))
		if r.IntN(3) == 0 {
			at.write = bytes
		} else {
			at.read = bytes
		}
		p := w.victim(r)
		w.mu.Lock()
		defer w.mu.Unlock()
		var wires []*wire
		if p != nil {
			for wire := range p.live {
				if wire.side == s {
					wires = append(wires, wire)
				}
			}
		}
		if len(wires) == 0 || r.IntN(4) == 0 {
			w.nextCut[s] = &at
			return
		}
		wire := wires[r.IntN(len(wires))]
		wire.mu.Lock()
		defer wire.mu.Unlock()
		wire.cutRead, wire.cutWrite = at.read, at.write
	}
}

func planLostResponse(w *world, r *rand.Rand, _ *fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lose += 1 + r.IntN(2)
}

func planLostCommit(w *world, r *rand.Rand, _ *fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loseEnds += 1 + r.IntN(2)
}

// planNotLeader moves partitions to other brokers, of which the client does not know.
func planNotLeader(w *world, r *rand.Rand, f *fault) {
	for range 1 + r.IntN(3) {
		topic, p := pick(r, topics...), int32(r.IntN(partitions))
		to := int32(r.IntN(w.profile.brokers))
		if w.kafka.LeaderFor(topic, p) != to && w.kafka.MoveTopicPartition(topic, p, to) == nil {
			w.struck(f)
		}
	}
}

// fail fails the next batches of one partition.
func (w *world) fail(r *rand.Rand, f *fault, retriable bool, err *kerr.Error) {
	at := place{pick(r, topics...), int32(r.IntN(partitions))}
	if retriable && w.profile.interval > 0 && r.IntN(3) == 0 {
		at = place{checkpointTopic, 0}
	}
	handle := w.kafka.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Topic: at.topic, Partitions: []int32{at.partition}, Err: err, Count: 1 + r.IntN(2),
		When: func(kmsg.Request) bool {
			w.struck(f)
			return true
		},
	})
	w.during(2*time.Second, handle.Remove)
}

func planBatchFailed(w *world, r *rand.Rand, f *fault) {
	w.fail(r, f, false, pick(r, kerr.OutOfOrderSequenceNumber, kerr.UnknownProducerID, kerr.InvalidProducerEpoch, kerr.ProducerFenced))
}

func planBatchRefused(w *world, r *rand.Rand, f *fault) {
	w.fail(r, f, true, pick(r, kerr.NotLeaderForPartition, kerr.NotEnoughReplicas, kerr.LeaderNotAvailable, kerr.KafkaStorageError))
}

func planErrorAfterAppend(w *world, r *rand.Rand, f *fault) {
	w.fail(r, f, true, pick(r, kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend))
}

func planSlowAcks(w *world, r *rand.Rand, _ *fault) {
	slow := 50*time.Millisecond + upTo(r, 3*time.Second)
	w.mu.Lock()
	w.slow = slow
	w.mu.Unlock()
	w.during(upTo(r, 4*time.Second), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.slow = 0
	})
}

func planBrokersDown(w *world, r *rand.Rand, f *fault) {
	w.mu.Lock()
	w.noBrokers = true
	var wires []*wire
	for _, p := range w.processes {
		for wire := range p.live {
			if wire.side == toKafka {
				wires = append(wires, wire)
			}
		}
	}
	w.mu.Unlock()
	w.struck(f)
	for _, wire := range wires {
		wire.cut()
	}
	w.during(upTo(r, 8*time.Second), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.breaks++
		w.noBrokers = false
	})
}

func planKeepalive(w *world, r *rand.Rand, f *fault) {
	for range 1 + r.IntN(5) {
		if holder := w.pg.Holder(); holder != nil {
			holder.Keepalive(r.IntN(2) == 0)
			w.struck(f)
		}
	}
}

// takeServer is for faults that take Postgres down: one of them at a time.
func (w *world) takeServer() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.noServer {
		return false
	}
	w.noServer = true
	return true
}

// restart brings Postgres up again; it may have forgotten what was confirmed.
func (w *world) restart(older lsn) {
	if older != 0 && older < w.pg.Confirmed() {
		w.struck(&wentBack)
		w.history.regress(older)
	}
	w.pg.Start(older)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tracef("Postgres is up at %s", w.pg.Confirmed())
	w.noServer = false
}

func planCrash(w *world, r *rand.Rand, f *fault) {
	if !w.takeServer() {
		return
	}
	w.mu.Lock()
	var s *stream
	for _, p := range w.current {
		s = cmp.Or(s, p.undisturbed())
	}
	w.mu.Unlock()
	w.history.crash(s)
	w.struck(f)
	w.pg.Crash()
	older := lsn(0)
	if r.IntN(2) == 0 {
		older = w.history.olderConfirmed(r.IntN)
	}
	w.during(upTo(r, 3*time.Second), func() { w.restart(older) })
}

// shutdownLimit is shutdown_grace, 5 s, with the time of noticing.
const shutdownLimit = 8 * time.Second

func planShutdown(w *world, r *rand.Rand, f *fault) {
	if !w.takeServer() {
		return
	}
	w.struck(f)
	w.pg.Shutdown()
	down := upTo(r, 2*time.Second)
	w.healing.Go(func() {
		began := time.Now()
		for w.pg.Holder() != nil && time.Since(began) < shutdownLimit {
			<-time.After(50 * time.Millisecond)
		}
		<-time.After(down)
		w.restart(0)
	})
}

func planPartition(w *world, r *rand.Rand, f *fault) {
	w.mu.Lock()
	busy := w.cutOff
	w.cutOff = true
	w.mu.Unlock()
	if busy {
		return
	}
	w.struck(f)
	w.pg.Partition()
	w.during(upTo(r, pick(r, time.Second, 15*time.Second)), func() {
		w.pg.Heal()
		w.mu.Lock()
		defer w.mu.Unlock()
		w.breaks++
		w.cutOff = false
	})
}

func planTerminated(w *world, _ *rand.Rand, f *fault) {
	if holder := w.pg.Holder(); holder != nil {
		w.struck(f)
		holder.Terminate()
	}
}

// planSlotTaken ends the bridge's stream and has another client take the slot for a while.
func planSlotTaken(w *world, r *rand.Rand, f *fault) {
	if holder := w.pg.Holder(); holder != nil {
		holder.Terminate()
	}
	held := upTo(r, 3*time.Second)
	w.mu.Lock()
	w.breaks++
	w.mu.Unlock()
	w.healing.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		conn, err := w.rival(ctx)
		if err != nil {
			return // Postgres is not there
		}
		defer conn.Close(ctx)
		for range 10 {
			err := pglogrepl.StartReplication(ctx, conn, "walferry", 0, pglogrepl.StartReplicationOptions{
				Mode: pglogrepl.LogicalReplication, PluginArgs: []string{"proto_version '1'", "publication_names '\"walferry\"'"},
			})
			if err == nil {
				w.struck(f)
				<-time.After(held)
				return
			}
			<-time.After(20 * time.Millisecond)
		}
	})
}

// rival connects as another client.
func (w *world) rival(ctx context.Context) (*pgconn.PgConn, error) {
	database := w.config.Databases[0]
	database.DSN += config.Secret("?sslmode=disable&replication=database&application_name=rival")
	cfg, err := database.ConnConfig()
	if err != nil {
		return nil, err
	}
	cfg.DialFunc = w.pg.Dial
	return pgconn.ConnectConfig(ctx, &cfg.Config)
}

// victim returns a process, most often the one that has the slot.
func (w *world) victim(r *rand.Rand) *process {
	running := w.running()
	if len(running) < 2 {
		return append(running, nil)[0]
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p := running[r.IntN(2)]
	if r.IntN(4) > 0 && w.latest != nil && slices.Contains(running, w.latest.process) {
		p = w.latest.process
	}
	return p
}

func planSigterm(w *world, r *rand.Rand, f *fault) {
	p := w.victim(r)
	if p != nil && !p.isKilled() {
		w.struck(f)
		p.terminate()
	}
}

func planSigkill(w *world, r *rand.Rand, f *fault) {
	p := w.victim(r)
	if p != nil && !p.isKilled() {
		w.struck(f)
		p.kill()
	}
}
