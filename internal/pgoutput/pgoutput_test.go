package pgoutput_test

import (
	"bytes"
	"encoding/hex"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/walferry/walferry/internal/pgoutput"
)

func commitTime() time.Time { return time.Date(2026, 3, 8, 13, 0, 0, 123_456_000, time.UTC) }

// TestParse has an independent decoder read back every message and compares the fields that were put in.
func TestParse(t *testing.T) {
	local := commitTime().Local() // pglogrepl returns local times
	row := []pgoutput.Value{
		pgoutput.Text("42"), pgoutput.Text([]byte{}), pgoutput.Null(),
		{},
		pgoutput.UnchangedToast(), pgoutput.Binary([]byte{0, 1, 255}),
	}
	parsedRow := []*pglogrepl.TupleDataColumn{
		{DataType: 't', Length: 2, Data: []byte("42")},
		{DataType: 't', Data: []byte{}},
		{DataType: 'n'},
		{DataType: 'n'},
		{DataType: 'u'},
		{DataType: 'b', Length: 3, Data: []byte{0, 1, 255}},
	}
	key := []pgoutput.Value{pgoutput.Text("41"), pgoutput.Null()}
	parsedKey := []*pglogrepl.TupleDataColumn{{DataType: 't', Length: 2, Data: []byte("41")}, {DataType: 'n'}}

	tests := []struct {
		name string
		msg  []byte
		want pglogrepl.Message
	}{
		{
			"begin", pgoutput.AppendBegin(nil, 0x1_5704C0, commitTime(), 4_000_000_000),
			&pglogrepl.BeginMessage{FinalLSN: 0x1_5704C0, CommitTime: local, Xid: 4_000_000_000},
		},
		{
			"commit", pgoutput.AppendCommit(nil, 7, math.MaxUint64-8, math.MaxUint64, commitTime()),
			&pglogrepl.CommitMessage{
				Flags: 7, CommitLSN: math.MaxUint64 - 8, TransactionEndLSN: math.MaxUint64, CommitTime: local,
			},
		},
		{
			"origin", pgoutput.AppendOrigin(nil, 9, "upstream"),
			&pglogrepl.OriginMessage{CommitLSN: 9, Name: "upstream"},
		},
		{
			"relation",
			pgoutput.AppendRelation(nil, pgoutput.Relation{
				ID: 16385, Namespace: "public", Name: "outbox", ReplicaIdentity: 'd',
				Columns: []pgoutput.Column{
					{Key: true, Name: "id", TypeOID: 2950, TypeMod: -1}, {Name: "topic", TypeOID: 1043, TypeMod: 259},
				},
			}),
			&pglogrepl.RelationMessage{
				RelationID: 16385, Namespace: "public", RelationName: "outbox", ReplicaIdentity: 'd', ColumnNum: 2,
				Columns: []*pglogrepl.RelationMessageColumn{
					{Flags: 1, Name: "id", DataType: 2950, TypeModifier: -1},
					{Flags: 0, Name: "topic", DataType: 1043, TypeModifier: 259},
				},
			},
		},
		{
			"relation without columns",
			pgoutput.AppendRelation(nil, pgoutput.Relation{ID: 1, Name: "empty", ReplicaIdentity: 'n'}),
			&pglogrepl.RelationMessage{RelationID: 1, RelationName: "empty", ReplicaIdentity: 'n'},
		},
		{
			"type", pgoutput.AppendType(nil, 16401, "public", "mood"),
			&pglogrepl.TypeMessage{DataType: 16401, Namespace: "public", Name: "mood"},
		},
		{
			"insert", pgoutput.AppendInsert(nil, 16385, row),
			&pglogrepl.InsertMessage{
				RelationID: 16385, Tuple: &pglogrepl.TupleData{ColumnNum: 6, Columns: parsedRow},
			},
		},
		{
			"update", pgoutput.AppendUpdate(nil, 16385, nil, row),
			&pglogrepl.UpdateMessage{
				RelationID: 16385, NewTuple: &pglogrepl.TupleData{ColumnNum: 6, Columns: parsedRow},
			},
		},
		{
			"update of a key", pgoutput.AppendUpdate(nil, 16385, &pgoutput.OldRow{Values: key}, row),
			&pglogrepl.UpdateMessage{
				RelationID: 16385, OldTupleType: 'K',
				OldTuple: &pglogrepl.TupleData{ColumnNum: 2, Columns: parsedKey},
				NewTuple: &pglogrepl.TupleData{ColumnNum: 6, Columns: parsedRow},
			},
		},
		{
			"delete by key", pgoutput.AppendDelete(nil, 16385, pgoutput.OldRow{Values: key}),
			&pglogrepl.DeleteMessage{
				RelationID: 16385, OldTupleType: 'K', OldTuple: &pglogrepl.TupleData{ColumnNum: 2, Columns: parsedKey},
			},
		},
		{
			"delete of a full row", pgoutput.AppendDelete(nil, 16385, pgoutput.OldRow{Full: true, Values: key}),
			&pglogrepl.DeleteMessage{
				RelationID: 16385, OldTupleType: 'O', OldTuple: &pglogrepl.TupleData{ColumnNum: 2, Columns: parsedKey},
			},
		},
		{
			"truncate", pgoutput.AppendTruncate(nil, pgoutput.Cascade|pgoutput.RestartIdentity, 16385, 16390),
			&pglogrepl.TruncateMessage{
				RelationNum: 2, Option: pglogrepl.TruncateOptionCascade | pglogrepl.TruncateOptionRestartIdentity,
				RelationIDs: []uint32{16385, 16390},
			},
		},
		{
			"transactional message", pgoutput.AppendMessage(nil, true, 77, "walferry", []byte(`{"a":1}`)),
			&pglogrepl.LogicalDecodingMessage{
				LSN: 77, Transactional: true, Prefix: "walferry", Content: []byte(`{"a":1}`),
			},
		},
		{
			"empty message", pgoutput.AppendMessage(nil, false, 78, "", nil),
			&pglogrepl.LogicalDecodingMessage{LSN: 78, Content: []byte{}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := pglogrepl.Parse(tt.msg)
			if err != nil {
				t.Fatalf("Parse(%x): %v", tt.msg, err)
			}
			tt.want.(interface{ SetType(pglogrepl.MessageType) }).SetType(pglogrepl.MessageType(tt.msg[0]))
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("Parse(%x)\n got %+v\nwant %+v", tt.msg, got, tt.want)
			}
		})
	}
}

// TestBytes pins one message byte by byte: a decoder with the same misunderstanding could not tell.
func TestBytes(t *testing.T) {
	prefix := []byte("kept")
	got := pgoutput.AppendInsert(bytes.Clone(prefix), 0x4001, []pgoutput.Value{pgoutput.Text("hi"), pgoutput.Null()})
	want, err := hex.DecodeString("6b657074" + "49" + "00004001" + "4e" + "0002" + "74" + "00000002" + "6869" + "6e")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("AppendInsert\n got %x\nwant %x", got, want)
	}
}

func TestAppendTime(t *testing.T) {
	tests := []struct {
		name string
		time time.Time
		want string
	}{
		{"epoch", time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), "0000000000000000"},
		{"one microsecond before", time.Date(1999, 12, 31, 23, 59, 59, 999_999_000, time.UTC), "ffffffffffffffff"},
		{"digits below the microsecond", time.Date(2000, 1, 1, 0, 0, 0, 1_999, time.UTC), "0000000000000001"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := hex.EncodeToString(pgoutput.AppendTime(nil, tt.time)); got != tt.want {
				t.Errorf("AppendTime(%v): got %s, want %s", tt.time, got, tt.want)
			}
		})
	}
}
