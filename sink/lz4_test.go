package sink

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Whatever the batch, a consumer gets it back, and the frame begins as those of Kafka's Java client
// (Lz4BlockOutputStream): independent blocks of 64 KiB, no checksum of the contents.
func TestLZ4(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300<<10)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	text := bytes.Repeat([]byte(`{"order": 42, "total": "99.50"}`), 30_000)
	c := &lz4Compressor{}
	var dst bytes.Buffer
	for _, src := range [][]byte{{}, []byte("x"), text[:64<<10], text[:64<<10+1], text, noise, append(text, noise...)} {
		dst.Reset()
		compressed, codec := c.Compress(&dst, src)
		if want := []byte("\x04\x22\x4d\x18\x60\x40\x82"); codec != kgo.CodecLz4 || !bytes.HasPrefix(compressed, want) {
			t.Fatalf("%d bytes: codec %v, frame %x, want it to begin with %x", len(src), codec, compressed[:min(7, len(compressed))], want)
		}
		got, err := kgo.DefaultDecompressor().Decompress(compressed, codec)
		if err != nil || !bytes.Equal(got, src) {
			t.Fatalf("%d bytes come back as %d: %v", len(src), len(got), err)
		}
	}
}
