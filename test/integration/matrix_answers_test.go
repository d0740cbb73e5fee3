//go:build faults

package integration

import (
	"context"
	wire "encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/internal/refusal"
)

func readFull(conn net.Conn, b []byte) (int, error) { return io.ReadFull(conn, b) }

// answeredLink is one connection through answers.
type answeredLink struct {
	answers        *answers
	client, server net.Conn

	mu      sync.Mutex // guards the following, and writing to client
	idle    *sync.Cond // nothing is outstanding
	open    int        // requests without a response
	changes map[uint32]change
	ended   bool
}

// change is what becomes of the response to a request.
type change struct {
	request *kmsg.ProduceRequest
	code    int16
}

func (l *answeredLink) requests() {
	for {
		frame, err := readFrame(l.client)
		if err != nil {
			return
		}
		const produce = 0
		if wire.BigEndian.Uint16(frame[4:]) == produce {
			request, correlation, err := produceRequest(frame)
			if err != nil {
				return
			}
			code, after := l.answers.take()
			if err := l.answers.note(request, code, after); err != nil {
				return
			}
			if code != 0 {
				if !after {
					if l.answer(correlation, change{request, code}) != nil {
						return
					}
					continue
				}
				l.mu.Lock()
				l.changes[correlation] = change{request, code}
				l.mu.Unlock()
			}
		}
		l.mu.Lock()
		l.open++
		l.mu.Unlock()
		if _, err := l.server.Write(frame); err != nil {
			return
		}
	}
}

func (l *answeredLink) responses() {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ended = true
		l.idle.Broadcast()
	}()
	for {
		frame, err := readFrame(l.server)
		if err != nil {
			return
		}
		correlation := wire.BigEndian.Uint32(frame[4:])
		l.mu.Lock()
		if c, ok := l.changes[correlation]; ok {
			delete(l.changes, correlation)
			frame = produceResponse(correlation, c)
		}
		_, err = l.client.Write(frame)
		if l.open--; l.open == 0 {
			l.idle.Broadcast()
		}
		l.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// note writes down a request and its answer.
func (a *answers) note(request *kmsg.ProduceRequest, code int16, after bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer := kerr.ErrorForCode(code)
	refused := answer != nil && (!kerr.IsRetriable(answer) || errors.Is(answer, kerr.CorruptMessage))
	for _, t := range request.Topics {
		for _, p := range t.Partitions {
			var batch kmsg.RecordBatch
			if err := batch.ReadFrom(p.Records); err != nil {
				return err
			}
			records, err := kfake.BatchRecords(batch)
			if err != nil {
				return err
			}
			from := fmt.Sprintf("producer %d to %s%x/%d", batch.ProducerID, t.Topic, t.TopicID, p.Partition)
			line := fmt.Sprintf("%s: epoch %d, sequence %d, answer %v, after the write %t:", from, batch.ProducerEpoch, batch.FirstSequence, answer, after)
			for _, r := range records {
				for _, h := range r.Headers {
					switch {
					case h.Key == "walferry-position":
						line += " " + string(h.Value)
					case h.Key == "id" && a.refused[from]:
						a.overtaking[string(h.Value)] = true
					}
				}
			}
			a.trace = append(a.trace, line)
			if refused {
				a.refused[from] = true
			}
		}
	}
	return nil
}

// answer answers a request in the broker's stead, when those before it are answered.
func (l *answeredLink) answer(correlation uint32, c change) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.open > 0 && !l.ended {
		l.idle.Wait()
	}
	if l.ended {
		return io.EOF
	}
	_, err := l.client.Write(produceResponse(correlation, c))
	return err
}

