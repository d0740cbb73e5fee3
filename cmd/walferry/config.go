package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Work with configuration files", Example: "  walferry config validate --config walferry.yaml",
		Args: noArgs, RunE: help,
	}
	validate := &cobra.Command{
		Use:     "validate",
		Short:   "Check a configuration file and report every mistake in it",
		Example: "  walferry config validate --config walferry.yaml",
		Args:    noArgs,
	}
	path := configFlag(validate)
	validate.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(*path)
		if err != nil {
			return err
		}
		for _, w := range cfg.Warnings() {
			fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s is valid: %d database(s)\n", *path, len(cfg.Databases))
		return nil
	}
	cmd.AddCommand(validate)
	return cmd
}
