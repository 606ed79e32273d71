"""Simulated studies for A-E8: how far toxic keys and values moved among all, beside sets of neurons near random directions."""

from __future__ import annotations

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.a_e8_weights import DIRECTIONS, judge
from interp.results.result import Verdict
from interp.stats.intervals import permutation_p

# Standard deviations of the mean percentile of a set of 128 and of 16 neurons near one random direction, which move together.
SPREADS = {128: 3.5, 16: 9.0}


def _study(generator: np.random.Generator, keys: dict[int, float], cosine: float = 0.9999) -> Verdict:
    """The verdict where toxic values are like others, and the mean percentile of toxic keys is as given for each set."""
    p_values = []
    for size, spread in SPREADS.items():
        for centre in (keys[size], 50.0):
            null = generator.normal(50, spread, DIRECTIONS)
            p_values.append(permutation_p(float(generator.normal(centre, spread)), null))
    return judge([0.9999, cosine, 0.9999], 1.0, p_values)


@simulation("A-E8", "toxic keys moved more than others, as on the pair that ships: 64 % for 128, 83 % for 16", "false")
def keys_moved(generator: np.random.Generator) -> Verdict:
    """The verdict where tuning acts on the toxic neurons' keys in particular."""
    return _study(generator, {128: 64.0, 16: 83.0})


@simulation("A-E8", "toxic values rewritten: cosine 0.9", "false")
def rewritten(generator: np.random.Generator) -> Verdict:
    """The verdict where tuning removed what it is said to bypass."""
    return _study(generator, {128: 50.0, 16: 50.0}, cosine=0.9)


@simulation("A-E8", "all weights move a little, toxic neurons no more than others", "true")
def all_alike(generator: np.random.Generator) -> Verdict:
    """The verdict where no neuron is singled out."""
    return _study(generator, {128: 50.0, 16: 50.0})
