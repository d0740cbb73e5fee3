package decode

import "slices"

// Columns names the columns of an outbox table, or the members of a logical
// message's JSON object, by their role. Type may be empty: there is none.
type Columns struct {
	ID, AggregateType, AggregateID, Type, Payload string
}

// DefaultColumns is the contract of Debezium's outbox event router, and the
// fixed contract of logical messages.
var DefaultColumns = Columns{
	ID: "id", AggregateType: "aggregatetype", AggregateID: "aggregateid", Type: "type", Payload: "payload",
}

// role says what a column is to an outbox event.
type role uint8

const (
	roleNone role = iota
	roleID
	roleAggregateType
	roleAggregateID
	roleType
	rolePayload
	roleCount
)

// name returns the column that c gives the role to.
func (c *Columns) name(r role) string {
	return [roleCount]string{"", c.ID, c.AggregateType, c.AggregateID, c.Type, c.Payload}[r]
}

// role returns the role that c gives the column, comparing without allocating.
func (c *Columns) role(column []byte) role {
	for r := roleID; r < roleCount; r++ {
		if name := c.name(r); name != "" && name == string(column) {
			return r
		}
	}
	return roleNone
}

// Table is one configured outbox table.
type Table struct {
	Schema, Name string
	Columns      Columns
}

// relation is what a Relation message said of an OID, reduced to what decoding
// a row needs. It lives as long as the connection: Postgres sends it again, before
// the next row, whenever the table's definition has changed.
type relation struct {
	source  int      // index of the outbox table in Config.Tables, -1: not an outbox
	roles   []role   // by column
	names   []string // of the columns, for people
	missing string   // a mapped column that the table lacks; rows cannot be read without it
	bytea   bool     // the payload column's type is bytea, or a domain over it
}

const oidBytea = 17

func (d *Decoder) readRelation(r *reader) error {
	oid := r.uint32()
	schema, name := r.cstring(), r.cstring()
	if len(schema) == 0 && !r.short {
		schema = []byte("pg_catalog") // proto.c: logicalrep_write_namespace sends "" for it
	}
	r.uint8() // replica identity: inserts carry whole rows whatever it is
	columns := int(r.uint16())
	if r.short {
		return r.end()
	}
	rel := &relation{source: d.source(oid, schema, name)}
	seen := [roleCount]bool{roleNone: true}
	for range columns {
		r.uint8() // flags: part of the key
		column, typeOID := r.cstring(), r.uint32()
		r.uint32() // type modifier
		if r.short {
			break
		}
		if rel.source < 0 {
			continue
		}
		is := d.cfg.Tables[rel.source].Columns.role(column)
		rel.roles, rel.names = append(rel.roles, is), append(rel.names, string(column))
		rel.bytea = rel.bytea || is == rolePayload && (typeOID == oidBytea || d.domains[typeOID])
		seen[is] = true
	}
	if err := r.end(); err != nil {
		return err
	}
	if rel.source >= 0 {
		for i, ok := range seen {
			if name := d.cfg.Tables[rel.source].Columns.name(role(i)); !ok && name != "" {
				rel.missing = name
			}
		}
	}
	d.relations[oid] = rel
	return nil
}

// readType notes domains over bytea. A type that is not built in is announced before the
// relation that has it, a domain under the name of its base type (proto.c, logicalrep_write_typ).
func (d *Decoder) readType(r *reader) error {
	oid, schema, name := r.uint32(), r.cstring(), r.cstring()
	if err := r.end(); err != nil {
		return err
	}
	if len(schema) == 0 && string(name) == "bytea" { // "" is pg_catalog
		d.domains[oid] = true
	}
	return nil
}

// source returns the index of the outbox table, by its name at the time of the WAL, which a
// table that has been recreated keeps, or by its OID, which one that was renamed keeps; else -1.
func (d *Decoder) source(oid uint32, schema, name []byte) int {
	for i := range d.cfg.Tables {
		if t := &d.cfg.Tables[i]; t.Schema == string(schema) && t.Name == string(name) {
			return i
		}
	}
	return slices.Index(d.cfg.OIDs, oid)
}
