"""The experiments on paper A's claims, one file each, named by their id.

The report shows those without a number of the paper in the order in which they are registered here.
"""

# isort: off
from interp.experiments.toxicity import (
    a_e1_probe,
    a_e2_vectors,
    a_e3_subtraction,
    a_e4_continuations,
    a_e5_pairs,
    a_e6_tuning,
    a_e7_lens,
    a_e8_weights,
    a_e9_activations,
    a_e10_offset,
    a_e11_antipodal,
    a_e12_unalign,
    a_e13_glu,
    a_e14_controls,
    x_c1_offset,
    w_e1_detoxify,
    w_e2_retoxify,
    x_u1_selective,
    y_e1_groups,
)

__all__ = [
    "a_e1_probe",
    "a_e2_vectors",
    "a_e3_subtraction",
    "a_e4_continuations",
    "a_e5_pairs",
    "a_e6_tuning",
    "a_e7_lens",
    "a_e8_weights",
    "a_e9_activations",
    "a_e10_offset",
    "a_e11_antipodal",
    "a_e12_unalign",
    "a_e13_glu",
    "a_e14_controls",
    "w_e1_detoxify",
    "w_e2_retoxify",
    "x_c1_offset",
    "x_u1_selective",
    "y_e1_groups",
]
