package reconcile

import (
	"encoding/binary"
	"hash/maphash"
)

// ident identifies an event: a hash of its topic and its outbox id. Two that differ are the same once in 2^128.
type ident [16]byte

// row is what is kept of a row of the table while it is compared. What it would become is hashed.
type row struct {
	id        ident
	topic     uint32 // number of its topic
	partition int32  // of its key, of as many as the topic has now
	ordinal   uint64 // its place in the table's order
	content   uint64 // hash of key, value and type
	key       uint64 // hash of the key
	xid       uint64 // of the transaction that wrote it, with its epoch
	rank      uint64 // see lane; 0: none
	source    uint16 // its table
	dead      bool   // it is a dead letter
}

// record is what is kept of a Kafka record.
type record struct {
	id         ident
	topic      uint32
	partition  int32
	offset     int64
	content    uint64
	key        uint64
	at         position
	positioned bool // at is known
	replayed   bool // by `walferry replay`: a copy that somebody asked for
	repaired   bool // made from the row, not from the WAL: late, and without a position
	whole      bool // with fewer partitions its key would have belonged to another: it was published when there were as many as now
}

// position is a decode.Position of fixed width.
type position struct {
	system   uint64 // hash of the system identifier
	timeline uint32
	commit   uint64
	index    uint64
}

// suspect is a row that has no record, or an event's first copy, whose place among those of its key is to be judged.
type suspect struct {
	row     row
	missing bool
	offset  int64 // of the first copy
	at      position
	placed  bool // at is known
}

// defect is what is found, of the row with this ordinal.
type defect struct {
	ordinal   uint64
	kind      Kind
	topic     uint32
	partition int32
	offset    int64 // -1: there is no record
	// The other record: of a duplicate the first copy, of a late one that which precedes it and should not.
	otherPartition int32
	otherOffset    int64
	id             ident // of the row, to know it again
	content        uint64
}

// The widths of what is sorted, in bytes.
const (
	entryWidth   = 16 + 1 + 4 + 8 + 4 + 8 + 8 + positionWidth + 1
	suspectWidth = 4 + 4 + 8 + 1 + 8 + 8 + 16 + 8 + 8 + 8 + 2 + positionWidth + 1
	defectWidth  = 8 + 1 + 4 + 4 + 8 + 4 + 8 + 16 + 8

	positionWidth = 8 + 4 + 8 + 8
)

// The flags of an entry.
const (
	flagPositioned = 1 << iota
	flagReplayed
	flagRepaired
	flagDead
	flagWhole
)

// encoder appends fixed-width numbers, in an order that is theirs bytewise.
type encoder struct{ b []byte }

func (e *encoder) u8(v uint8)   { e.b = append(e.b, v) }
func (e *encoder) u16(v uint16) { e.b = binary.BigEndian.AppendUint16(e.b, v) }
func (e *encoder) u32(v uint32) { e.b = binary.BigEndian.AppendUint32(e.b, v) }
func (e *encoder) u64(v uint64) { e.b = binary.BigEndian.AppendUint64(e.b, v) }
func (e *encoder) id(v ident)   { e.b = append(e.b, v[:]...) }

func (e *encoder) position(p position) {
	e.u64(p.system)
	e.u32(p.timeline)
	e.u64(p.commit)
	e.u64(p.index)
}

func (e *encoder) flags(set ...bool) {
	var v uint8
	for i, is := range set {
		if is {
			v |= 1 << i
		}
	}
	e.u8(v)
}

// decoder reads what an encoder wrote.
type decoder struct{ b []byte }

func (d *decoder) next(n int) []byte {
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) u8() uint8   { return d.next(1)[0] }
func (d *decoder) u16() uint16 { return binary.BigEndian.Uint16(d.next(2)) }
func (d *decoder) u32() uint32 { return binary.BigEndian.Uint32(d.next(4)) }
func (d *decoder) u64() uint64 { return binary.BigEndian.Uint64(d.next(8)) }
func (d *decoder) id() ident   { return ident(d.next(16)) }

func (d *decoder) position() position {
	return position{d.u64(), d.u32(), d.u64(), d.u64()}
}

// The sides of an entry: of one event rows come before records, rows by their ordinals, records by partition and offset.
const (
	rowSide = iota
	recordSide
)

// append appends the entry of a row.
func (r *row) append(b []byte) []byte {
	e := encoder{b}
	e.id(r.id)
	e.u8(rowSide)
	e.u32(0)
	e.u64(r.ordinal)
	e.u32(r.topic)
	e.u64(r.content)
	e.u64(r.key)
	// in the place of a position
	e.u64(r.xid)
	e.u32(uint32(r.partition))
	e.u64(r.rank)
	e.u64(uint64(r.source))
	e.flags(false, false, false, r.dead)
	return e.b
}

