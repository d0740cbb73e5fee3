package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMain runs the tests or, in the child process of [TestServerDiesWithItsParent], the server that is to die.
func TestMain(m *testing.M) {
	if version := os.Getenv("SERVERS_TEST_CHILD"); version != "" {
		if err := runChild(version); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestFromEnv(t *testing.T) {
	tests := []struct {
		value string
		want  []string
	}{
		{"", nil},
		{" , ", nil},
		{"a:1", []string{"a:1"}},
		{"a:1, b:2,", []string{"a:1", "b:2"}},
	}
	for _, test := range tests {
		t.Setenv("WALFERRY_TEST_POSTGRES", test.value)
		t.Setenv("WALFERRY_TEST_KAFKA", test.value)
		if got := PostgresFromEnv(); !slices.Equal(got, test.want) {
			t.Errorf("PostgresFromEnv with %q: got %q, want %q", test.value, got, test.want)
		}
		if got := KafkaFromEnv(); !slices.Equal(got, test.want) {
			t.Errorf("KafkaFromEnv with %q: got %q, want %q", test.value, got, test.want)
		}
	}
}

// A repository without fetched servers says how to get them.
func TestMissingServers(t *testing.T) {
	repository := t.TempDir()
	pom := filepath.Join(repository, "test", "servers", "pom.xml")
	if err := os.MkdirAll(filepath.Dir(pom), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pom, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Dir(pom))
	_, postgresErr := Postgres(t.Context(), "17", PostgresOptions{})
	_, kafkaErr := Kafka(t.Context(), KafkaOptions{})
	for _, err := range []error{postgresErr, kafkaErr} {
		if err == nil || !strings.Contains(err.Error(), "make servers") {
			t.Errorf("got error %v, want a hint to run make servers", err)
		}
	}
	t.Chdir("/")
	if _, err := Kafka(t.Context(), KafkaOptions{}); err == nil || !strings.Contains(err.Error(), "not inside the repository") {
		t.Errorf("got error %v, want that the working directory is outside", err)
	}
}

// runChild starts a server, writes its pid and directory to standard output and waits to be killed.
func runChild(version string) error {
	pg, err := Postgres(context.Background(), version, PostgresOptions{})
	if err != nil {
		return err
	}
	fmt.Println(pg.process.cmd.Process.Pid, pg.scratch.dir)
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, pg.Close())
}

// The kernel ends a server whose parent was killed, and the next process removes what it left.
func TestServerDiesWithItsParent(t *testing.T) {
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), "SERVERS_TEST_CHILD=17")
	child.Stderr = os.Stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := child.StdinPipe() // what the child waits on
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var postmaster int
	var dir string
	if _, err := fmt.Fscanln(stdout, &postmaster, &dir); err != nil {
		t.Fatalf("the child has not started its server: %v", err)
	}
	if !alive(postmaster) {
		t.Fatalf("postmaster %d does not live", postmaster)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	err = until(t.Context(), func() error {
		if alive(postmaster) {
			return fmt.Errorf("postmaster %d lives", postmaster)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("want the killed child's directory to be left: %v", err)
	}
	removeAbandoned(filepath.Dir(dir))
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("stat %s: got error %v, want that it does not exist", dir, err)
	}
}
