package checkpoint

import (
	"slices"
	"testing"
)

// What is written beside a checkpoint takes the right to write from nobody, and is there for the next who opens or reads.
func TestWhatIsPutFencesNobody(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		writer := r.open()
		r.write(writer, one("1"))
		cfg, _ := r.config()
		notes := &Notes{Config: cfg}
		defer notes.Close()
		for _, name := range []string{"before-deploy", "gone"} {
			if err := notes.Put(t.Context(), SavedKey(checkpointKey, name), []byte("saved")); err != nil {
				t.Fatal(err)
			}
		}
		if err := notes.Put(t.Context(), SavedKey(checkpointKey, "gone"), nil); err != nil {
			t.Fatal(err)
		}
		r.write(writer, one("2"))
		want := one("2")
		want[SavedKey(checkpointKey, "before-deploy")] = []byte("saved")
		r.holds(want)
		if got := SavedNames(want, checkpointKey); !slices.Equal(got, []string{"before-deploy"}) {
			t.Errorf("saved are %q", got)
		}
	})
}

func TestPutIsForWhatLiesBeside(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		cfg, _ := r.config()
		notes := &Notes{Config: cfg}
		defer notes.Close()
		if err := notes.Put(t.Context(), SavedKey(checkpointKey, "x"), nil); err == nil {
			t.Error("it was put into a topic that does not exist")
		}
		if r.kafka.TopicInfo(checkpointTopic) != nil {
			t.Error("it has created the topic")
		}
		r.write(r.open(), one("1"))
		for _, key := range []string{checkpointKey, checkpointKey + sessionKey, "other/walferry/saved/x", checkpointKey + "2/saved/x"} {
			if err := notes.Put(t.Context(), key, []byte("x")); err == nil {
				t.Errorf("key %q was written", key)
			}
		}
		r.holds(one("1"))
	})
}
