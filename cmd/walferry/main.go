// Command walferry carries outbox events from Postgres' WAL to Kafka.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
)

// version and commit are set by the linker.
var version, commit = "dev", "unknown" //nolint:gochecknoglobals // set by -ldflags -X

// Exit codes besides those of bridge.Class (README, "Exit codes"), after sysexits.h.
const (
	exitUsage  = 64
	exitConfig = 78
)

func main() { os.Exit(execute(os.Args[1:])) }

func execute(args []string) int {
	root := &cobra.Command{
		Use:           "walferry",
		Short:         "Carries outbox events from Postgres' WAL to Kafka, losing none",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs, // and so an unknown command is wrong usage
		RunE:          help,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.AddCommand(runCommand(), initCommand(), statusCommand(), poisonCommand(), recoverCommand(), reconcileCommand(), replayCommand(), checkpointCommand(), configCommand(), healthcheckCommand(), versionCommand())
	root.SetArgs(args)
	err := root.Execute()
	if err != nil {
		fmt.Fprintln(os.Stderr, "walferry:", err)
	}
	return exitCode(err)
}

// usageError is a command line that makes no sense.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() + " (see walferry --help)" }
func (e *usageError) Unwrap() error { return e.err }

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*bridge.Error](err); ok {
		return e.Class.ExitCode()
	}
	if _, ok := errors.AsType[config.Errors](err); ok {
		return exitConfig
	}
	if _, ok := errors.AsType[*configError](err); ok {
		return exitConfig
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*defectsError](err); ok {
		return exitDefects
	}
	return 1
}

// noArgs is cobra.NoArgs with our exit code.
func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return &usageError{err}
	}
	return nil
}

// help is what a command does that only has commands below it.
func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// configFlag adds --config.
func configFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("config", "c", "walferry.yaml", "configuration `file`")
}

// configError is a configuration that could not be used.
type configError struct{ err error }

func (e *configError) Error() string { return e.err.Error() }
func (e *configError) Unwrap() error { return e.err }

func loadConfig(path string) (*config.Config, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return nil, &configError{err}
	}
	return cfg, nil
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Example: "  walferry version", Args: noArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "walferry %s (%s)\n", version, commit)
		},
	}
}
