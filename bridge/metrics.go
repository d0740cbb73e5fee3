package bridge

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/walferry/walferry/replication"
)

// Metrics are the metrics of all bridges of a process.
type Metrics struct {
	published, bytes            *prometheus.CounterVec
	publishLatency, commitToAck *prometheus.HistogramVec
	inflight                    *prometheus.GaugeVec
	restartLag, confirmedLag    *prometheus.GaugeVec
	walStatus, state            *prometheus.GaugeVec
	waitsForStandby             *prometheus.GaugeVec
	restarts                    *prometheus.CounterVec
	nonTransactional, skipped   *prometheus.CounterVec
	checkpoint                  *prometheus.GaugeVec
	deadLetters                 *prometheus.CounterVec
	retentionUp, retentionWAL   *prometheus.GaugeVec
	retentionFrom, retentionAge *prometheus.GaugeVec
}

// NewMetrics registers the metrics with reg.
func NewMetrics(reg prometheus.Registerer, version, commit string) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "walferry", Name: name, Help: help}, labels)
		reg.MustRegister(v)
		return v
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "walferry", Name: name, Help: help}, labels)
		reg.MustRegister(v)
		return v
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "walferry", Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18),
		}, // 0.5 ms to 65 s
			[]string{"database"})
		reg.MustRegister(v)
		return v
	}
	gauge("build_info", "Always 1.", "version", "commit").WithLabelValues(version, commit).Set(1)
	return &Metrics{
		published:        counter("events_published_total", "Events that the brokers acknowledged.", "database", "topic"),
		bytes:            counter("published_bytes_total", "Bytes of keys, values and headers that the brokers acknowledged.", "database", "topic"),
		publishLatency:   histogram("publish_latency_seconds", "From handing an event to the Kafka client to its acknowledgement."),
		commitToAck:      histogram("commit_to_ack_seconds", "From the commit, by Postgres' clock, to the acknowledgement of the transaction's last event."),
		inflight:         gauge("inflight_events", "Events that are not acknowledged yet.", "database"),
		restartLag:       gauge("slot_restart_lag_bytes", "WAL that Postgres keeps for the slot: disk.", "database"),
		confirmedLag:     gauge("slot_confirmed_lag_bytes", "WAL that is not confirmed: delivery.", "database"),
		walStatus:        gauge("slot_wal_status", "1 for the slot's present wal_status.", "database", "status"),
		waitsForStandby:  gauge("waits_for_standby", "1 while Postgres sends nothing until a standby has the WAL (synchronized_standby_slots).", "database"),
		state:            gauge("state", "1 for the bridge's present state.", "database", "state"),
		restarts:         counter("session_restarts_total", "Sessions that ended with an error, by its class.", "database", "class"),
		skipped:          counter("events_skipped_total", "Events that Postgres sent again and the checkpoint says are published.", "database"),
		deadLetters:      counter("dead_letters_total", "Events that were passed over, for they are dead letters.", "database"),
		checkpoint:       gauge("checkpoint_timestamp_seconds", "When the last checkpoint was written, Unix time.", "database"),
		retentionUp:      gauge("retention_slot_up", "1 while the slot that keeps WAL for replays is as it should be, 0 while it needs somebody.", "database"),
		retentionWAL:     gauge("retention_slot_wal_bytes", "WAL that Postgres keeps for replays: disk.", "database"),
		retentionFrom:    gauge("retention_slot_from_timestamp_seconds", "About when the oldest event that can be replayed was published, Unix time.", "database"),
		retentionAge:     gauge("retention_slot_catalog_transactions", "How many transactions ago VACUUM of the catalog is held up by the slot that keeps WAL for replays.", "database"),
		nonTransactional: counter("messages_ignored_total", "Logical messages with the outbox prefix that are not transactional and so not events.", "database"),
	}
}

// observer returns a function for sink.Config.Observe; it keeps the topics' counters at hand.
func (m *Metrics) observer(database string) func(topic string, bytes int, latency time.Duration) {
	type counters struct{ published, bytes prometheus.Counter }
	topics := map[string]counters{}
	published := m.publishLatency.WithLabelValues(database)
	var last string // most events go where the one before went
	var c counters
	return func(topic string, bytes int, latency time.Duration) {
		if topic != last {
			var ok bool
			if c, ok = topics[topic]; !ok {
				c = counters{m.published.WithLabelValues(database, topic), m.bytes.WithLabelValues(database, topic)}
				topics[topic] = c
			}
			last = topic
		}
		c.published.Inc()
		c.bytes.Add(float64(bytes))
		published.Observe(latency.Seconds())
	}
}

func (m *Metrics) slot(database string, s *replication.Slot, waitsForStandby bool) {
	m.waitsForStandby.WithLabelValues(database).Set(oneIf(waitsForStandby))
	m.restartLag.WithLabelValues(database).Set(float64(s.RestartLag()))
	m.confirmedLag.WithLabelValues(database).Set(float64(s.ConfirmedLag()))
	for _, status := range []string{"reserved", "extended", "unreserved", "lost"} {
		m.walStatus.WithLabelValues(database, status).Set(oneIf(status == s.WALStatus))
	}
}

func (m *Metrics) retention(database string, s *RetentionStatus) {
	m.retentionUp.WithLabelValues(database).Set(oneIf(s.Problem == ""))
	if s.From == "" { // it could not be read
		forget(database, m.retentionWAL, m.retentionFrom, m.retentionAge)
		return
	}
	m.retentionWAL.WithLabelValues(database).Set(float64(s.WAL))
	m.retentionAge.WithLabelValues(database).Set(float64(s.CatalogAge))
	if !s.FromTime.IsZero() {
		m.retentionFrom.WithLabelValues(database).Set(float64(s.FromTime.Unix()))
	}
}

// noRetention is of a database that has no retention slot.
func (m *Metrics) noRetention(database string) {
	forget(database, m.retentionUp, m.retentionWAL, m.retentionFrom, m.retentionAge)
}

func forget(database string, gauges ...*prometheus.GaugeVec) {
	for _, g := range gauges {
		g.DeletePartialMatch(prometheus.Labels{"database": database})
	}
}

// enter notes a state. Without a session there is nothing to say of slot and flight: no
// value is better than the last one for ever.
func (m *Metrics) enter(database string, state State) {
	for _, s := range states {
		m.state.WithLabelValues(database, string(s)).Set(oneIf(s == state))
	}
	if state == Streaming || state == Draining {
		return
	}
	for _, v := range []*prometheus.GaugeVec{m.inflight, m.restartLag, m.confirmedLag, m.walStatus, m.waitsForStandby, m.retentionUp, m.retentionWAL, m.retentionFrom, m.retentionAge} {
		v.DeletePartialMatch(prometheus.Labels{"database": database})
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
