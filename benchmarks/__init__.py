"""What is timed, each against a named peer: `python -m benchmarks.NAME [--json] [--quick]`."""
