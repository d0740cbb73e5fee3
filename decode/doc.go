// Package decode turns the bytes of Postgres' pgoutput plugin into outbox
// events. It is a set of pure functions of bytes: no I/O, no clock, no logger,
// no goroutine, and no allocation per row.
//
// The formats are those of "Logical Replication Message Formats" in the
// Postgres manual (src/backend/replication/logical/proto.c), protocol version 1:
// only committed transactions arrive, whole and one after another, so nothing
// has to be held back here.
//
// Every byte is bounds-checked. A message that is not exactly what the protocol
// says is a *MalformedError; a row or message that breaks the outbox contract is
// a *ContractError. Neither is ever skipped.
package decode
