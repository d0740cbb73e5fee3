package bridge

import (
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
)

// share is what one database of a process may hold in memory. All have the same and keep it: whatever one of them does
// takes nothing from another, and no lock is between them.
type share struct {
	read     int // bytes of what Postgres sends
	buffered int // bytes of records that the brokers have not acknowledged
	records  int // such records, each of which costs more than its bytes
	runs     int // of events, in the window of acknowledgements
	batch    int // events of a Kafka transaction, whose runs stay in the window until it is committed
}

// What all databases of a process may hold together, beside kafka.max_buffered.
const (
	processRecords = 16 << 10
	processRuns    = 1 << 18
	processBatch   = 100_000
)

// What each may hold in any case: with less it would do little at a time. It takes less than a megabyte.
const (
	leastRead    = 128 << 10
	leastRecords = 256
	leastRuns    = 4 << 10
	leastBatch   = 1000
)

func (o Options) share() share {
	n := max(1, o.Databases)
	return share{
		read:     max(replication.ReadBuffer/n, leastRead),
		buffered: max(int(o.Kafka.MaxBuffered)/n, int(o.Kafka.MaxRecord)+sink.BatchOverhead), // or the largest record would be refused
		records:  max(processRecords/n, leastRecords),
		runs:     max(processRuns/n, leastRuns),
		batch:    max(processBatch/n, leastBatch),
	}
}
