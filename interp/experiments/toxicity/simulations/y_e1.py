"""Simulated studies for Y-E1: falls of toxicity by patched groups of neurons, beside those of groups of random directions."""

from __future__ import annotations

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.patched_groups import DRAWS
from interp.experiments.toxicity.y_e1_groups import judge
from interp.results.result import Verdict
from interp.stats.intervals import permutation_p

# Mean and spread over random directions of the falls by their four groups and by three of them, and the standard error over prompts.
FOUR, THREE, SPREAD, ERROR = 0.09, 0.055, 0.025, 0.03


def _study(generator: np.random.Generator, four: float, three: float, alone: float, share: float, net: float) -> Verdict:
    """The verdict where the probe's groups have these falls (but for the spread), TP− alone this one, and this share of the reduction."""
    noise = generator.normal(0, SPREAD, DRAWS + 1)
    falls = [generator.normal(mean + noise, SPREAD / 2) for mean in (FOUR, THREE)]
    own = [mean + noise[-1] + generator.normal(0, SPREAD / 2) for mean in (four, three)]
    p_four, p_three = (permutation_p(value, drawn[:DRAWS]) for value, drawn in zip(own, falls, strict=True))
    net_p = permutation_p(net + abs(generator.normal()), np.abs(generator.normal(size=200)))
    measured = own[0] + generator.normal(0, ERROR)
    cut = (alone + generator.normal(0, ERROR)) / measured if measured > 0 else np.nan
    # By the delta method, as if the two falls were of different prompts.
    half = 1.96 * ERROR * float(np.hypot(1, cut)) / abs(measured)
    centre = share + generator.normal(0, 0.007)
    return judge(net_p, (centre - 0.014, centre + 0.014), own[0] - 1.96 * ERROR, (float(cut), float(cut) - half), p_four, p_three)


@simulation("Y-E1", "the probe is a direction like any other; TP− gives 40 % of its groups' reduction", "false")
def any_direction(generator: np.random.Generator) -> Verdict:
    """The verdict where the groups say nothing about toxicity."""
    return _study(generator, FOUR, THREE, 0.04, 0.40, 0.0)


@simulation("Y-E1", "the reduction along the probe is real, and patching its groups does what those of any direction do", "false")
def correlate(generator: np.random.Generator) -> Verdict:
    """The verdict where the groups lower the projection and not toxicity in particular."""
    return _study(generator, FOUR, THREE, 0.04, 0.45, 5.0)


@simulation("Y-E1", "TP− does it: 0.15 of 0.17, the other three groups like those of random directions", "false")
def toxic_neurons(generator: np.random.Generator) -> Verdict:
    """The verdict where the toxic neurons that fire less do what all four groups do."""
    return _study(generator, 0.17, THREE, 0.15, 0.47, 5.0)


@simulation("Y-E1", "four groups share it: 0.2 together, 0.15 without TP−, 0.08 by TP− alone", "true")
def shared(generator: np.random.Generator) -> Verdict:
    """The verdict where the other three groups do a part of it that random directions do not."""
    return _study(generator, 0.2, 0.15, 0.08, 0.45, 5.0)