// produceRequest reads a request: length, key, version, correlation id, client id, tags, body.
func produceRequest(frame []byte) (*kmsg.ProduceRequest, uint32, error) {
	request := kmsg.NewPtrProduceRequest()
	request.SetVersion(int16(wire.BigEndian.Uint16(frame[6:])))
	correlation := wire.BigEndian.Uint32(frame[8:])
	body := frame[14:]
	if n := int16(wire.BigEndian.Uint16(frame[12:])); n > 0 {
		body = body[n:]
	}
	if request.IsFlexible() {
		body = body[1:] // no tags
	}
	return request, correlation, request.ReadFrom(body)
}

// produceResponse says that every partition of a request has failed.
func produceResponse(correlation uint32, c change) []byte {
	response := refusal.Of(c.request, c.code, -1)
	frame := wire.BigEndian.AppendUint32(make([]byte, 4), correlation)
	if response.IsFlexible() {
		frame = append(frame, 0) // no tags
	}
	frame = response.AppendTo(frame)
	wire.BigEndian.PutUint32(frame, uint32(len(frame)-4))
	return frame
}

// errorCodes returns the codes of all errors that Kafka has.
func errorCodes() []int16 {
	codes := []int16{kerr.UnknownServerError.Code}
	for code := int16(1); !errors.Is(kerr.ErrorForCode(code), kerr.UnknownServerError); code++ {
		codes = append(codes, code)
	}
	return codes
}

// everyErrorOfKafka answers produce requests with each error, once in the broker's stead and once behind its back.
func everyErrorOfKafka(f *faultRun) {
	w := newWorld(f.T, newest(f.T), nil)
	a := f.newAnswers(w.cfg.Kafka.Brokers[0])
	w.dialKafka = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, a.listener.Addr().String())
	}
	l := f.load(w)
	l.stop() // transactions come one by one
	f.random = newSeed(f.T)
	conn, err := pgx.Connect(f.Context(), w.dsn())
	if err != nil {
		f.Fatal(err)
	}
	hand := &writer{ledger: l.ledger, conn: conn, random: f.random, keys: []int{0, 1, 2, 3, 4, 5, 6, 7}}
	r := w.run("")
	r.awaitState(bridge.Streaming)
	codes, stops := errorCodes(), map[bridge.Class]int{}
	for _, code := range codes {
		for _, after := range []bool{false, true} {
			if code == kerr.DuplicateSequenceNumber.Code && !after {
				continue // a broker that says so has the records: the client takes it for success
			}
			before := a.changed()
			a.arm(code, after)
			for range 3 {
				hand.transaction(f.Context())
			}
			await(f.T, fmt.Sprintf("answer %d", code), func() error {
				if a.changed() == before {
					hand.transaction(f.Context()) // the ones before may have been rolled back
					return errors.New("nothing was published")
				}
				return nil
			})
			if stopped := w.caughtUpOrStopped(r); stopped != nil {
				stops[stopped.Class]++
				if stopped.Hint == "" {
					f.Errorf("code %d: no hint: %v", code, stopped)
				}
				r = w.run("")
				w.awaitCaughtUp()
			}
		}
	}
	f.note("%d codes, each before and after the write: stopped %v", len(codes), stops)
	l.overtaking = a.overtaking
	defer func() {
		if f.Failed() {
			f.Log(strings.Join(a.trace, "\n"))
		}
	}()
	f.note("%d of %d events behind a refusal came early", f.verifyBut(l, "").early, len(a.overtaking))
	if f.duplicates == 0 && !f.exactlyOnce() {
		f.Error("no duplicates: no answer came behind the broker's back")
	}
}

// caughtUpOrStopped waits until a bridge has confirmed everything so far, or has stopped, and returns why.
func (w *world) caughtUpOrStopped(r *running) *bridge.Error {
	w.t.Helper()
	end := w.lsn("SELECT $1", w.walEnd())
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for w.confirmed() < end {
		select {
		case <-r.done:
			return asError(w.t, r.err)
		case <-deadline:
			w.t.Fatalf("neither caught up nor stopped: %+v", r.bridge.Status())
		case <-tick.C:
		}
	}
	return nil
}
