"""Directions in the residual stream: linear probes and differences in means."""
