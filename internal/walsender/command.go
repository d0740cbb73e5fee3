package walsender

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
)

// Result is the answer to one SQL statement.
type Result struct {
	Columns []string
	OIDs    []uint32 // types of the columns; nil: all are text
	Rows    [][]*string
	Err     *pgproto3.ErrorResponse // instead of rows; with Severity FATAL it ends the session
	Tag     string                  // of CommandComplete; empty: "SELECT n"

	stream bool // answered by the beginning of a stream
}

// JSON is a value of an Answer in a column of type json; "" is NULL.
type JSON string

// Answer is a result of one row. A value's Go type says its column's type.
func Answer(values ...any) Result {
	r := Result{Rows: [][]*string{make([]*string, len(values))}}
	for i, value := range values {
		text, oid := fmt.Sprint(value), uint32(pgtype.TextOID)
		switch value.(type) {
		case bool:
			text, oid = text[:1], pgtype.BoolOID
		case int:
			oid = pgtype.Int8OID
		case uint32:
			oid = pgtype.OIDOID
		case pglogrepl.LSN:
			oid = oidLSN
		case JSON:
			oid = pgtype.JSONOID
		}
		r.Columns, r.OIDs = append(r.Columns, fmt.Sprint("c", i)), append(r.OIDs, oid)
		if value != JSON("") {
			r.Rows[0][i] = &text
		}
	}
	return r
}

const oidLSN = 3220 // pg_lsn

// Error is an ERROR of the server, after which it takes the next command.
func Error(code, format string, args ...any) *pgproto3.ErrorResponse {
	return &pgproto3.ErrorResponse{
		Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: code, Message: fmt.Sprintf(format, args...),
	}
}

func failed(code, format string, args ...any) Result {
	return Result{Err: Error(code, format, args...)}
}

// messages is the result as it goes over the wire.
func (r Result) messages() []pgproto3.BackendMessage {
	if r.Err != nil {
		return []pgproto3.BackendMessage{r.Err}
	}
	var out []pgproto3.BackendMessage
	var head pgproto3.RowDescription
	for i, name := range r.Columns {
		f := pgproto3.FieldDescription{Name: []byte(name), DataTypeOID: pgtype.TextOID, DataTypeSize: -1, TypeModifier: -1}
		if r.OIDs != nil {
			f.DataTypeOID = r.OIDs[i]
		}
		head.Fields = append(head.Fields, f)
	}
	if len(r.Columns) > 0 {
		out = append(out, &head)
	}
	for _, row := range r.Rows {
		var data pgproto3.DataRow
		for _, v := range row {
			var value []byte // nil is NULL
			if v != nil {
				value = append([]byte{}, *v...)
			}
			data.Values = append(data.Values, value)
		}
		out = append(out, &data)
	}
	tag := r.Tag
	if tag == "" {
		tag = fmt.Sprintf("SELECT %d", len(r.Rows))
	}
	return append(out, &pgproto3.CommandComplete{CommandTag: []byte(tag)})
}

// statement is one statement of a simple query.
type statement struct{ comment, body string }

var tagComment = regexp.MustCompile(`/\*\s*walferry:([\w-]+)\s*\*/`)

// statements splits a simple query at its semicolons and leaves out what holds nothing but space and comments.
func statements(sql string) []statement {
	var out []statement
	start, body := 0, -1 // of the statement, and of what is not blank in it
	for i := 0; i < len(sql); {
		n, blank := lexeme(sql[i:])
		switch {
		case sql[i] == ';':
			if body >= 0 {
				out = append(out, statement{sql[start:body], sql[body:i]})
			}
			start, body = i+n, -1
		case !blank && body < 0:
			body = i
		}
		i += n
	}
	if body >= 0 {
		out = append(out, statement{sql[start:body], sql[body:]})
	}
	return out
}

// lexeme returns the length of the first element of sql, and whether it is space or a comment.
func lexeme(sql string) (n int, blank bool) {
	upTo := func(from int, end string) int {
		if at := strings.Index(sql[from:], end); at >= 0 {
			return from + at + len(end)
		}
		return 1 // it never ends: take it for what it looks like
	}
	switch {
	case strings.HasPrefix(sql, "--"):
		return max(2, strings.IndexByte(sql+"\n", '\n')), true
	case strings.HasPrefix(sql, "/*"):
		n = upTo(2, "*/")
		return n, n > 1
	case strings.IndexByte(" \t\r\n\v\f", sql[0]) >= 0:
		return 1, true
	case sql[0] == '\'', sql[0] == '"':
		return upTo(1, sql[:1]), false
	}
	return 1, false
}

