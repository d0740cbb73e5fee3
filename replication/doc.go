// Package replication talks to a Postgres walsender: it opens a logical
// replication slot, reads its stream, and confirms LSNs. It knows LSNs, slots
// and publications, and nothing of outboxes or Kafka.
//
// What may be confirmed is decided by Inflight alone, and told to the server by
// Feedback alone.
package replication
