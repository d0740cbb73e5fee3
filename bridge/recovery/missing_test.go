package recovery

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestMissingKnowsWhatWasAdded(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 2, blockIdentities - 1, blockIdentities, blockIdentities + 1, 3*blockIdentities + 7} {
		m, err := newMissing(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		var ids [][]byte
		others := map[string]bool{}
		for range n {
			id := make([]byte, identityBytes)
			for i := range id {
				id[i] = byte(random.Uint32())
			}
			ids = append(ids, id, id) // two rows of one identity
			other := bytes.Clone(id)
			other[identityBytes-1]++
			others[string(other)] = true
		}
		slices.SortFunc(ids, bytes.Compare)
		for _, id := range ids {
			if err := m.add(id); err != nil {
				t.Fatal(err)
			}
			delete(others, string(id))
		}
		if err := m.end(); err != nil || m.n != int64(len(ids)) {
			t.Errorf("%d candidates, %v, want %d", m.n, err, len(ids))
		}
		for _, id := range ids {
			if is, err := m.has(id); !is || err != nil {
				t.Errorf("of %d: %x is not missing, %v", n, id, err)
			}
		}
		for other := range others {
			if is, err := m.has([]byte(other)); is || err != nil {
				t.Errorf("of %d: %x is missing, %v", n, other, err)
			}
		}
		m.close()
	}
}
