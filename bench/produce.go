package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/sink"
)

// produce is the subcommand "produce": records like those of a backlog into a topic, with the client of walferry's sink
// (sink/kafka.go) and nothing else, as eager as that client can be: nothing lingers, and as many requests are on their way
// as it likes. What it reaches is the limit on the way out.
func produce(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("produce", flag.ExitOnError)
	broker := flags.String("broker", "", "seed broker")
	topic := flags.String("topic", "", "topic")
	sample := flags.String("sample", "", "file of payloads, see writeSample")
	events := flags.Int64("events", 0, "records to produce")
	_ = flags.Parse(args) // it exits
	content, err := os.ReadFile(*sample)
	if err != nil {
		return err
	}
	payloads, err := parseSample(content)
	if err != nil {
		return fmt.Errorf("%s: %w", *sample, err)
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(*broker),
		kgo.DefaultProduceTopic(*topic),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
		sink.LZ4(),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(1021<<10),
		kgo.MaxBufferedBytes(16<<20),
		kgo.MaxBufferedRecords(32<<10),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	return produceAll(ctx, client, payloads, *events)
}

// produceAll produces and waits for all acknowledgements.
func produceAll(ctx context.Context, client *kgo.Client, payloads [][]byte, events int64) error {
	var failed atomic.Pointer[error]
	pool := sync.Pool{New: func() any { return &kgo.Record{Headers: make([]kgo.RecordHeader, 0, 2)} }}
	promise := func(r *kgo.Record, err error) {
		if err != nil {
			failed.CompareAndSwap(nil, &err)
			return
		}
		pool.Put(r)
	}
	for i := range events {
		r := pool.Get().(*kgo.Record)
		fillRecord(r, i, payloads[i%int64(len(payloads))])
		client.Produce(ctx, r, promise)
	}
	err := client.Flush(ctx)
	if first := failed.Load(); first != nil {
		err = errors.Join(err, *first)
	}
	return err
}

// fillRecord makes r a record like those of walferry.
func fillRecord(r *kgo.Record, i int64, payload []byte) {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	id := hex.AppendEncode(make([]byte, 0, 36), random[:])
	id = append(id[:32], "----"...) // as long as a UUID
	position := append(make([]byte, 0, 40), "7312345678901234567/1/0/"...)
	position = append(strconv.AppendInt(position, i*512, 16), "/0"...)
	*r = kgo.Record{
		Key: strconv.AppendInt(nil, i%keys, 10), Value: payload,
		Headers: append(r.Headers[:0], kgo.RecordHeader{Key: "id", Value: id}, kgo.RecordHeader{Key: "walferry-position", Value: position}),
	}
}

// writeSample writes payloads to a file, each with its length before it.
func writeSample(path string, payloads []string) error {
	var b strings.Builder
	for _, p := range payloads {
		b.Write(binary.AppendUvarint(nil, uint64(len(p))))
		b.WriteString(p)
	}
	return os.WriteFile(path, []byte(b.String()), 0o600)
}

// parseSample returns the payloads of such a file, slices of it.
func parseSample(b []byte) ([][]byte, error) {
	var payloads [][]byte
	for len(b) > 0 {
		length, n := binary.Uvarint(b)
		if n <= 0 || uint64(len(b)-n) < length {
			return nil, errors.New("the sample is cut off")
		}
		end := n + int(length)
		payloads = append(payloads, b[n:end:end])
		b = b[end:]
	}
	if len(payloads) == 0 {
		return nil, errors.New("the sample is empty")
	}
	return payloads, nil
}
