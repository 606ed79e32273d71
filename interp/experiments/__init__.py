"""Experiments: one file per claim of a paper, each with its question, its criterion and its null.

Importing this package registers them; `interp.experiments.run.run_report` runs them in order.
"""

from interp.experiments import (
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
    causal_offset,
    ways_detoxify,
    ways_retoxify,
    x_u1_selective,
    y_groups,
)
from interp.experiments.registry import EXPERIMENTS, Context, Experiment, Finding, experiment, find_experiments

__all__ = [
    "EXPERIMENTS", "Context", "Experiment", "Finding", "a_e1_probe", "a_e2_vectors", "a_e3_subtraction", "a_e4_continuations",
    "a_e5_pairs", "a_e6_tuning", "a_e7_lens", "a_e8_weights", "a_e9_activations", "a_e10_offset", "a_e11_antipodal", "a_e12_unalign",
    "a_e13_glu", "a_e14_controls", "causal_offset", "experiment", "find_experiments", "ways_detoxify", "ways_retoxify", "x_u1_selective",
    "y_groups",
]  # fmt: skip
