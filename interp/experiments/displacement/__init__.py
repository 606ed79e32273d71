"""The experiments on paper B's claims (likelihood displacement), one file each, named by their id."""

from interp.experiments.displacement import b_e1_single_token, b_e1b_unembedding

__all__ = ["b_e1_single_token", "b_e1b_unembedding"]
