package recovery

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/internal/spill"
	"github.com/walferry/walferry/internal/topics"
	"github.com/walferry/walferry/sink"
	"github.com/walferry/walferry/table"
)

const (
	// identityBytes is the width of an identity. Of 10^9 different ones two are the same with a probability of 10^-21.
	identityBytes = 16
	// sorterMemory is what each of two sorters may have, in bytes.
	sorterMemory = 8 << 20
)

// identity stands for an event among those of a topic: by its key and its id, which two tables may give out alike.
func identity(topic string, key, id []byte) []byte {
	h := sha256.New()
	var length [8]byte
	for _, part := range [][]byte{[]byte(topic), key, id} {
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		h.Write(part)
	}
	return h.Sum(nil)[:identityBytes]
}

// find compares the candidates with what the topics hold.
func (r *recovery) find(ctx context.Context) (*missing, error) {
	candidates, published := spill.New(r.Dir, identityBytes, sorterMemory), spill.New(r.Dir, identityBytes, sorterMemory)
	defer func() { _, _ = candidates.Close(), published.Close() }() // what they have is of no use any more
	reader, err := r.reader(ctx)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	dead, err := r.deadLetters(ctx, reader)
	if err != nil {
		return nil, err
	}
	names, err := r.readCandidates(ctx, candidates, dead)
	if err != nil {
		return nil, err
	}
	err = r.read(ctx, reader, names, r.bound.from, func(rec *kgo.Record) error {
		if id, ok := headerOf(rec, "id"); ok {
			return published.Add(identity(rec.Topic, rec.Key, id))
		}
		return nil // somebody else's
	})
	if err != nil {
		return nil, err
	}
	return r.join(candidates, published)
}

// silence is how long the brokers may send nothing although they have something.
const silence = time.Minute

// reader returns a reader of topics that waits for transactions which are open.
func (r *recovery) reader(ctx context.Context) (*topics.Reader, error) {
	opts, err := r.KafkaClient()
	if err != nil {
		return nil, err
	}
	return topics.New(ctx, opts, topics.Options{Timeout: silence, Waits: func(topic string, partition int32, offset int64) {
		r.tell("waits for a transaction that is open in partition %d of topic %s, from offset %d on; if nobody ends it: kafka-transactions.sh --bootstrap-server <broker> find-hanging --topic %[2]s", partition, topic, offset)
	}})
}

// read visits what those of the topics that exist hold now, from a time on or, if it is zero, from the beginning.
func (r *recovery) read(ctx context.Context, reader *topics.Reader, names []string, from time.Time, visit func(*kgo.Record) error) error {
	var exist []string
	for _, name := range names {
		n, err := reader.Partitions(ctx, name)
		if err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
		if n > 0 {
			exist = append(exist, name)
		}
	}
	return reader.Read(ctx, exist, from, visit, func(done, total int64) { r.progress(stageTopics, done, total) })
}

// readCandidates adds the candidates to a sorter, and returns where they go. Before anything is changed it
// fails with a row that can never be published: a bridge halts before such a one as well.
func (r *recovery) readCandidates(ctx context.Context, to *spill.Sorter, dead deadLetters) (names []string, err error) {
	preview := sink.NewPreview(r.SinkConfig())
	seen, broken, others, total := map[string]bool{}, error(nil), 0, int64(0)
	for i, t := range r.tables {
		q := r.query(i)
		refuse := func(e *table.RowError) error {
			switch {
			case dead.has(t, e.ID):
			case broken == nil:
				broken = e
			default:
				others++
			}
			total++
			return nil
		}
		q.Broken = refuse
		if err := r.snapshot.Read(ctx, q, func(row *table.Row) error {
			rec, err := preview.Record(&row.Event)
			if e, ok := errors.AsType[*sink.PoisonError](err); ok {
				return refuse(row.Refuse(t, "", e.Why()))
			}
			if err == nil && !dead.has(t, string(row.Event.ID)) {
				seen[rec.Topic] = true
				err = to.Add(identity(rec.Topic, rec.Key, row.Event.ID))
			}
			total++
			r.progress(stageCandidates, total, r.report.Candidates)
			return err
		}); err != nil {
			return nil, err
		}
	}
	if others > 0 {
		broken = fmt.Errorf("%w (and %d more)", broken, others)
	}
	for topic := range seen {
		names = append(names, topic)
	}
	slices.Sort(names)
	return names, broken
}

// deadLetters are events that were moved out of the way, by table and id.
type deadLetters map[string]bool

func (d deadLetters) has(t decode.Table, id string) bool {
	return id != "" && d[t.Schema+"."+t.Name+" "+id]
}

// deadLetters reads those of the database. People make them one by one: there are few.
func (r *recovery) deadLetters(ctx context.Context, reader *topics.Reader) (deadLetters, error) {
	dead := deadLetters{}
	var names []string
	if topic := r.Kafka.DeadLetterTopic; topic != "" {
		names = append(names, topic)
	}
	return dead, r.read(ctx, reader, names, time.Time{}, func(rec *kgo.Record) error {
		database, _ := headerOf(rec, "walferry-database")
		where, _ := headerOf(rec, "walferry-where")
		if id, ok := headerOf(rec, "walferry-id"); ok && string(database) == r.Database.Name {
			dead[string(where)+" "+string(id)] = true
		}
		return nil
	})
}

func headerOf(r *kgo.Record, key string) (value []byte, ok bool) {
	for _, h := range r.Headers {
		if h.Key == key {
			return h.Value, true
		}
	}
	return nil, false
}

// join returns the candidates of which no identity is among those that are published. Of candidates with one identity, which
// consumers could not tell apart either, all count as published or none.
func (r *recovery) join(candidates, published *spill.Sorter) (_ *missing, err error) {
	m, err := newMissing(r.Dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	left, err := candidates.Sorted()
	if err != nil {
		return nil, err
	}
	right, err := published.Sorted()
	if err != nil {
		return nil, err
	}
	other, otherErr := right.Next()
	for {
		candidate, err := left.Next()
		if errors.Is(err, io.EOF) {
			return m, m.end()
		}
		if err != nil {
			return nil, err
		}
		for otherErr == nil && bytes.Compare(other, candidate) < 0 {
			other, otherErr = right.Next()
		}
		if otherErr != nil && !errors.Is(otherErr, io.EOF) {
			return nil, otherErr
		}
		if otherErr != nil || !bytes.Equal(other, candidate) {
			if err := m.add(candidate); err != nil {
				return nil, err
			}
		}
	}
}
