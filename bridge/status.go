package bridge

import (
	"time"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/replication"
)

// State is what a bridge is doing.
type State string

// The states of a bridge.
const (
	Starting  State = "starting"  // no session yet
	Waiting   State = "waiting"   // for the next session, after an error
	OnStandby State = "standby"   // for the slot, which somebody else holds
	Streaming State = "streaming" // publishing
	Draining  State = "draining"  // waiting for the last acknowledgements
	Stopped   State = "stopped"   // as asked
	Failed    State = "failed"    // until somebody does something
	SlotLost  State = "slot_lost" // for good
	InGap     State = "gap"       // events may be missing: until somebody decides
)

var states = []State{Starting, Waiting, OnStandby, Streaming, Draining, Stopped, Failed, SlotLost, InGap}

// Status is a bridge's state for people and probes. Its JSON is the admin API's.
type Status struct {
	Database string    `json:"database"`
	Slot     string    `json:"slot"`
	State    State     `json:"state"`
	Role     string    `json:"role"` // leader: holds the slot; standby: waits for it; none
	Since    time.Time `json:"since"`
	Ready    bool      `json:"ready"`
	Reason   string    `json:"reason,omitempty"` // why it is not ready

	Sessions     int       `json:"sessions"` // since the process started
	Inflight     int64     `json:"in_flight_events"`
	ConfirmedLSN string    `json:"confirmed_lsn"` // as we told Postgres
	Checkpoint   string    `json:"checkpoint_lsn,omitempty"`
	LastProgress time.Time `json:"last_progress,omitzero"` // when nothing was in flight, or Kafka acknowledged something
	LastEvent    time.Time `json:"last_event"`             // zero: none since the process started
	LastError    string    `json:"last_error,omitempty"`
	LastErrorAt  time.Time `json:"last_error_at,omitzero"`
	Holder       string    `json:"holder,omitempty"`    // who has the slot while we are on standby
	WaitsFor     string    `json:"waits_for,omitempty"` // who makes Postgres send nothing: standby
	WALStatus    string    `json:"wal_status,omitempty"`
	RestartLag   int64     `json:"restart_lag_bytes"`
	ConfirmedLag int64     `json:"confirmed_lag_bytes"`
	// Retention is of the slot that keeps WAL for replays, nil without one or before the first look at it.
	Retention *RetentionStatus `json:"retention,omitempty"`
	logged    time.Time        // when LastError was logged
}

// stalledAfter is how long events may be in flight without any progress before the bridge
// calls itself not ready.
const stalledAfter = 30 * time.Second

const waitsForStandby = "Postgres sends nothing until the standbys that synchronized_standby_slots names have the WAL: start the standby, or take its slot out of that setting"

// Status returns the bridge's present status.
func (b *Bridge) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.status
	if lsn := replication.LSN(b.confirmed.Load()); lsn != 0 {
		s.ConfirmedLSN = lsn.String()
	}
	if micros := b.lastEvent.Load(); micros != 0 {
		s.LastEvent = time.UnixMicro(micros)
	}
	switch s.State {
	case OnStandby:
		s.Role, s.Ready = "standby", true
	case Streaming, Draining:
		s.Role, s.Ready = "leader", true
		if idle := time.Since(s.LastProgress); s.Inflight > 0 && idle > stalledAfter {
			s.Ready, s.Reason = false, "no progress for "+idle.Round(time.Second).String()+" while events are in flight: Kafka does not acknowledge"
		} else if s.WaitsFor != "" {
			s.Ready, s.Reason = false, waitsForStandby
		}
	default:
		s.Role, s.Reason = "none", string(s.State)
		if s.LastError != "" {
			s.Reason += ": " + s.LastError
		}
	}
	return s
}

func (b *Bridge) enter(state State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.enterLocked(state)
}

func (b *Bridge) enterLocked(state State) {
	b.metrics.enter(b.db.Name, state)
	if b.status.State == state {
		return
	}
	b.status.State, b.status.Since = state, time.Now()
	if state != Streaming && state != Draining { // what was known of slot and flight is old
		b.status.Inflight, b.status.WaitsFor, b.status.WALStatus, b.status.RestartLag, b.status.ConfirmedLag = 0, "", "", 0, 0
		b.status.Retention = nil
	}
	if state == Streaming {
		b.status.Sessions++
		b.status.LastProgress = time.Now()
		b.status.Holder = ""
	}
}

