//go:build faults

package integration

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/servers"
)

// pair is a primary and a standby that streams from it.
type pair struct {
	f                *faultRun
	primary, standby *servers.PG
	worlds           []*followed
}

// followed is a world of a pair, with its writers and its process, which all know both servers.
type followed struct {
	*world
	load    *load
	bridge  *command
	address string // of the process's admin API
	ends    []int  // of the ledger, before what the standby will not have
}

// newPair starts a primary with these settings, and a standby of it.
func (f *faultRun) newPair(version string, opts servers.StandbyOptions, settings map[string]string) *pair {
	f.Helper()
	p := &pair{f: f, primary: ownPostgres(f.T, version, servers.PostgresOptions{})}
	opts.Slot = physicalSlot
	standby, err := p.primary.Standby(context.Background(), opts)
	if err != nil {
		f.Fatal(err)
	}
	p.standby = standby
	f.Cleanup(func() {
		if f.Failed() {
			f.Logf("log of the standby:\n%s", standby.Log())
		}
		if err := standby.Close(); err != nil {
			f.Error(err)
		}
	})
	if err := p.primary.SetConf(context.Background(), settings); err != nil {
		f.Fatal(err)
	}
	return p
}

// follow makes a world whose bridge and writers look for the primary in this order, with slots for the bridge and for
// an independent reader that the standby has too, and starts all of it.
func (p *pair) follow(order ...*servers.PG) *followed {
	p.f.Helper()
	w := &followed{world: newWorld(p.f.T, hosts(p.primary, p.standby), nil), address: freeAddr(p.f.T)}
	p.awaitReplay(w)
	w.admin = hosts(order...) // not before the standby has the database: pgx asks nobody else when one host does not know it
	w.cfg.Databases[0].DSN = config.Secret(w.dsn())
	w.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput', false, false, true)", w.truthSlot())
	p.f.Cleanup(func() { w.dropSlot(w.truthSlot()) })
	w.bridge = w.daemon(w.address)
	w.bridge.awaitStreaming()
	p.awaitSynced(w)
	if p.f.random == nil {
		p.f.random = newSeed(p.f.T)
	}
	w.load = w.startLoad(p.f.random)
	p.worlds = append(p.worlds, w)
	return w
}

