"""Simulated studies for W-E2: three ways on 120 held-out prompts, with 3, 3 and 2 random controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.simulations.worlds import DRAWS, study
from interp.experiments.toxicity.w_e2_retoxify import CONTROL, judge
from interp.results.result import Verdict

CONTROLS = (3, 3, 2)


def _verdict(rng: np.random.Generator, edited: Sequence[tuple[float, float]], random: tuple[float, float] = (0.0, 0.0)) -> Verdict:
    """The verdict where each way gives the base and the tuned model these mean scores."""
    ways = [study(rng, 0.44, 0.19, *means, random=random, kinds=((CONTROL, count),)) for means, count in zip(edited, CONTROLS, strict=True)]
    return judge(ways, draws=DRAWS, seed=int(rng.integers(2**31)))


@simulation("W-E2", "no way does anything in either model", "false")
def nothing(rng: np.random.Generator) -> Verdict:
    """Base 0.44, tuned 0.19, with and without each change."""
    return _verdict(rng, [(0.44, 0.19)] * 3)


@simulation("W-E2", "amplification: every way adds 0.17 to the tuned and to the base model", "false")
def amplification(rng: np.random.Generator) -> Verdict:
    """Two thirds of the lost toxicity come back by every way, and the base model rises as much."""
    return _verdict(rng, [(0.61, 0.36)] * 3)


@simulation("W-E2", "fragility: random changes of the same price return as much", "false")
def fragility(rng: np.random.Generator) -> Verdict:
    """Any change of this price brings the tuned model back."""
    return _verdict(rng, [(0.44, 0.40)] * 3, random=(0.0, 0.21))


@simulation("W-E2", "un-alignment by one way of three: all of it comes back and the base model stays; the others amplify", "true")
def one(rng: np.random.Generator) -> Verdict:
    """One way returns the tuned model to the base model's toxicity."""
    return _verdict(rng, [(0.44, 0.44), (0.61, 0.36), (0.61, 0.36)])
