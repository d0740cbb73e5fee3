package config

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// connectTimeout is how long each of several hosts may take to let us in, if the DSN has no connect_timeout: one that
// hangs would take all the time there is for an attempt, each time, and keep us from the next one for ever.
const connectTimeout = 3 * time.Second

// ConnConfig returns how to connect to the database. It reads dsn_file and password_file anew, so call it for every
// connect. The result is the caller's. Errors name the database and the key at fault, and show no value.
func (db *Database) ConnConfig() (*pgx.ConnConfig, error) {
	config, fault := db.connConfig()
	if fault != nil {
		return nil, fmt.Errorf("database %q: %s %w", db.Name, fault.key, fault.err)
	}
	return config, nil
}

func (db *Database) connConfig() (*pgx.ConnConfig, *fault) {
	key, dsn := "dsn", db.DSN.Reveal()
	if db.DSNFile != "" {
		text, unread := readSecret("dsn_file", db.DSNFile)
		if unread != nil {
			return nil, unread
		}
		key, dsn = "dsn_file", strings.TrimSpace(text)
	}
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, &fault{key, explain(err)}
	}
	if severalHosts(&config.Config) {
		config.ConnectTimeout = cmp.Or(config.ConnectTimeout, connectTimeout)
		if config.ValidateConnect == nil { // or a standby that is named first would be all that is ever asked
			config.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
		}
	}
	if db.PasswordFile != "" {
		password, unread := readSecret("password_file", db.PasswordFile)
		if unread != nil {
			return nil, unread
		}
		config.Password = password
	}
	return config, nil
}

// explain says why a connection string was refused. pgconn hides the passwords it recognises in its own errors, but
// promises nothing for a malformed string, so nothing of them is kept.
func explain(err error) error {
	if file, ok := errors.AsType[*os.PathError](err); ok {
		return fmt.Errorf("needs a file that cannot be read (sslrootcert, sslcert, sslkey or servicefile): %w", file.Err)
	}
	return errors.New("must be postgres://user@host:port/database?sslmode=verify-full or key=value pairs: " +
		"percent-encode : / ? # % @ and spaces in a URL's password, or use password_file; check the PG* variables too")
}

// severalHosts reports whether there is a choice of hosts, beside that of TLS or not.
func severalHosts(config *pgconn.Config) bool {
	return slices.ContainsFunc(config.Fallbacks, func(way *pgconn.FallbackConfig) bool {
		return way.Host != config.Host || way.Port != config.Port
	})
}

// plaintextPossible reports whether any way to connect goes to another host without TLS.
func plaintextPossible(config *pgconn.Config) bool {
	first := &pgconn.FallbackConfig{Host: config.Host, Port: config.Port, TLSConfig: config.TLSConfig}
	ways := append([]*pgconn.FallbackConfig{first}, config.Fallbacks...)
	return slices.ContainsFunc(ways, func(way *pgconn.FallbackConfig) bool {
		network, _ := pgconn.NetworkAddress(way.Host, way.Port)
		return way.TLSConfig == nil && network != "unix" && !isLoopback(way.Host)
	})
}