// query answers a simple query: all its statements up to the first error.
func (c *Session) query(sql string) {
	list := statements(sql)
	if len(list) == 0 {
		c.Send(&pgproto3.EmptyQueryResponse{})
	}
	for _, stmt := range list {
		result := c.execute(stmt)
		if result.stream {
			return
		}
		if err := result.Err; err != nil && err.Severity == "FATAL" {
			c.SendFatal(err.Code, err.Message)
			return
		}
		c.Send(result.messages()...)
		if result.Err != nil {
			break
		}
	}
	c.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
}

func (c *Session) execute(stmt statement) Result {
	s := c.server
	word, argument, _ := strings.Cut(strings.TrimSpace(stmt.body), " ")
	word, argument = strings.ToUpper(word), strings.TrimSpace(argument)
	replication := c.Startup()["replication"] == "database"
	switch {
	case word == "SHOW":
		return s.show(argument)
	case replication && word == "IDENTIFY_SYSTEM":
		return s.identifySystem(c.Startup()["database"])
	case replication && word == "TIMELINE_HISTORY":
		return s.timelineHistory(argument)
	case replication && word == "START_REPLICATION":
		return c.startReplication(argument)
	}
	tag := tagComment.FindStringSubmatch(stmt.comment)
	if tag == nil {
		return failed("0A000", "SQL without a walferry tag is not scripted: %.80s", stmt.body)
	}
	s.mu.Lock()
	handler := s.handlers[tag[1]]
	s.mu.Unlock()
	if handler == nil {
		return failed("0A000", "SQL with the tag walferry:%s is not scripted", tag[1])
	}
	return handler(stmt.comment + stmt.body)
}

func (s *Server) show(name string) Result {
	value, ok := s.config.Settings[name]
	if !ok {
		return failed("42704", "unrecognized configuration parameter %q", name)
	}
	return Result{Columns: []string{name}, Rows: [][]*string{{&value}}, Tag: "SHOW"}
}

func (s *Server) identifySystem(database string) Result {
	timeline, walEnd := strconv.Itoa(int(s.config.Timeline)), s.WALEnd().String()
	return Result{
		Columns: []string{"systemid", "timeline", "xlogpos", "dbname"},
		OIDs:    []uint32{pgtype.TextOID, pgtype.Int8OID, pgtype.TextOID, pgtype.TextOID},
		Rows:    [][]*string{{&s.config.SystemID, &timeline, &walEnd, &database}},
		Tag:     "IDENTIFY_SYSTEM",
	}
}

func (s *Server) timelineHistory(timeline string) Result {
	n, err := strconv.ParseInt(timeline, 10, 32)
	if err != nil {
		return failed("42601", "syntax error in TIMELINE_HISTORY")
	}
	file := fmt.Sprintf("%08X.history", n)
	content, ok := s.config.History[int32(n)]
	if !ok {
		return failed("58P01", `could not open file "pg_wal/%s": No such file or directory`, file)
	}
	columns := []string{"filename", "content"}
	return Result{Columns: columns, Rows: [][]*string{{&file, &content}}, Tag: "TIMELINE_HISTORY"}
}

var (
	startArguments = regexp.MustCompile(`(?is)^SLOT\s+"?([^"\s]+)"?\s+LOGICAL\s+([0-9A-F]+/[0-9A-F]+)\s*(?:\((.*)\))?$`)
	pluginOption   = regexp.MustCompile(`"?(\w+)"?\s+'([^']*)'`)
)

// startReplication takes the slot and makes the session stream, or says why not.
func (c *Session) startReplication(arguments string) Result {
	m := startArguments.FindStringSubmatch(arguments)
	if m == nil {
		return failed("42601", "syntax error in START_REPLICATION")
	}
	start, err := pglogrepl.ParseLSN(m[2])
	if err != nil {
		return failed("42601", "invalid LSN %q", m[2])
	}
	options := make(map[string]string)
	for _, option := range pluginOption.FindAllStringSubmatch(m[3], -1) {
		options[option[1]] = option[2]
	}
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case m[1] != s.config.Slot:
		return failed("42704", "replication slot %q does not exist", m[1])
	case s.holder != nil:
		return failed("55006", "replication slot %q is active for PID %d", m[1], s.holder.pid)
	case options["proto_version"] != "1":
		return failed("0A000", "proto_version %q is not scripted, only 1", options["proto_version"])
	case options["publication_names"] == "":
		return failed("22023", "publication_names parameter missing")
	}
	c.enqueue(&pgproto3.CopyBothResponse{})
	c.stream = newStream(c, max(start, s.confirmed), options["messages"] == "true")
	s.holder = c
	if s.config.OnStream != nil {
		s.config.OnStream(Streaming{PID: c.pid, Application: c.startup["application_name"], Start: c.stream.start})
	}
	return Result{stream: true}
}
