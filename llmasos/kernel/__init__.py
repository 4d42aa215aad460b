"""Processes, context memory, scheduling, cores: everything that decides and computes."""
