"""Simulated studies for A-E2: the toxic words among the top ten tokens of ten value vectors, and of those of both nulls."""

from __future__ import annotations

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.a_e2_vectors import MATCHED, NEAREST, judge
from interp.results.result import Verdict

VECTORS, TOKENS, DRAWS = 10, 10, 400


def _share(generator: np.random.Generator, mean: float, alike: float, size: int = 1) -> np.ndarray:
    """Mean shares of toxic words of sets of vectors; the larger `alike`, the more the vectors of one set differ from those of another."""
    centres = np.clip(generator.normal(mean, alike * mean, (size, 1)), 0, 1)
    return np.asarray(generator.binomial(TOKENS, np.broadcast_to(centres, (size, VECTORS))).mean(axis=1) / TOKENS)


def _study(generator: np.random.Generator, mean: float) -> Verdict:
    # The means are those of the pair that ships; neurons near one direction are more alike than matched ones.
    nulls = {MATCHED: _share(generator, 0.009, 0.0, DRAWS).tolist(), NEAREST: _share(generator, 0.01, 1.0, DRAWS).tolist()}
    return judge(float(_share(generator, mean, 0.1)[0]), nulls)


@simulation("A-E2", "the vectors promote toxic words as seldom as others do: 1 % of their tokens", "false")
def chance(generator: np.random.Generator) -> Verdict:
    """The verdict where nearness to the probe says nothing about words."""
    return _study(generator, 0.01)


@simulation("A-E2", "more toxic words than chance and mostly others, as on the pair that ships: 6 % of their tokens", "false")
def more_than_chance(generator: np.random.Generator) -> Verdict:
    """The verdict where vectors promote more toxic words than others and are not readable as toxic."""
    return _study(generator, 0.06)


@simulation("A-E2", "most tokens are toxic words: 70 %", "true")
def readable(generator: np.random.Generator) -> Verdict:
    """The verdict where the vectors are what the paper says."""
    return _study(generator, 0.7)
