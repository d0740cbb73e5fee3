package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/replication"
)

// report is what `walferry status` says of one database.
type report struct {
	Database string         `json:"database"`
	Slot     *slotReport    `json:"slot,omitempty"`
	Bridge   *bridge.Status `json:"bridge,omitempty"` // of the running process
	Errors   []string       `json:"errors,omitempty"`
}

// slotReport is the slot as Postgres knows it.
type slotReport struct {
	Name               string `json:"name"`
	Active             bool   `json:"active"`
	WALStatus          string `json:"wal_status"`
	InvalidationReason string `json:"invalidation_reason,omitempty"`
	RestartLSN         string `json:"restart_lsn"`
	ConfirmedFlushLSN  string `json:"confirmed_flush_lsn"`
	RestartLagBytes    int64  `json:"restart_lag_bytes"`
	ConfirmedLagBytes  int64  `json:"confirmed_lag_bytes"`
	SafeWALSizeBytes   int64  `json:"safe_wal_size_bytes"` // -1: no limit
}

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show slots, lag and running bridges",
		Long: "Show each slot as Postgres knows it and each bridge as the process on admin.listen does.\n" +
			"Fails when a slot cannot be read or is lost.",
		Example: "  walferry status --config walferry.yaml\n  walferry status --json",
		Args:    noArgs,
	}
	path := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(*path)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 15*time.Second)
		defer cancel()
		reports, bad := collect(ctx, cfg)
		if *asJSON {
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			err = enc.Encode(reports)
		} else {
			err = printReports(cmd.OutOrStdout(), reports)
		}
		if err == nil && bad > 0 {
			err = fmt.Errorf("%d of %d slots are lost or cannot be read", bad, len(reports))
		}
		return err
	}
	return cmd
}

func collect(ctx context.Context, cfg *config.Config) (reports []report, bad int) {
	running, runningErr := runningBridges(ctx, cfg.Admin.Listen)
	for _, db := range cfg.Databases {
		r := report{Database: db.Name}
		slot, err := readSlot(ctx, &db)
		if err != nil {
			r.Errors = append(r.Errors, err.Error())
		} else {
			r.Slot = slot
		}
		if err != nil || slot.WALStatus == "lost" || slot.InvalidationReason != "" {
			bad++
		}
		if runningErr != nil {
			r.Errors = append(r.Errors, "no running walferry answers: "+runningErr.Error())
		}
		for i := range running {
			if running[i].Database == db.Name {
				r.Bridge = &running[i]
			}
		}
		reports = append(reports, r)
	}
	return reports, bad
}

func runningBridges(ctx context.Context, listen string) (statuses []bridge.Status, err error) {
	url, err := adminURL(listen, "/status")
	if err != nil {
		return nil, err
	}
	body, err := get(ctx, url)
	if err != nil {
		return nil, err
	}
	return statuses, json.Unmarshal(body, &statuses)
}

func readSlot(ctx context.Context, db *config.Database) (*slotReport, error) {
	cfg, err := db.ConnConfig()
	if err != nil {
		return nil, err
	}
	conn, err := replication.ConnectSQL(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }() // it only read
	s, err := replication.ReadSlot(ctx, conn, db.Slot)
	if err != nil {
		return nil, err
	}
	return &slotReport{
		Name: s.Name, Active: s.Active, WALStatus: s.WALStatus, InvalidationReason: s.InvalidationReason,
		RestartLSN: s.RestartLSN.String(), ConfirmedFlushLSN: s.ConfirmedFlush.String(),
		RestartLagBytes: s.RestartLag(), ConfirmedLagBytes: s.ConfirmedLag(), SafeWALSizeBytes: s.SafeWALSize,
	}, nil
}

func printReports(out io.Writer, reports []report) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	for _, r := range reports {
		fmt.Fprintf(w, "%s\n", r.Database)
		if s := r.Slot; s != nil {
			fmt.Fprintf(w, "  slot\t%s\tactive %t, wal_status %s %s\n", s.Name, s.Active, s.WALStatus, s.InvalidationReason)
			fmt.Fprintf(w, "  confirmed_flush_lsn\t%s\t%s behind\n", s.ConfirmedFlushLSN, humanize.IBytes(uint64(s.ConfirmedLagBytes)))
			fmt.Fprintf(w, "  restart_lsn\t%s\t%s of WAL kept\n", s.RestartLSN, humanize.IBytes(uint64(s.RestartLagBytes)))
		}
		if b := r.Bridge; b != nil {
			fmt.Fprintf(w, "  bridge\t%s\trole %s, ready %t %s\n", b.State, b.Role, b.Ready, b.Reason)
			fmt.Fprintf(w, "  in flight\t%d events\t%d session(s) so far\n", b.Inflight, b.Sessions)
			fmt.Fprintf(w, "  last event\t%s\n", ago(b.LastEvent))
			if k := b.Retention; k != nil {
				fmt.Fprintf(w, "  replay from\t%s\t%s of WAL kept by slot %s %s\n", k.From, humanize.IBytes(uint64(k.WAL)), k.Slot, k.Problem)
			}
		}
		for _, e := range r.Errors {
			fmt.Fprintf(w, "  problem\t%s\n", e)
		}
	}
	return w.Flush()
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "none yet"
	}
	return humanize.Time(t)
}