// awaitSynced waits until the standby has copies of a world's slots that outlive its promotion. A copy needs rows of the
// catalog that the standby may have no more, so the slots move meanwhile: the bridge's by itself, and there is no event yet.
func (p *pair) awaitSynced(w *followed) {
	p.f.Helper()
	conn, err := pgx.Connect(p.f.Context(), p.standby.DSN("postgres"))
	if err != nil {
		p.f.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	await(p.f.T, "the standby to copy the slots", func() error {
		w.exec("SELECT pg_log_standby_snapshot()")
		w.exec("SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())", w.truthSlot())
		if err := p.standby.SetConf(p.f.Context(), nil); err != nil { // which makes it look
			return err
		}
		var copied int
		err := conn.QueryRow(p.f.Context(), "SELECT count(*) FROM pg_replication_slots WHERE synced AND NOT temporary AND slot_name = ANY ($1)",
			[]string{w.prefix, w.truthSlot()}).Scan(&copied)
		if err == nil && copied < 2 {
			err = fmt.Errorf("it has %d of 2", copied)
		}
		return err
	})
}

// promote makes the standby the primary, and returns since when it is.
func (p *pair) promote() (promoted time.Time) {
	p.f.Helper()
	if err := p.standby.Promote(context.Background()); err != nil {
		p.f.Fatal(err)
	}
	promoted = time.Now()
	for _, w := range p.worlds {
		w.reconnect()
	}
	return promoted
}

// goesOn makes sure that all bridges deliver what is written from now on, each in the process that it was, and runs the
// checkers of each world.
func (p *pair) goesOn(since time.Time) (audits []*audit) {
	p.f.Helper()
	for _, w := range p.worlds {
		p.f.recovered(w.world, since, w.insertLSN())
	}
	for _, w := range p.worlds {
		w.load.more(200)
		audits = append(audits, p.f.verifyBut(w.load, ""))
		select {
		case <-w.bridge.done:
			p.f.Errorf("the process ended: %s", w.bridge.cmd.ProcessState)
		default:
		}
	}
	return audits
}

const lostWALMessage = "the new primary has lost WAL of which events were published: they may not exist in the database"

// failOver kills the primary under load and promotes the standby, which has all that was committed and all that was sent.
func failOver(f *faultRun) {
	for _, version := range []string{"17", "18"} {
		p := f.newPair(version, servers.StandbyOptions{SyncSlots: true}, map[string]string{
			"synchronized_standby_slots": physicalSlot, "synchronous_standby_names": physicalSlot,
		})
		p.follow(p.standby, p.primary)
		p.follow(p.primary, p.standby)
		for _, w := range p.worlds {
			w.load.more(300)
		}
		if err := p.primary.Kill(); err != nil {
			f.Fatal(err)
		}
		p.goesOn(p.promote())
		for _, w := range p.worlds {
			if n := len(w.bridge.logLines(lostWALMessage)); n != 0 {
				f.Errorf("Postgres %s: %d warnings of lost WAL, want none", version, n)
			}
		}
	}
}

// switchOver stops the primary in order and promotes the standby.
func switchOver(f *faultRun) {
	p := f.newPair("18", servers.StandbyOptions{SyncSlots: true}, map[string]string{"synchronized_standby_slots": physicalSlot})
	p.follow(p.standby, p.primary)
	p.follow(p.primary, p.standby)
	for _, w := range p.worlds {
		w.load.more(300)
	}
	f.note("stop %s", short(f.stop(p.primary, "fast", 6*time.Second)))
	p.goesOn(p.promote())
	if f.duplicates != 0 {
		f.Errorf("%d duplicates, want 0: the primary has waited until all that it sent was confirmed", f.duplicates)
	}
}

// loseStandby stops the standby that the walsender waits for, under load, and restarts the primary while it is away.
func loseStandby(f *faultRun) {
	for _, version := range []string{"17", "18"} {
		p := f.newPair(version, servers.StandbyOptions{SyncSlots: true}, map[string]string{"synchronized_standby_slots": physicalSlot})
		w := p.follow(p.primary, p.standby)
		w.load.more(100)
		if err := p.standby.Stop("fast"); err != nil {
			f.Fatal(err)
		}
		away := time.Now()
		f.mustNameTheStandby(w)
		f.note("%s: named after %s", version, short(time.Since(away)))
		before := w.deliveredAll()
		w.load.more(200)
		if n := w.deliveredAll() - before; n != 0 {
			f.Errorf("%d events were published that the standby does not have", n)
		}
		f.note("stop of the primary %s", short(f.stop(p.primary, "fast", 6*time.Second)))
		f.start(p.primary)
		f.start(p.standby)
		w.reconnect()
		p.goesOn(time.Now())
	}
}

// mustNameTheStandby waits until all that an operator may look at says what is waited for.
func (f *faultRun) mustNameTheStandby(w *followed) {
	f.Helper()
	awaitStatus(f.T, w.address, `"waits_for":"standby"`)
	const says = "Postgres sends nothing until the standbys that synchronized_standby_slots names have the WAL"
	if body := awaitAnswer(f.T, "http://"+w.address+"/readyz", http.StatusServiceUnavailable); !strings.Contains(body, says) {
		f.Errorf("/readyz says %q", body)
	}
	if _, body := get(f.T, "http://"+w.address+"/metrics"); !strings.Contains(body, `walferry_waits_for_standby{database="shop"} 1`) {
		f.Error("the metric does not say it")
	}
	stdout, _ := walferry(f.T, "status", "--config", w.configFile(w.address)).exit(0)
	mustSayAll(f.T, stdout, says)
	mustSayAll(f.T, w.bridge.stderr.String(), says)
}

// deliveredAll returns how many records are in the ledger's topics.
func (w *world) deliveredAll() (n int64) {
	w.t.Helper()
	for _, kind := range ledgerTypes {
		n += w.delivered(kind)
	}
	return n
}

// loseWAL promotes a standby that lacks the last that the primary has committed and walferry has published.
func loseWAL(f *faultRun) {
	for _, version := range []string{"17", "18"} {
		p := f.newPair(version, servers.StandbyOptions{SyncSlots: true}, nil)
		p.follow(p.primary, p.standby)
		p.follow(p.standby, p.primary)
		for _, w := range p.worlds {
			w.load.more(200)
			w.load.stop()
		}
		p.awaitReplay(p.worlds[0])
		if err := p.standby.Stop("fast"); err != nil {
			f.Fatal(err)
		}
		for _, w := range p.worlds {
			w.ends = w.load.ledger.ends()
			w.load.start(f.random)
			w.load.more(200)
			w.awaitCaughtUp()
		}
		if err := p.primary.Kill(); err != nil {
			f.Fatal(err)
		}
		for _, w := range p.worlds {
			w.load.stop()
			w.load.ledger.undo(w.ends)
		}
		f.start(p.standby)
		promoted := p.promote()
		for _, w := range p.worlds {
			w.load.lost = f.lostWAL(w)
			w.load.start(f.random)
		}
		for i, a := range p.goesOn(promoted) {
			lost := p.worlds[i].load.lost
			f.note("%d events published from lost WAL of %d KiB", a.phantoms, (lost.to-lost.from)>>10)
			if a.phantoms == 0 {
				f.Error("no event was published from the lost WAL: nothing was tested")
			}
		}
	}
}

// lostWAL waits until the process says which WAL is lost, once, and returns it.
func (f *faultRun) lostWAL(w *followed) (lost lostWAL) {
	f.Helper()
	await(f.T, "the warning of lost WAL", func() error {
		lines := w.bridge.logLines(lostWALMessage)
		if len(lines) != 1 {
			return fmt.Errorf("%d lines", len(lines))
		}
		from, fromErr := pglogrepl.ParseLSN(fmt.Sprint(lines[0]["from"]))
		to, toErr := pglogrepl.ParseLSN(fmt.Sprint(lines[0]["to"]))
		lost = lostWAL{1, from, to}
		return cmp.Or(fromErr, toErr)
	})
	if switched := w.switchpoint(); lost.from != switched {
		f.Errorf("lost WAL is said to begin at %s, the new timeline begins at %s", lost.from, switched)
	}
	return lost
}

// awaitReplay waits until the standby has all that the primary has written, and shows it: to somebody who asks for a
// database that it does not know yet it says that there is none.
func (p *pair) awaitReplay(w *followed) {
	p.f.Helper()
	end := w.walEnd()
	await(p.f.T, "the standby to have all", func() error {
		if behind := w.query("SELECT coalesce(sum(pg_wal_lsn_diff($1, replay_lsn)), 1)::text FROM pg_stat_replication WHERE application_name = $2", end, physicalSlot); !strings.HasPrefix(behind, "-") && behind != "0" {
			return fmt.Errorf("%s bytes are missing", behind)
		}
		return nil
	})
}

// promoteWithoutSlot promotes a standby that does not have the slot: before Postgres 17 none does, and later one that does
// not copy slots.
func promoteWithoutSlot(f *faultRun) {
	const missing = "the slot does not exist any more: it was dropped, or this server never had it"
	for _, version := range []string{"14", "15", "16", "18"} {
		p := f.newPair(version, servers.StandbyOptions{}, nil)
		w := &followed{world: newWorld(f.T, hosts(p.primary, p.standby), nil)}
		p.worlds = append(p.worlds, w)
		p.awaitReplay(w)
		before := w.order("k", "1")
		w.bridge = w.daemon("")
		w.awaitCaughtUp()
		p.awaitReplay(w)
		if err := p.primary.Kill(); err != nil {
			f.Fatal(err)
		}
		promoted := p.promote()
		missed := w.order("k", `"in the gap"`)
		_, stderr := w.bridge.exit(exitGap)
		f.recoveries = append(f.recoveries, time.Since(promoted))
		mustSayAll(f.T, stderr, missing, "walferry recover", "walferry init --accept-gap")
		w.refuses(exitGap, missing)
		mustExit(f.T, exitGap, []string{"init", "--config", w.configFile("")}, "the slot does not exist any more")
		if n := w.query("SELECT count(*)::text FROM pg_replication_slots"); n != "0" {
			f.Errorf("Postgres %s: %s slots, want none", version, n)
		}
		w.mustPublish("order", before)
		walferry(f.T, "recover", "--config", w.configFile("")).exit(0)
		w.goesOn("", concat(before, missed))
	}
	f.note("(from the promotion until it stopped)")
}

// returnOfThePrimary has the old primary come back beside the new one, before it in the DSN, and take writes.
func returnOfThePrimary(f *faultRun) {
	p := f.newPair("18", servers.StandbyOptions{SyncSlots: true}, nil)
	w := p.follow(p.primary, p.standby)
	w.load.more(50)
	w.load.stop()
	w.awaitCaughtUp()
	p.awaitReplay(w)
	if err := p.primary.Kill(); err != nil {
		f.Fatal(err)
	}
	p.promote()
	want := w.order("new", "1")
	w.awaitCaughtUp()

	f.start(p.primary)
	old := p.besides(w, p.primary)
	old.order("old", "1")
	confirmed := old.confirmed()
	want = concat(want, w.order("new", "2"))
	w.awaitCaughtUp()
	if n := len(w.bridge.logLines("streaming")); n != 2 {
		f.Errorf("%d sessions, want 2: one of each primary", n)
	}

	w.query("SELECT pg_terminate_backend($1::int)::text", w.walsender())
	_, stderr := w.bridge.exit(exitGap)
	const says = "the checkpoint was written on timeline 2, the server is on timeline 1"
	mustSayAll(f.T, stderr, says, "shut this server down or take it out of the DSN")
	old.order("old", "2")
	w.refuses(exitGap, says)
	if now := old.confirmed(); now != confirmed {
		f.Errorf("%s is confirmed to the old primary, it was %s", now, confirmed)
	}
	if err := p.primary.Stop("fast"); err != nil {
		f.Fatal(err)
	}
	w.bridge = w.daemon("")
	want = concat(want, w.order("new", "3"))
	w.awaitCaughtUp()
	byKey := map[string][]event{}
	for _, e := range w.published("order") {
		byKey[e.key] = append(byKey[e.key], e)
	}
	mustEqual(f.T, "of the new primary", byKey["new"], want)
	if n := len(byKey["old"]); n != 0 {
		f.Errorf("%d events of the old primary were published", n)
	}
}

// besides returns the world as another server has it.
func (p *pair) besides(w *followed, pg *servers.PG) *world {
	p.f.Helper()
	conn, err := pgx.Connect(p.f.Context(), dsnOf(p.f.T, pg.DSN("postgres"), w.prefix))
	if err != nil {
		p.f.Fatal(err)
	}
	p.f.Cleanup(func() { _ = conn.Close(context.Background()) })
	return &world{t: p.f.T, admin: pg.DSN("postgres"), prefix: w.prefix, cfg: w.cfg, conn: conn}
}
