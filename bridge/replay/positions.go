package replay

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/replication"
)

// Positions are what is known of where a bridge was, and when.
type Positions struct {
	Database string                 `json:"database"`
	Current  *checkpoint.Checkpoint `json:"current"`
	Index    []checkpoint.Entry     `json:"index"` // the oldest first
	Saved    []Saved                `json:"saved"` // by name
}

// Saved is a checkpoint that was saved under a name.
type Saved struct {
	Name       string                 `json:"name"`
	Checkpoint *checkpoint.Checkpoint `json:"checkpoint"`
}

// ReadPositions needs neither Postgres nor the slot. Its errors are *bridge.Error, as those of Save and Forget.
func ReadPositions(ctx context.Context, o bridge.Options) (*Positions, error) {
	k, err := read(ctx, o)
	if err != nil {
		return nil, bridge.Explain(o.Database.Name, err)
	}
	p := &Positions{Database: o.Database.Name, Current: k.current, Index: checkpoint.Index(k.values, k.cfg.Key)}
	for _, name := range checkpoint.SavedNames(k.values, k.cfg.Key) {
		saved, err := k.saved(name)
		if err != nil {
			return nil, bridge.Explain(o.Database.Name, fmt.Errorf("checkpoint %q: %w", name, err))
		}
		p.Saved = append(p.Saved, Saved{name, saved})
	}
	return p, nil
}

// Save saves the present checkpoint under a name and returns it.
func Save(ctx context.Context, o bridge.Options, name string, replace bool) (*checkpoint.Checkpoint, error) {
	k, err := read(ctx, o)
	if err != nil {
		return nil, bridge.Explain(o.Database.Name, err)
	}
	if k.values[checkpoint.SavedKey(k.cfg.Key, name)] != nil && !replace {
		return nil, bridge.Explain(o.Database.Name, replication.Refuse("choose another name, or --replace it", "a checkpoint is saved as %q already", name))
	}
	value, err := json.Marshal(k.current)
	if err == nil {
		err = k.note(ctx, checkpoint.SavedKey(k.cfg.Key, name), value)
	}
	return k.current, bridge.Explain(o.Database.Name, err)
}

// Forget removes a checkpoint that was saved.
func Forget(ctx context.Context, o bridge.Options, name string) error {
	k, err := read(ctx, o)
	if err == nil {
		_, err = k.saved(name)
	}
	if err == nil {
		err = k.note(ctx, checkpoint.SavedKey(k.cfg.Key, name), nil)
	}
	return bridge.Explain(o.Database.Name, err)
}

// note writes one value beside the checkpoint.
func (k *known) note(ctx context.Context, key string, value []byte) error {
	notes := &checkpoint.Notes{Config: k.cfg}
	defer notes.Close()
	return notes.Put(ctx, key, value)
}
