package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// Load returns the TLS settings, at least TLS 1.2, or nil when TLS is off. It reads the files anew. An empty ServerName
// is left for the dialer to fill in. The result is the caller's.
func (t *TLS) Load() (*tls.Config, error) {
	config, fault := t.load()
	if fault != nil {
		return nil, fmt.Errorf("kafka.tls.%s %w", fault.key, fault.err)
	}
	return config, nil
}

func (t *TLS) load() (*tls.Config, *fault) {
	if !t.Enabled {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, InsecureSkipVerify: t.InsecureSkipVerify}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, &fault{"ca_file", fmt.Errorf("cannot be read: %w", err)}
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &fault{"ca_file", errors.New("holds no PEM certificate")}
		}
	}
	switch {
	case t.CertFile == "" && t.KeyFile == "":
		return config, nil
	case t.KeyFile == "":
		return nil, &fault{"key_file", errors.New("is required with cert_file")}
	case t.CertFile == "":
		return nil, &fault{"cert_file", errors.New("is required with key_file")}
	}
	certificate, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, &fault{"cert_file", fmt.Errorf("and key_file cannot be used: %w", err)}
	}
	config.Certificates = []tls.Certificate{certificate}
	return config, nil
}

// Load returns what authenticates to Kafka, or three empty texts when SASL is off. It reads password_file anew.
func (s *SASL) Load() (mechanism, username, password string, err error) {
	if s.Mechanism == "" {
		return "", "", "", nil
	}
	password, fault := s.secret()
	if fault != nil {
		return "", "", "", fmt.Errorf("kafka.sasl.%s %w", fault.key, fault.err)
	}
	return s.Mechanism, s.Username, password, nil
}

func (s *SASL) secret() (string, *fault) {
	if s.PasswordFile != "" {
		return readSecret("password_file", s.PasswordFile)
	}
	return s.Password.Reveal(), nil
}
