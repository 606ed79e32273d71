"""Simulated studies for B-E2b: 200 pairs, of which CHES is defined for 150.

The share of positive inner products of a pair is a beta variable with a precision of 20; CHES and the difference of lengths are normal with
a given correlation.
"""

from __future__ import annotations

import numpy as np

from interp.experiments.displacement.b_e2b_geometry import LEVEL, Geometry, judge
from interp.experiments.power import simulation
from interp.results.result import Verdict
from interp.stats.intervals import bootstrap_means, bootstrap_rank_correlation

PAIRS, DEFINED, PRECISION = 200, 150, 20.0


def study(generator: np.random.Generator, positive: float, correlation: float) -> Verdict:
    """The verdict on one study with this mean share and this correlation."""
    shares = generator.beta(positive * PRECISION, (1 - positive) * PRECISION, (PAIRS, 3))
    first, other, alpha = bootstrap_means(shares, draws=400, seed=0, level=LEVEL)
    lengths = generator.standard_normal(DEFINED)
    scores = correlation * lengths + np.sqrt(1 - correlation**2) * generator.standard_normal(DEFINED)
    return judge(Geometry(first, other, alpha, bootstrap_rank_correlation(scores, lengths, draws=200), other))


@simulation("B-E2b", "90 % positive, and CHES has nothing to do with lengths", "false")
def nothing(generator: np.random.Generator) -> Verdict:
    """Neither statement is true."""
    return study(generator, 0.90, 0.0)


@simulation("B-E2b", "98 % positive, and CHES has nothing to do with lengths", "false")
def no_length(generator: np.random.Generator) -> Verdict:
    """One statement is true."""
    return study(generator, 0.98, 0.0)


@simulation("B-E2b", "95 % positive, no more, and a correlation of 0.5", "false")
def at_the_bound(generator: np.random.Generator) -> Verdict:
    """The share lies at the bound."""
    return study(generator, 0.95, 0.5)


@simulation("B-E2b", "97 % positive, and a correlation of 0.3", "true")
def smaller(generator: np.random.Generator) -> Verdict:
    """The claim at a smaller size."""
    return study(generator, 0.97, 0.3)


@simulation("B-E2b", "99 % positive, and a correlation of 0.6", "true")
def claimed(generator: np.random.Generator) -> Verdict:
    """The claim."""
    return study(generator, 0.99, 0.6)
