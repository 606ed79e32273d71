"""Benchmarks beside the straightforward way; `python -m benchmarks` or `make bench`."""
