package main

import "time"

// Results is what one run of the harness measured. It is written to bench/results as JSON,
// beside the table and the plot that are made of it.
type Results struct {
	Commit    string    `json:"commit"` // of the working tree, "-dirty" behind it if there were changes
	Time      time.Time `json:"time"`
	Machine   Machine   `json:"machine"`
	Quick     bool      `json:"quick"`
	Backlogs  []Backlog `json:"backlogs"`
	Drains    []Drain   `json:"drains"` // in the order in which they ran
	Latencies []Latency `json:"latencies"`
	Verdicts  []Verdict `json:"verdicts"`
	Notes     []string  `json:"notes,omitempty"`    // what was not measured, and why; what spoils the rest
	Failures  []string  `json:"failures,omitempty"` // runs that went wrong: they have no numbers
}

// Machine is what the numbers were measured on. Everything shares it: Postgres, Kafka, and
// whoever is measured.
type Machine struct {
	CPU     string `json:"cpu"`
	Cores   int    `json:"cores"`
	Memory  int64  `json:"memory_bytes"`
	Kernel  string `json:"kernel"`
	RmemMax int    `json:"rmem_max_bytes"` // net.core.rmem_max, which caps SO_RCVBUF
	// ReceiveBuffer is what a reader that asks for replication.ReceiveBuffer gets.
	ReceiveBuffer int `json:"receive_buffer_bytes"`

	Postgres   string `json:"postgres"`
	Kafka      string `json:"kafka"`
	Go         string `json:"go"`
	Partitions int    `json:"partitions"` // of every topic
}

// Backlog is WAL that waits in a slot; every contestant reads the same bytes.
type Backlog struct {
	Name     string `json:"name"`
	Events   int64  `json:"events"`
	Payload  int    `json:"payload_bytes"` // on average
	WALBytes int64  `json:"wal_bytes"`
}

// Drain is one contestant that reads one backlog to its end, as a process of its own from its
// start to its exit.
type Drain struct {
	Backlog    string  `json:"backlog"`
	Contestant string  `json:"contestant"`
	Round      int     `json:"round"` // the rounds are interleaved
	Events     int64   `json:"events"`
	Seconds    float64 `json:"seconds"`
	User       float64 `json:"user_seconds"` // CPU of the contestant
	Sys        float64 `json:"sys_seconds"`
	PeakRSS    int64   `json:"peak_rss_bytes"`
	// CPU of the walsender that served it, 0 without one: few seconds of system time say that
	// the kernel joined its messages.
	WalsenderUser float64 `json:"walsender_user_seconds"`
	WalsenderSys  float64 `json:"walsender_sys_seconds"`
	BrokerCPU     float64 `json:"broker_cpu_seconds"`
	Load          float64 `json:"load_1m"` // of the machine, just before
	// OtherCPU is what all other processes of the machine used meanwhile: the rest of Postgres, the
	// harness, and whatever should not have run.
	OtherCPU float64 `json:"other_cpu_seconds"`
	// FirstRecord is when the topic had its first record, for a contestant whose start is not to
	// count: Debezium starts a JVM. 0 for the others.
	FirstRecord float64 `json:"first_record_seconds,omitempty"`
}

// Latency is the time from sending COMMIT to the record at a consumer.
type Latency struct {
	Contestant string  `json:"contestant"` // "walferry", or "direct": the application publishes after its commit
	Rate       int     `json:"events_per_second"`
	TLS        bool    `json:"tls"`
	Draining   bool    `json:"draining"` // a backlog of another database is drained meanwhile
	Round      int     `json:"round"`
	Events     int     `json:"events"`
	P50        float64 `json:"p50_ms"`
	P90        float64 `json:"p90_ms"`
	P99        float64 `json:"p99_ms"`
	P999       float64 `json:"p999_ms"`
	Max        float64 `json:"max_ms"`
	// Cores is how many cores all processes of the machine kept busy meanwhile: of one that has no more, they wait.
	Cores float64 `json:"cores_busy"`
}

// Verdict says whether a target was met.
type Verdict struct {
	Target  string `json:"target"`
	Outcome string `json:"outcome"` // PASS, MISSED or UNJUDGED
	Figure  string `json:"figure"`
}
