package sink

import (
	"bytes"
	"sync"

	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kgo"
)

// LZ4 returns the option that compresses as kgo.Lz4Compression does, but in blocks of 64 KiB and without a
// checksum of the contents, as Kafka's Java client does. kgo's blocks of 4 MiB need buffers of twice that for each
// writer here, and of 4 MiB at every consumer. A batch has a checksum of its own.
func LZ4() kgo.Opt { return kgo.WithCompressor(&lz4Compressor{}) }

type lz4Compressor struct {
	writers sync.Pool // of *lz4.Writer
}

// Compress implements kgo.Compressor.
func (c *lz4Compressor) Compress(dst *bytes.Buffer, src []byte, _ ...kgo.CompressFlag) ([]byte, kgo.CompressionCodecType) {
	w, _ := c.writers.Get().(*lz4.Writer)
	if w == nil {
		w = lz4.NewWriter(nil)
		if err := w.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false)); err != nil {
			return nil, kgo.CodecError
		}
	}
	defer c.writers.Put(w)
	w.Reset(dst)
	if _, err := w.Write(src); err != nil {
		return nil, kgo.CodecError
	}
	if err := w.Close(); err != nil {
		return nil, kgo.CodecError
	}
	return dst.Bytes(), kgo.CodecLz4
}
