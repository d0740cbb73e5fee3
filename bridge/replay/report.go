package replay

import (
	"fmt"
	"time"

	"github.com/walferry/walferry/decode"
)

// Report is what was replayed.
type Report struct {
	ID           string
	Range        Range
	Transactions int64 // with events
	Events       int64
	Topics       map[string]int64 // events by topic
	Unpublished  int64            // that can never be published: dead letters
	First, Last  Place
	Complete     bool // it came to its end
}

// Place is where an event lies.
type Place struct {
	Position  decode.Position // zero: of a row in the table
	Committed time.Time       // by Postgres' clock; zero if it is not known
}

// announce says what is about to happen.
func (r *run) announce() {
	r.report.ID, r.report.Range, r.report.Topics = r.id, r.rng, map[string]int64{}
	text := fmt.Sprintf("replay %s: transactions whose commit record lies at or behind %s and before %s", r.id, r.rng.From, r.rng.To)
	if !r.rng.Since.IsZero() {
		text += ", committed not before " + r.rng.Since.Format(time.RFC3339)
	}
	if !r.rng.Until.IsZero() {
		text += ", committed not behind " + r.rng.Until.Format(time.RFC3339)
	}
	if r.Resume != "" {
		text += fmt.Sprintf("; it goes on at %s", r.stream.Start)
	}
	r.Say(text)
}

// progress tells how far it is.
func (r *run) progress() {
	if r.Progress == nil {
		return
	}
	r.mu.Lock()
	at, events := r.at, r.report.Events
	r.mu.Unlock()
	begin, end := r.rng.From.LSN, r.rng.To.LSN
	r.Progress(int64(min(max(at, begin), end)-begin), int64(end-begin), events)
}
