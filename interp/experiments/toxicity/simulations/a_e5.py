"""Simulated studies for A-E5: perplexity, length and a second scorer's toxicity of the two sides of preference pairs."""

from __future__ import annotations

import math

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.a_e5_pairs import judge
from interp.results.result import Verdict

# The manifest measures perplexity over so many pairs; a side's mean loss per token varies by so much from pair to pair, in nats.
PAIRS, LOSS, SPREAD = 400, 3.1, 0.6


def _study(generator: np.random.Generator, fluency: float, length: float, gap: float | None) -> Verdict:
    chosen, rejected = (generator.normal(LOSS + math.log(ratio), SPREAD, PAIRS).mean() for ratio in (1.0, fluency))
    tokens = [float(generator.normal(20 * ratio, 3, PAIRS).mean()) for ratio in (1.0, length)]
    scores = math.nan if gap is None else float(generator.normal(gap, 0.4, PAIRS).mean())
    ratios = (math.exp(rejected - chosen), tokens[1] / tokens[0])
    apart, longer = (max(ratio, 1 / ratio) for ratio in ratios)
    return judge(apart, longer, scores)


@simulation("A-E5", "the rejected side is less fluent: 1.6 times the perplexity; 400 pairs, no second scorer", "false")
def less_fluent(generator: np.random.Generator) -> Verdict:
    """The verdict on pairs from which fluency can be learnt."""
    return _study(generator, 1.6, 1.0, None)


@simulation("A-E5", "the rejected side is longer: 1.5 times", "false")
def longer(generator: np.random.Generator) -> Verdict:
    """The verdict on pairs from which length can be learnt."""
    return _study(generator, 1.0, 1.5, None)


@simulation("A-E5", "only the scorer that filtered the pairs sees a difference in toxicity", "false")
def one_scorer(generator: np.random.Generator) -> Verdict:
    """The verdict where the second scorer finds both sides equally toxic."""
    return _study(generator, 1.0, 1.0, 0.0)


@simulation("A-E5", "sides alike in fluency and length, a second scorer's difference of 0.5", "true")
def alike(generator: np.random.Generator) -> Verdict:
    """The verdict on pairs as they should be."""
    return _study(generator, 1.05, 1.0, 0.5)
