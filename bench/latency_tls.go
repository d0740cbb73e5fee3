package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/walferry/walferry/internal/servers"
)

// latencyTLS is how clients trust the servers. The zero value is no TLS.
type latencyTLS struct {
	file   string      // the authority's certificate, for walferry
	client *tls.Config // for clients in this process
}

// measureWithTLS measures the blocks with TLS everywhere: to Postgres, and to a broker of its
// own that has a listener for it.
func measureWithTLS(ctx context.Context, t *testbed, pg *servers.PG, plan latencyPlan, blocks []latencyBlock, report func(string)) (_ []Latency, err error) {
	certificate, key, err := selfSigned("127.0.0.1")
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	trust := latencyTLS{file: filepath.Join(t.dir, "servers.crt"), client: &tls.Config{RootCAs: x509.NewCertPool()}}
	trust.client.RootCAs.AppendCertsFromPEM(certificate)
	if err := os.WriteFile(trust.file, certificate, 0o600); err != nil {
		return nil, err
	}
	if err := pg.SetTLS(ctx, string(certificate), string(key), ""); err != nil {
		return nil, err
	}
	options := kafkaOptions()
	options.Listeners = map[string]string{"TLS": "SSL"}
	options.Properties = map[string]string{
		"listener.name.tls.ssl.keystore.type":              "PEM",
		"listener.name.tls.ssl.keystore.certificate.chain": string(certificate),
		"listener.name.tls.ssl.keystore.key":               string(key),
	}
	broker, err := servers.Kafka(ctx, options)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, broker.Close()) }()
	const database = "latency_tls"
	site, err := newLatencySite(ctx, t, pg, database, verifyFull(pg.DSN(database), trust.file), broker.ListenerAddr("TLS"), trust)
	if err != nil {
		return nil, err
	}
	defer site.close()
	if err := site.warm(ctx, plan.jit); err != nil {
		return nil, err
	}
	return site.measureAll(ctx, blocks, report)
}

// verifyFull returns the connection string with a server that must prove who it is.
func verifyFull(dsn, ca string) string {
	u, err := url.Parse(dsn)
	if err != nil {
		panic(err) // package servers has made it
	}
	u.RawQuery = "sslmode=verify-full&sslrootcert=" + url.PathEscape(ca) // which, unlike QueryEscape, leaves no "+" for spaces
	return u.String()
}

// selfSigned makes a certificate for the host that is its own authority. The key is PKCS #8, the
// one form that Java reads too.
func selfSigned(host string) (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "walferry bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.ParseIP(host)},
		IsCA:        true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return certificate, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}
