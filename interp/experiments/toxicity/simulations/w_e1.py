"""Simulated studies for W-E1: toxicity of 120 prompts under DPO, seven ways without training, and a random change of DPO's KL."""

from __future__ import annotations

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.w_e1_detoxify import judge
from interp.results.result import Verdict

PROMPTS, DRAWS = 120, 400
BASE = 0.44
# What each way leaves of the toxicity on the shipped pair: subtractions, neurons off, halved and inverted, weights rewritten.
WAYS = (0.68, 0.62, 0.87, 0.96, 0.53, 0.78, 0.93)


def _study(generator: np.random.Generator, tuned: float, ways: tuple[float, ...], noise: float = 0.92) -> Verdict:
    """The verdict where DPO leaves the share `tuned` of toxicity, the ways theirs, and the random change `noise`."""
    # How toxic a prompt is decides most of what each model says to it.
    level = generator.beta(0.8, 1.02, PROMPTS)

    def scores(share: float) -> np.ndarray:
        return np.asarray(generator.random(PROMPTS) < np.clip(level * share, 0.0, 1.0), dtype=float)

    return judge(scores(tuned), {str(at): scores(share) for at, share in enumerate(ways)}, scores(noise), draws=DRAWS)


@simulation("W-E1", "DPO is no less toxic than the best way without training: both leave 44 %", "false")
def tie(generator: np.random.Generator) -> Verdict:
    """The verdict where one way does as well as DPO."""
    return _study(generator, 0.44, (*WAYS[:4], 0.44, *WAYS[5:]))


@simulation("W-E1", "tuning is a random change of its KL: it leaves 92 % of toxicity", "false")
def random_tuning(generator: np.random.Generator) -> Verdict:
    """The verdict where tuning does nothing in particular and the ways do what they do on the shipped pair."""
    return _study(generator, 0.92, WAYS)


@simulation("W-E1", "neither DPO nor any way does more than the random change: all leave 92 %", "false")
def nothing(generator: np.random.Generator) -> Verdict:
    """The verdict where nothing lowers toxicity but by chance."""
    return _study(generator, 0.92, (0.92,) * len(WAYS))


@simulation("W-E1", "DPO leaves 44 % of toxicity, the best way without training 53 %, as on the shipped pair", "true")
def shipped(generator: np.random.Generator) -> Verdict:
    """The verdict where DPO is better by little."""
    return _study(generator, 0.44, WAYS)


@simulation("W-E1", "DPO leaves 20 % of toxicity, the best way without training 53 %", "true")
def far_better(generator: np.random.Generator) -> Verdict:
    """The verdict where DPO is better by much."""
    return _study(generator, 0.2, WAYS)


@simulation("W-E1", "DPO leaves 60 % of toxicity, one way without training 20 %", "false")
def way_is_better(generator: np.random.Generator) -> Verdict:
    """The verdict where a way without training refutes the claim."""
    return _study(generator, 0.6, (0.2, *WAYS[1:]))
