// Package sink publishes events to Kafka: it routes an event to a record, hands it to
// the brokers, and reports when all in-sync replicas have it. It knows nothing of
// Postgres' connection or LSN confirmation.
package sink
