package recovery

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"sort"
)

// missing are the candidates that no topic has, by their identities. Not by how many came before them: rows that somebody deletes
// meanwhile come in another order the second time, for that takes the number of the command that wrote them (cmin and cmax share a
// field). They lie in a file, sorted, which has no name: memory holds one of each block.
type missing struct {
	n int64 // candidates, also those of one identity

	file   *os.File
	out    *bufio.Writer
	first  [][identityBytes]byte // of each block
	last   []byte
	stored int    // identities
	block  []byte // for has
}

// blockIdentities is how many one look reads.
const blockIdentities = 256

func newMissing(dir string) (*missing, error) {
	file, err := os.CreateTemp(dir, "walferry-recover-")
	if err != nil {
		return nil, fmt.Errorf("note what is missing: %w", err)
	}
	_ = os.Remove(file.Name()) // where that fails it is left behind
	return &missing{file: file, out: bufio.NewWriter(file), block: make([]byte, blockIdentities*identityBytes)}, nil
}

// add takes the next one; they come sorted.
func (m *missing) add(id []byte) error {
	m.n++
	if bytes.Equal(id, m.last) {
		return nil
	}
	m.last = append(m.last[:0], id...)
	if m.stored%blockIdentities == 0 {
		m.first = append(m.first, [identityBytes]byte(id))
	}
	m.stored++
	if _, err := m.out.Write(id); err != nil {
		return fmt.Errorf("note what is missing: %w", err)
	}
	return nil
}

// end comes behind the last add.
func (m *missing) end() error {
	if err := m.out.Flush(); err != nil {
		return fmt.Errorf("note what is missing: %w", err)
	}
	return nil
}

// has reports whether an identity is missing.
func (m *missing) has(id []byte) (bool, error) {
	at := sort.Search(len(m.first), func(i int) bool { return bytes.Compare(m.first[i][:], id) > 0 }) - 1
	if at < 0 {
		return false, nil
	}
	n, err := m.file.ReadAt(m.block, int64(at)*int64(len(m.block)))
	if err != nil && err != io.EOF {
		return false, fmt.Errorf("look up what is missing: %w", err)
	}
	of := func(i int) []byte { return m.block[i*identityBytes:][:identityBytes] }
	n /= identityBytes
	i := sort.Search(n, func(i int) bool { return bytes.Compare(of(i), id) >= 0 })
	return i < n && bytes.Equal(of(i), id), nil
}

func (m *missing) close() { _ = m.file.Close() } // nothing of it is of use any more