// tick takes Feedback's look at the session, ten times a second.
func (s *session) tick(confirmed replication.LSN) {
	inflight := s.inflight.Pending()
	s.confirmed.Store(uint64(confirmed))
	acknowledged := s.acknowledged.Load()
	s.metrics.inflight.WithLabelValues(s.db.Name).Set(float64(inflight))
	s.mu.Lock()
	if inflight == 0 || acknowledged != s.lastAcknowledged {
		s.status.LastProgress, s.lastAcknowledged = time.Now(), acknowledged
	}
	s.status.Inflight = inflight
	s.mu.Unlock()
	if s.until != 0 && s.inflight.Flushed() >= s.until {
		s.hurry(true)
	}
	if s.until != 0 && confirmed >= s.until {
		s.reached()
	}
}

// checkpointed takes a checkpoint that was written.
func (s *session) checkpointed(c *checkpoint.Checkpoint) {
	s.retention.reached(c)
	s.metrics.checkpoint.WithLabelValues(s.db.Name).Set(float64(c.Time.Unix()))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Checkpoint = c.Pos.String()
}

// finished takes a transaction whose events are all acknowledged.
func (s *session) finished(commit time.Time) {
	s.lastEvent.Store(commit.UnixMicro())
	// Two clocks: a difference below zero says nothing.
	s.commitToAck.Observe(max(0, s.sink.Answered().Sub(commit).Seconds()))
}

// look takes Watch's look at the slot.
func (s *session) look(slot *replication.Slot) {
	if k := s.keeper.Load(); k != nil {
		k.Observe(slot)
	}
	waits := s.waits(slot)
	s.metrics.slot(s.db.Name, slot, waits)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case waits && s.status.WaitsFor == "":
		s.log.Warn().Stringer("confirmed_lsn", slot.ConfirmedFlush).Msg(waitsForStandby)
		s.status.WaitsFor = "standby"
	case !waits && s.status.WaitsFor != "":
		s.log.Info().Msg("Postgres sends again: the standbys have the WAL")
		s.status.WaitsFor = ""
	}
	s.status.WALStatus, s.status.RestartLag, s.status.ConfirmedLag = slot.WALStatus, slot.RestartLag(), slot.ConfirmedLag()
}

// waits reports whether Postgres waits for a standby that does not come: it did at the look before, and nothing was confirmed since.
func (s *session) waits(slot *replication.Slot) bool {
	before := s.looked
	s.looked = slot
	return before != nil && before.WaitsForStandby && slot.WaitsForStandby && before.ConfirmedFlush == slot.ConfirmedFlush
}

// standby says, once for each holder, that the slot is taken.
func (b *Bridge) standby(holder string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status.State != OnStandby || b.status.Holder != holder {
		b.log.Info().Str("role", "standby").Str("holder", holder).Msg("the slot is active elsewhere, waiting for it")
	}
	b.status.Holder = holder
	b.enterLocked(OnStandby)
}

// waiting notes an error that a new session may cure. One that repeats is logged once a minute.
func (b *Bridge) waiting(v verdict, err error) {
	if v.class == Standby {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.status.LastError != err.Error() || now.Sub(b.status.logged) >= logAgain {
		b.log.Warn().Err(err).Str("class", string(v.class)).Msg("session ended, a new one follows")
		b.status.logged = now
	}
	b.status.LastError, b.status.LastErrorAt = err.Error(), now
	b.enterLocked(Waiting)
}

// failed notes an error that ends the bridge.
func (b *Bridge) failed(v verdict, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log.Error().Err(err).Str("class", string(v.class)).Str("hint", v.hint).Msg("stopped")
	b.status.LastError, b.status.LastErrorAt = err.Error(), time.Now()
	state := Failed
	switch v.class {
	case Lost:
		state = SlotLost
	case Gap:
		state = InGap
	}
	b.enterLocked(state)
}
