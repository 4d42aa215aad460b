"""The journal: what every process did, on disk."""
