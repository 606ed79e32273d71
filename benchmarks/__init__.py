"""Timed side by side with the straightforward way; `python -m benchmarks` or `make bench`."""
