package sink

import "testing"

// However large the events are that the records have carried, by turns, their buffers have no more than the bound when
// they are back, and those of small events stay.
func TestBuffersOfRecordsAreBounded(t *testing.T) {
	const keep = 1 << 20
	p := &records{keep: keep}
	for round := range 50 {
		var out []*record
		for i := range 1000 {
			r := p.get()
			if r == nil {
				r = &record{}
			}
			size := 400
			if i%50 == round {
				size = 60 << 10
			}
			if cap(r.bytes) < size {
				r.bytes = make([]byte, size)
			}
			out = append(out, r)
		}
		for _, r := range out {
			p.put(r)
		}
		large, without := 0, 0
		for _, r := range p.free {
			if size := cap(r.bytes); size > smallBuffer {
				large += size
			} else if size == 0 {
				without++
			}
		}
		if large > keep || large < keep/2 || p.kept != large {
			t.Fatalf("round %d: %d bytes of large buffers, %d by our own account, want up to %d", round, large, p.kept, keep)
		}
		if without > 20 {
			t.Fatalf("round %d: %d records have lost their buffers, of 20 with large events", round, without)
		}
	}
}
