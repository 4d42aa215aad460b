"""The shell's verbs, each written once for the command line, the interactive shell and scripts."""
