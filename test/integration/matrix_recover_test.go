//go:build faults

package integration

import (
	"testing"
)

// loseSlots loses slots and recovers them.
func loseSlots(f *faultRun) {
	for _, version := range []string{"14", "18"} {
		f.Run(version, func(t *testing.T) {
			events, resent := losingSlots(t, version, 20, newSeed(t))
			f.events += events
			f.note("%d of %d events sent again, Postgres %s;", resent, events, version)
		})
	}
}
