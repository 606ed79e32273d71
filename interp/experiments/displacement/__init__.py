"""The experiments on paper B's claims (likelihood displacement), one file each, named by their id."""

from interp.experiments.displacement import (
    b_e1_single_token,
    b_e1b_unembedding,
    b_e2_ranking,
    b_e2b_geometry,
    b_e3_refusals,
    b_e4_filters,
    b_e5_losses,
    b_e6_filtered_tuning,
    b_e7_neurons,
)

__all__ = [
    "b_e1_single_token", "b_e1b_unembedding", "b_e2_ranking", "b_e2b_geometry", "b_e3_refusals", "b_e4_filters", "b_e5_losses",
    "b_e6_filtered_tuning", "b_e7_neurons",
]  # fmt: skip
