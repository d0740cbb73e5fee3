package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/internal/demo"
)

// recordLine shows a record.
func recordLine(r *kgo.Record) string {
	value := string(r.Value)
	if r.Value == nil {
		value = "(tombstone)"
	}
	return fmt.Sprintf("%s[%d]@%d key=%s id=%s walferry-position=%s %s",
		r.Topic, r.Partition, r.Offset, r.Key, demo.Header(r, "id"), demo.Header(r, "walferry-position"), value)
}

// report shows the first events of every kind that must not be.
func (r *run) report(p demo.Proof) {
	for _, kind := range []struct {
		name   string
		events []demo.Event
	}{
		{"lost", p.Lost},
		{"duplicated", p.Duplicated},
		{"out of order", p.OutOfOrder},
		{"delivered, but never committed", p.Phantoms},
	} {
		for i, e := range kind.events {
			if i == samples {
				r.screen.say("... and %d more", len(kind.events)-i)
				break
			}
			r.screen.say("%s: %s version %d, event %s", kind.name, e.Order, e.Version, e.ID)
		}
	}
	if !p.Holds() && !r.keep {
		r.screen.say("run it again with --keep to look at what it leaves behind")
	}
}

// sayKept says where to find what --keep has kept.
func (p *place) sayKept(say func(string, ...any)) {
	say("kept      tables %s.orders and %[1]s.outbox, publication %s, slot %s", p.schema, p.publication, p.slot)
	if p.server != nil {
		say("          in the server that this starts again: %s", p.server.Restart())
		say("          its connection string is in %s", filepath.Join(p.server.Dir, "dsn"))
	}
	if p.cluster == nil {
		say("          and in Kafka topic %s", p.topic())
	}
}

// explain says after a failure what there is to look at.
func (r *run) explain(ctx context.Context) {
	if ctx.Err() != nil {
		return // somebody stopped it
	}
	status := r.bridge.Status()
	r.screen.say("look at   bridge: %s, %d events in flight, confirmed up to %s %s", status.State, status.Inflight, status.ConfirmedLSN, status.LastError)
	if r.server == nil {
		r.screen.say("look at   Postgres: its log, and slot %s in pg_replication_slots (run with --keep)", r.slot)
		return
	}
	r.screen.say("look at   Postgres, whose log ends with:\n%s", r.server.Log())
}
