//go:build faults

package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

// delivery is what an independent reader knows of an event, but for its id.
type delivery struct {
	position, topic, key string
	value                [sha256.Size]byte // hash of it
}

func deliveryOf(r *kgo.Record) delivery {
	return delivery{header(r, "walferry-position"), r.Topic, string(r.Key), sha256.Sum256(r.Value)}
}

// truthSlot is the slot of the independent reader.
func (w *world) truthSlot() string { return w.prefix + "_truth" }

// watchWAL creates a slot beside the bridge's that keeps all from now on.
func (f *faultRun) watchWAL(w *world) {
	f.Helper()
	w.exec("SELECT pg_copy_logical_replication_slot($1, $2)", w.prefix, w.truthSlot())
	f.Cleanup(func() { w.dropSlot(w.truthSlot()) })
}

// compareWithWAL fails unless the first copies of all events are exactly what the WAL holds.
func (w *world) compareWithWAL(seen map[string]delivery) {
	w.t.Helper()
	found, wrong := 0, 0
	w.eachTruth(func(id string, want delivery) {
		found++
		if got := seen[id]; got != want {
			if wrong++; wrong <= 10 {
				w.t.Errorf("event %s in Kafka is %.200v, in the WAL %.200v", id, got, want)
			}
		}
	})
	if found != len(seen) || wrong > 0 || found == 0 {
		w.t.Errorf("%d events in the WAL, %d in Kafka, %d differ", found, len(seen), wrong)
	}
}

// eachTruth visits all events in the WAL, in their order. The reader shares no code with the bridge: SQL in place of a
// walsender, pglogrepl in place of our decoder.
func (w *world) eachTruth(visit func(id string, d delivery)) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.dsn()+"&client_encoding=UTF8")
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	reader := &walReader{
		prefix: w.prefix, system: w.query("SELECT system_identifier::text FROM pg_control_system()"),
		switched: w.switchpoint(), relations: map[uint32]*pglogrepl.RelationMessage{}, event: visit,
	}
	for more := true; more; {
		if more, err = reader.read(w.t.Context(), conn, w.truthSlot()); err != nil {
			w.t.Fatalf("read the WAL: %v", err)
		}
	}
}

// switchpoint returns where timeline 2 began, by the server's own history, 0 on timeline 1.
func (w *world) switchpoint() pglogrepl.LSN {
	w.t.Helper()
	return w.lsn(`SELECT coalesce(split_part(pg_read_file('pg_wal/00000002.history', 0, 1000, true), E'\t', 2), '0/0')`)
}

// walReader decodes what a slot's pgoutput sends about a ledger's events.
type walReader struct {
	prefix, system string
	switched       pglogrepl.LSN // to timeline 2, 0: never
	relations      map[uint32]*pglogrepl.RelationMessage
	commit         pglogrepl.LSN
	index          int
	event          func(id string, d delivery)
}

// read consumes some transactions of the slot, and reports whether there may be more.
func (r *walReader) read(ctx context.Context, conn *pgx.Conn, slot string) (more bool, err error) {
	rows, _ := conn.Query(ctx, `SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, 20000,
		'proto_version', '1', 'publication_names', 'walferry', 'messages', 'true')`, slot)
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&data}, func() error {
		more = true
		return r.message(data)
	})
	return more, err
}

func (r *walReader) message(data []byte) error {
	m, err := pglogrepl.Parse(data)
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *pglogrepl.BeginMessage:
		r.commit, r.index = m.FinalLSN, 0
	case *pglogrepl.RelationMessage:
		r.relations[m.RelationID] = m
	case *pglogrepl.InsertMessage:
		relation := r.relations[m.RelationID]
		if relation == nil {
			return errors.New("a row of an unknown table")
		}
		if relation.RelationName != "outbox" {
			return nil
		}
		columns := map[string]string{}
		for i, c := range m.Tuple.Columns {
			columns[relation.Columns[i].Name] = string(c.Data)
		}
		r.emit(columns["id"], columns["aggregatetype"], columns["aggregateid"], []byte(columns["payload"]))
	case *pglogrepl.LogicalDecodingMessage:
		if m.Prefix != "outbox" || !m.Transactional {
			return nil
		}
		var e struct {
			ID, AggregateType, AggregateID string
			Payload                        json.RawMessage
		}
		if err := json.Unmarshal(m.Content, &e); err != nil {
			return err
		}
		value := []byte(e.Payload)
		var text string
		if bytes.HasPrefix(value, []byte(`"`)) && json.Unmarshal(value, &text) == nil {
			value = []byte(text)
		}
		r.emit(e.ID, e.AggregateType, e.AggregateID, value)
	}
	return nil
}

func (r *walReader) emit(id, kind, key string, value []byte) {
	timeline := 1
	if r.switched != 0 && r.commit >= r.switched {
		timeline = 2
	}
	r.event(id, delivery{fmt.Sprintf("%s/%d/%s/%d", r.system, timeline, r.commit, r.index), r.prefix + "." + kind, key, sha256.Sum256(value)})
	r.index++
}
