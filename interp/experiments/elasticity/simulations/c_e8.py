"""Simulated studies for C-E8: six seeds, whose logarithms of |dγ_A/dγ_P| spread about a power of k with a standard deviation of 0.3.

Seeds differ in the power by 0.1, and by a factor whose logarithm has a standard deviation of 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from interp.experiments.elasticity.theory_rules import ALIGNMENT, PRETRAINING, judge_law, law_of
from interp.experiments.power import simulation
from interp.results.result import Verdict

SEEDS, KS, SPREAD, OF_SEED = 6, (1, 3, 10, 30, 100), 0.3, 0.1


def study(generator: np.random.Generator, pretraining: float, alignment: float, *, of_seed: float = OF_SEED) -> Verdict:
    """The verdict on one study in which the ratio grows with these powers of k; at the joint optimum the power is 1."""
    rows: list[dict[str, Any]] = []
    for _ in range(SEEDS):
        cells = []
        for varied, power in ((PRETRAINING, pretraining), (ALIGNMENT, alignment)):
            own, factor = power + of_seed * generator.standard_normal(), math.exp(generator.standard_normal())
            for k in KS:
                ratio = -factor * k**own * math.exp(SPREAD * generator.standard_normal())
                cells.append({"varied": varied, "k": k, "ratios": {"like P": ratio}})
        joint = [{"k": k, "residual": 1e-6, "ratios": {"like P": -k, "like A": -k}} for k in KS]
        rows.append({"joint": joint, "sequential": cells})
    return judge_law(law_of(rows))


@simulation("C-E8", "after sequential training the ratio has nothing to do with k", "false")
def none(generator: np.random.Generator) -> Verdict:
    """No law."""
    return study(generator, 0.0, 0.0)


@simulation("C-E8", "the ratio grows as k by shorter alignment, and not by more pre-training", "false")
def by_steps(generator: np.random.Generator) -> Verdict:
    """The law is about how long the alignment was."""
    return study(generator, 0.0, 1.0)


@simulation("C-E8", "the ratio grows as the square root of k, with powers that differ by 0.3 between seeds", "false")
def root(generator: np.random.Generator) -> Verdict:
    """Another law."""
    return study(generator, 0.5, 0.5, of_seed=0.3)


@simulation("C-E8", "the ratio grows as k to the power of 0.75, the bound", "between")
def bound(generator: np.random.Generator) -> Verdict:
    """At the bound of the criterion."""
    return study(generator, 0.75, 0.75)


@simulation("C-E8", "the ratio grows as k either way", "true")
def claimed(generator: np.random.Generator) -> Verdict:
    """The claim."""
    return study(generator, 1.0, 1.0)


@simulation("C-E8", "the ratio grows as k either way, with powers that differ by 0.3 between seeds", "true")
def spread(generator: np.random.Generator) -> Verdict:
    """The claim in seeds that differ."""
    return study(generator, 1.0, 1.0, of_seed=0.3)
