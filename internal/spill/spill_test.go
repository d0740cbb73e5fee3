package spill

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// sorted returns all records of a Sorter, copied.
func sorted(t *testing.T, s *Sorter) [][]byte {
	t.Helper()
	it, err := s.Sorted()
	if err != nil {
		t.Fatal(err)
	}
	var records [][]byte
	for {
		record, err := it.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, bytes.Clone(record))
	}
	if _, err := it.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("Next at the end returns %v, want io.EOF", err)
	}
	return records
}

func TestSorted(t *testing.T) {
	for _, width := range []int{1, 3, 8, 9, 16, 64} {
		for _, memory := range []int{0, 1 << 10, 10 << 10, 1 << 20} {
			for _, n := range []int{0, 1, 63, 64, 65, 128, 1000, 5000} {
				t.Run(fmt.Sprintf("%d of %d bytes in %d", n, width, memory), func(t *testing.T) {
					dir := t.TempDir()
					s := New(dir, width, memory)
					defer s.Close()
					rng := rand.New(rand.NewPCG(uint64(width), uint64(memory+n)))
					want, record := make([][]byte, 0, n), make([]byte, width)
					for range n {
						for i := range record {
							record[i] = byte(rng.IntN(1 + rng.IntN(256))) // with many that are equal
						}
						if rng.IntN(2) == 0 { // or differ behind the first eight only
							clear(record[:min(8, width)])
						}
						want = append(want, bytes.Clone(record))
						if err := s.Add(record); err != nil {
							t.Fatal(err)
						}
					}
					slices.SortFunc(want, bytes.Compare)
					if got := sorted(t, s); !slices.EqualFunc(got, want, bytes.Equal) {
						t.Errorf("%d records, want %d, or not in their order", len(got), n)
					}
					fits := n*(width+placeBytes) <= max(memory, leastRecords*(width+placeBytes))
					if (s.file == nil) != fits {
						t.Errorf("a file was written: %t, the memory suffices: %t", s.file != nil, fits)
					}
					if err := s.Close(); err != nil {
						t.Error(err)
					}
					if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
						t.Errorf("Close leaves %q", left)
					}
				})
			}
		}
	}
}

func TestMoreRunsThanRecordsInMemory(t *testing.T) {
	const n = leastRecords * leastRecords * 3
	s := New(t.TempDir(), 4, 0)
	defer s.Close()
	for i := range n {
		if err := s.Add(binary.BigEndian.AppendUint32(nil, uint32((i*7919)%n))); err != nil {
			t.Fatal(err)
		}
	}
	for i, record := range sorted(t, s) {
		if got := binary.BigEndian.Uint32(record); got != uint32(i) {
			t.Fatalf("record %d is %d", i, got)
		}
	}
}

func TestNothingIsLeftOfAFile(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, 8, 0)
	for i := range uint64(1000) {
		if err := s.Add(binary.BigEndian.AppendUint64(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); s.file == nil || len(left) != 0 {
		t.Errorf("the open file can be seen, as kill -9 would leave it: %q", left)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

func TestErrors(t *testing.T) {
	full := func(s *Sorter) error {
		for i := range uint64(20_000) {
			if err := s.Add(binary.BigEndian.AppendUint64(nil, i)); err != nil {
				return err
			}
		}
		return nil
	}
	s := New(filepath.Join(t.TempDir(), "absent"), 8, 0)
	if err := full(s); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the directory Add returns %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s = New(t.TempDir(), 8, 0)
	if err := full(s); err != nil {
		t.Fatal(err)
	}
	it, err := s.Sorted()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.file.Truncate(600); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = it.Next()
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		t.Errorf("of a file that was cut Next returns %v", err)
	}
	s.Close()
	s = New(t.TempDir(), 8, 0)
	if err := full(s); err != nil {
		t.Fatal(err)
	}
	s.file.Close()
	if err := full(s); !errors.Is(err, os.ErrClosed) {
		t.Errorf("of a file that cannot be written Add returns %v", err)
	}
	if err := s.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Close returns %v", err)
	}
}

func BenchmarkSorted(b *testing.B) {
	for b.Loop() {
		s := New(b.TempDir(), 64, 16<<20)
		rng, record := rand.New(rand.NewPCG(1, 2)), make([]byte, 64)
		for range 1_000_000 {
			for i := 0; i < len(record); i += 8 {
				binary.LittleEndian.PutUint64(record[i:], rng.Uint64())
			}
			if err := s.Add(record); err != nil {
				b.Fatal(err)
			}
		}
		it, err := s.Sorted()
		for err == nil {
			_, err = it.Next()
		}
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		s.Close()
	}
}
