package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestConnConfigReadsFilesAnew(t *testing.T) {
	hermetic(t)
	dsn := write(t, "dsn", "  host=localhost user=u password=inline dbname=d\n")
	password := write(t, "password", " first \r\n")
	db := Database{Name: "shop", DSNFile: dsn, PasswordFile: password}
	check := func(host, want string) {
		t.Helper()
		config, err := db.ConnConfig()
		if err != nil {
			t.Fatal(err)
		}
		if config.Host != host || config.User != "u" || config.Database != "d" || config.Password != want {
			t.Errorf("got host %q, user %q, database %q, password %q", config.Host, config.User, config.Database, config.Password)
		}
	}
	check("localhost", " first ")
	if err := os.WriteFile(password, []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dsn, []byte("postgres://u:inline@db/d"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("db", "second")
	db.PasswordFile = ""
	check("db", "inline")
}

// One of several hosts that hangs must leave time for the others, and one that is a standby must not be taken.
func TestSeveralHostsHaveAConnectTimeout(t *testing.T) {
	hermetic(t)
	for dsn, want := range map[string]time.Duration{
		"host=a user=u":                                        0, // with TLS and without
		"postgres://u@a,b/d?sslmode=disable":                   connectTimeout,
		"postgres://u@a:1,a:2/d?sslmode=disable":               connectTimeout,
		"postgres://u@a,b/d?sslmode=disable&connect_timeout=9": 9 * time.Second,
		"postgres://u@a/d?sslmode=disable&connect_timeout=9":   9 * time.Second,
	} {
		db := Database{Name: "shop", DSN: Secret(dsn)}
		config, err := db.ConnConfig()
		if err != nil {
			t.Fatal(err)
		}
		if config.ConnectTimeout != want {
			t.Errorf("%s: connect_timeout %s, want %s", dsn, config.ConnectTimeout, want)
		}
		if several := strings.Contains(dsn, ","); (config.ValidateConnect != nil) != several {
			t.Errorf("%s: the primary is asked for: %t, want %t", dsn, config.ValidateConnect != nil, several)
		}
	}
}

func TestConnConfigErrors(t *testing.T) {
	hermetic(t)
	for _, test := range []struct {
		db   Database
		want string
	}{
		{Database{Name: "a", DSN: "hunter2"}, `database "a": dsn must be postgres://user@host:port/database?sslmode=verify-full or key=value pairs: ` +
			"percent-encode : / ? # % @ and spaces in a URL's password, or use password_file; check the PG* variables too"},
		{Database{Name: "a", DSNFile: write(t, "dsn", "hunter2")}, `database "a": dsn_file must be postgres://user@host:port/database?sslmode=verify-full ` +
			"or key=value pairs: percent-encode : / ? # % @ and spaces in a URL's password, or use password_file; check the PG* variables too"},
		{Database{Name: "a", DSNFile: "/nowhere/x"}, `database "a": dsn_file names a file that cannot be read: no such file or directory`},
		{Database{Name: "a", DSN: "host=h", PasswordFile: write(t, "password", "\n")}, `database "a": password_file names an empty file`},
		{Database{Name: "a", DSN: "host=h", PasswordFile: t.TempDir()}, `database "a": password_file names a file that cannot be read: is a directory`},
	} {
		config, err := test.db.ConnConfig()
		if got := fmt.Sprint(err); got != test.want || config != nil {
			t.Errorf("got %v and error %q, want %q", config, got, test.want)
		}
	}
}

func TestConnConfigErrorKeepsItsCause(t *testing.T) {
	hermetic(t)
	for _, db := range []Database{
		{DSNFile: "/nowhere/x"},
		{DSN: "host=h", PasswordFile: "/nowhere/x"},
		{DSN: "host=h sslmode=verify-ca sslrootcert=/nowhere/x"},
	} {
		if _, err := db.ConnConfig(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v, want an error that is fs.ErrNotExist", err)
		}
	}
}

func TestSASLLoad(t *testing.T) {
	file := write(t, "password", "from file\n")
	for _, test := range []struct {
		sasl SASL
		want string
	}{
		{SASL{}, `"" "" "" <nil>`},
		{SASL{Mechanism: "PLAIN", Username: "u", Password: "p"}, `"PLAIN" "u" "p" <nil>`},
		{SASL{Mechanism: "SCRAM-SHA-512", Username: "u", PasswordFile: file}, `"SCRAM-SHA-512" "u" "from file" <nil>`},
		{
			SASL{Mechanism: "PLAIN", Username: "u", PasswordFile: "/nowhere/x"},
			`"" "" "" kafka.sasl.password_file names a file that cannot be read: no such file or directory`,
		},
	} {
		mechanism, username, password, err := test.sasl.Load()
		if got := fmt.Sprintf("%q %q %q %v", mechanism, username, password, err); got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
}

// keyPair writes a self-signed certificate and its key as PEM.
func keyPair(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"kafka"}}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return write(t, "cert.pem", encode("CERTIFICATE", certificate)), write(t, "key.pem", encode("PRIVATE KEY", private))
}

func TestTLSLoad(t *testing.T) {
	certFile, keyFile := keyPair(t)
	_, otherKey := keyPair(t)
	if config, err := (&TLS{}).Load(); config != nil || err != nil {
		t.Errorf("got %v and error %v for TLS that is off, want neither", config, err)
	}
	config, err := (&TLS{Enabled: true, CAFile: certFile, CertFile: certFile, KeyFile: keyFile, ServerName: "kafka"}).Load()
	if err != nil {
		t.Fatal(err)
	}
	if config.MinVersion != tls.VersionTLS12 || config.RootCAs == nil || len(config.Certificates) != 1 ||
		config.ServerName != "kafka" || config.InsecureSkipVerify {
		t.Errorf("got version %x, roots %v, %d certificates, name %q, insecure %v", config.MinVersion, config.RootCAs,
			len(config.Certificates), config.ServerName, config.InsecureSkipVerify)
	}
	config, err = (&TLS{Enabled: true, InsecureSkipVerify: true}).Load()
	if err != nil || config.RootCAs != nil || len(config.Certificates) != 0 || !config.InsecureSkipVerify {
		t.Errorf("got %+v and error %v, want the system's roots, no certificate, insecure", config, err)
	}
	for _, test := range []struct {
		tls  TLS
		want string
	}{
		{TLS{Enabled: true, CAFile: keyFile}, "kafka.tls.ca_file holds no PEM certificate"},
		{TLS{Enabled: true, CertFile: certFile}, "kafka.tls.key_file is required with cert_file"},
		{
			TLS{Enabled: true, CertFile: certFile, KeyFile: otherKey},
			"kafka.tls.cert_file and key_file cannot be used: tls: private key does not match public key",
		},
	} {
		if _, err := test.tls.Load(); fmt.Sprint(err) != test.want {
			t.Errorf("got error %v, want %s", err, test.want)
		}
	}
}

func TestFilesInTheConfiguration(t *testing.T) {
	hermetic(t)
	certFile, keyFile := keyPair(t)
	text := strings.NewReplacer(
		"dsn: postgres://walferry@127.0.0.1:5432/shop", "dsn_file: "+write(t, "dsn", "host=localhost"),
		"[127.0.0.1:9092]", fmt.Sprintf("[h:1]\n  tls: {enabled: true, ca_file: %[1]s, cert_file: %[1]s, key_file: %[2]s}\n"+
			"  sasl: {mechanism: PLAIN, username: u, password_file: %[2]s}", certFile, keyFile),
	).Replace(minimum)
	if config := parse(t, text); len(config.Warnings()) != 0 {
		t.Errorf("got warnings %q", config.Warnings())
	}
	text = strings.Replace(text, certFile, filepath.Join(t.TempDir(), "absent"), 1)
	if got := errorsOf(t, text); !strings.HasPrefix(got, "w.yaml:10:33: kafka.tls.ca_file cannot be read: ") {
		t.Errorf("got %s", got)
	}
}
