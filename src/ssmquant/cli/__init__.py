"""The command line: one module a command. Heavy imports are inside the commands, so that `--help` is quick."""
