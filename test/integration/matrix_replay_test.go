//go:build faults

package integration

import "testing"

// replayWhileItRuns replays while the bridge runs.
func replayWhileItRuns(f *faultRun) {
	for _, version := range []string{"14", "18"} {
		f.Run(version, func(t *testing.T) {
			admin, err := shared.postgres[version].admin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			events, copies := replayingUnderLoad(t, admin, 20, newSeed(t))
			f.events += events
			f.note("%d events replayed, Postgres %s;", copies, version)
		})
	}
}
