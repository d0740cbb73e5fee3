// Package pgoutput encodes the messages of Postgres' pgoutput plugin, proto_version 1, as a walsender puts them into
// XLogData. It is the test side of the decoder: seeds for fuzzing, streams for the scripted walsender.
//
// The format is that of "Logical Replication Message Formats" in the Postgres manual: big-endian integers,
// NUL-terminated strings, times in microseconds since 2000-01-01 UTC. Every Append function appends one whole message to
// b and returns the extended slice. Names must not contain NUL; nothing else is checked, so that tests can also encode
// what no server would send.
package pgoutput

import (
	"encoding/binary"
	"time"
)

// postgresEpoch is 2000-01-01 UTC in microseconds since 1970.
const postgresEpoch = 946_684_800_000_000

// Relation describes a table as the plugin announces it before the first row of that table.
type Relation struct {
	ID              uint32
	Namespace       string // empty for pg_catalog
	Name            string
	ReplicaIdentity byte // relreplident of pg_class: 'd', 'n', 'f' or 'i'
	Columns         []Column
}

// Column is one column of a Relation.
type Column struct {
	Key     bool // part of the replica identity
	Name    string
	TypeOID uint32
	TypeMod int32 // atttypmod, -1 for none
}

// Value is one column of a row. The zero Value is NULL.
type Value struct {
	kind byte
	data []byte
}

// Text is a value in the type's text format, the only one sent unless the client asked for binary 'true'.
func Text[T string | []byte](v T) Value { return Value{kind: 't', data: []byte(v)} }

// Binary is a value in the type's binary format.
func Binary(v []byte) Value { return Value{kind: 'b', data: v} }

// Null is a NULL.
func Null() Value { return Value{kind: 'n'} }

// UnchangedToast stands for an out-of-line value that an update left alone and the server did not send.
func UnchangedToast() Value { return Value{kind: 'u'} }

// OldRow is what an update or a delete tells about the row before it: the columns of the replica identity with all
// others NULL, or with REPLICA IDENTITY FULL the whole row.
type OldRow struct {
	Full   bool
	Values []Value
}

// Options of AppendTruncate.
const (
	Cascade         uint8 = 1 << 0
	RestartIdentity uint8 = 1 << 1
)

// AppendBegin encodes the start of a transaction. finalLSN is the LSN of its commit record.
func AppendBegin(b []byte, finalLSN uint64, commitTime time.Time, xid uint32) []byte {
	b = append(b, 'B')
	b = binary.BigEndian.AppendUint64(b, finalLSN)
	b = AppendTime(b, commitTime)
	return binary.BigEndian.AppendUint32(b, xid)
}

// AppendCommit encodes the end of a transaction. commitLSN is where the commit record starts, endLSN where it ends;
// flags is 0 in every known version.
func AppendCommit(b []byte, flags uint8, commitLSN, endLSN uint64, commitTime time.Time) []byte {
	b = append(b, 'C', flags)
	b = binary.BigEndian.AppendUint64(b, commitLSN)
	b = binary.BigEndian.AppendUint64(b, endLSN)
	return AppendTime(b, commitTime)
}

// AppendOrigin encodes where a transaction was first committed, for one that was replicated to this server.
func AppendOrigin(b []byte, commitLSN uint64, name string) []byte {
	b = append(b, 'O')
	b = binary.BigEndian.AppendUint64(b, commitLSN)
	return appendString(b, name)
}

// AppendRelation encodes the announcement of a table.
func AppendRelation(b []byte, r Relation) []byte {
	b = append(b, 'R')
	b = binary.BigEndian.AppendUint32(b, r.ID)
	b = appendString(b, r.Namespace)
	b = appendString(b, r.Name)
	b = append(b, r.ReplicaIdentity)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Columns)))
	for _, c := range r.Columns {
		b = appendBool(b, c.Key)
		b = appendString(b, c.Name)
		b = binary.BigEndian.AppendUint32(b, c.TypeOID)
		b = binary.BigEndian.AppendUint32(b, uint32(c.TypeMod))
	}
	return b
}

// AppendType encodes the announcement of a data type that is not built in.
func AppendType(b []byte, oid uint32, namespace, name string) []byte {
	b = append(b, 'Y')
	b = binary.BigEndian.AppendUint32(b, oid)
	b = appendString(b, namespace)
	return appendString(b, name)
}

// AppendInsert encodes a new row.
func AppendInsert(b []byte, relID uint32, row []Value) []byte {
	b = append(b, 'I')
	b = binary.BigEndian.AppendUint32(b, relID)
	return appendRow(b, 'N', row)
}

// AppendUpdate encodes a changed row. old is nil when the server sends only the new row: the replica identity is not
// FULL and its columns did not change.
func AppendUpdate(b []byte, relID uint32, old *OldRow, row []Value) []byte {
	b = append(b, 'U')
	b = binary.BigEndian.AppendUint32(b, relID)
	if old != nil {
		b = appendOldRow(b, *old)
	}
	return appendRow(b, 'N', row)
}

// AppendDelete encodes a deleted row.
func AppendDelete(b []byte, relID uint32, old OldRow) []byte {
	b = append(b, 'D')
	b = binary.BigEndian.AppendUint32(b, relID)
	return appendOldRow(b, old)
}

// AppendTruncate encodes a TRUNCATE of one or more tables; options is a combination of Cascade and RestartIdentity.
func AppendTruncate(b []byte, options uint8, relIDs ...uint32) []byte {
	b = append(b, 'T')
	b = binary.BigEndian.AppendUint32(b, uint32(len(relIDs)))
	b = append(b, options)
	for _, id := range relIDs {
		b = binary.BigEndian.AppendUint32(b, id)
	}
	return b
}

// AppendMessage encodes what pg_logical_emit_message wrote. lsn is the end of its record, as the server sends it.
func AppendMessage(b []byte, transactional bool, lsn uint64, prefix string, content []byte) []byte {
	b = append(b, 'M')
	b = appendBool(b, transactional)
	b = binary.BigEndian.AppendUint64(b, lsn)
	b = appendString(b, prefix)
	return appendBytes(b, content)
}

// AppendTime encodes t as Postgres sends times; digits below the microsecond are dropped. The replication protocol
// around pgoutput uses the same format.
func AppendTime(b []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(t.UnixMicro()-postgresEpoch))
}

func appendOldRow(b []byte, old OldRow) []byte {
	if old.Full {
		return appendRow(b, 'O', old.Values)
	}
	return appendRow(b, 'K', old.Values)
}

func appendRow(b []byte, kind byte, row []Value) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(row)))
	for _, v := range row {
		switch v.kind {
		case 't', 'b':
			b = append(b, v.kind)
			b = appendBytes(b, v.data)
		case 'u':
			b = append(b, 'u')
		default:
			b = append(b, 'n')
		}
	}
	return b
}

func appendBytes(b, data []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func appendString(b []byte, s string) []byte {
	b = append(b, s...)
	return append(b, 0)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}