// append appends the entry of a record.
func (r *record) append(b []byte) []byte {
	e := encoder{b}
	e.id(r.id)
	e.u8(recordSide)
	e.u32(uint32(r.partition))
	e.u64(uint64(r.offset))
	e.u32(r.topic)
	e.u64(r.content)
	e.u64(r.key)
	e.position(r.at)
	e.flags(r.positioned, r.replayed, r.repaired, false, r.whole)
	return e.b
}

// readEntry reads what either append wrote, and reports whether it is a row.
func readEntry(b []byte) (r row, k record, isRow bool) {
	d := decoder{b}
	id, side, partition, place, topic, content, key := d.id(), d.u8(), d.u32(), d.u64(), d.u32(), d.u64(), d.u64()
	at, flags := d.position(), d.u8()
	if side == rowSide {
		return row{
			id: id, topic: topic, partition: int32(at.timeline), ordinal: place, content: content, key: key,
			xid: at.system, rank: at.commit, source: uint16(at.index), dead: flags&flagDead != 0,
		}, k, true
	}
	return r, record{
		id: id, topic: topic, partition: int32(partition), offset: int64(place), content: content, key: key, at: at,
		positioned: flags&flagPositioned != 0, replayed: flags&flagReplayed != 0, repaired: flags&flagRepaired != 0, whole: flags&flagWhole != 0,
	}, false
}

// append appends a suspect: by topic, partition and key, rows without a record first, then first copies by offset.
func (s *suspect) append(b []byte) []byte {
	e := encoder{b}
	e.u32(s.row.topic)
	e.u32(uint32(s.row.partition))
	e.u64(s.row.key)
	e.flags(!s.missing)
	e.u64(uint64(s.offset))
	e.u64(s.row.ordinal)
	e.id(s.row.id)
	e.u64(s.row.content)
	e.u64(s.row.xid)
	e.u64(s.row.rank)
	e.u16(s.row.source)
	e.position(s.at)
	e.flags(s.placed)
	return e.b
}

func readSuspect(b []byte) (s suspect) {
	d := decoder{b}
	s.row.topic, s.row.partition, s.row.key = d.u32(), int32(d.u32()), d.u64()
	s.missing, s.offset = d.u8() == 0, int64(d.u64())
	s.row.ordinal, s.row.id, s.row.content, s.row.xid, s.row.rank, s.row.source = d.u64(), d.id(), d.u64(), d.u64(), d.u64(), d.u16()
	s.at, s.placed = d.position(), d.u8() != 0
	return s
}

// append appends a defect: by the ordinal of its row.
func (f *defect) append(b []byte) []byte {
	e := encoder{b}
	e.u64(f.ordinal)
	e.u8(uint8(f.kind))
	e.u32(f.topic)
	e.u32(uint32(f.partition))
	e.u64(uint64(f.offset))
	e.u32(uint32(f.otherPartition))
	e.u64(uint64(f.otherOffset))
	e.id(f.id)
	e.u64(f.content)
	return e.b
}

func readDefect(b []byte) defect {
	d := decoder{b}
	return defect{d.u64(), Kind(d.u8()), d.u32(), int32(d.u32()), int64(d.u64()), int32(d.u32()), int64(d.u64()), d.id(), d.u64()}
}

// hasher hashes by seeds of its own, so that nobody can prepare ids that collide.
type hasher struct {
	seeds [2]maphash.Seed
	h     maphash.Hash
}

func newHasher() *hasher {
	return &hasher{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
}

func (h *hasher) ident(topic uint32, id []byte) (v ident) {
	for i, seed := range h.seeds {
		h.h.SetSeed(seed)
		h.number(uint64(topic))
		_, _ = h.h.Write(id) // it never fails
		binary.BigEndian.PutUint64(v[8*i:], h.h.Sum64())
	}
	return v
}

// begin begins a hash of several parts, add adds one, of which nil is not the same as an empty one, and sum returns it.
func (h *hasher) begin() { h.h.SetSeed(h.seeds[0]) }

func (h *hasher) add(part []byte) {
	length := uint64(len(part))
	if part == nil {
		length = 1<<64 - 1
	}
	h.number(length)
	_, _ = h.h.Write(part)
}

func (h *hasher) sum() uint64 { return h.h.Sum64() }

func (h *hasher) bytes(b []byte) uint64 { return maphash.Bytes(h.seeds[0], b) }

func (h *hasher) number(v uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	_, _ = h.h.Write(b[:])
}
