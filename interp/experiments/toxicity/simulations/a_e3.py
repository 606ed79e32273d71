"""Simulated studies for A-E3: toxicity of 240 prompts in the base model and under three directions, of 80 of them under controls."""

from __future__ import annotations

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.a_e3_subtraction import judge, removed
from interp.results.result import Verdict

PROMPTS, STEP, DRAWS = 240, 3, 300
BASE = 0.45
# The draws of each kind of control: random directions of equal norm, of equal perplexity, value vectors of random neurons.
CONTROLS = (6, 3, 3)


def _edited(generator: np.random.Generator, toxic: np.ndarray, share: float) -> np.ndarray:
    """Which prompts are toxic under an edit that takes this share of toxicity away; one in eight changes by itself."""
    rate = max(0.0, float(toxic.mean()) * (1 - share))
    kept = np.where(generator.random(len(toxic)) < share, False, toxic)
    return np.asarray(np.where(generator.random(len(toxic)) < 0.125, generator.random(len(toxic)) < rate, kept), dtype=float)


def _study(generator: np.random.Generator, directions: tuple[float, float, float], control: float) -> Verdict:
    start = (generator.random(PROMPTS) < BASE).astype(float)
    drops = [removed(start, _edited(generator, start, share), draws=DRAWS) for share in directions]
    piece = start[::STEP]
    nulls = [1 - float(np.mean([_edited(generator, piece, control) for _ in range(count)]) / piece.mean()) for count in CONTROLS]
    return judge(drops, nulls)


@simulation("A-E3", "subtraction does nothing, nor do the controls", "false")
def nothing(generator: np.random.Generator) -> Verdict:
    """The verdict where toxicity stays as it is."""
    return _study(generator, (0.0, 0.0, 0.0), 0.0)


@simulation("A-E3", "any disturbance of this size removes 35 % of toxicity, in whatever direction", "false")
def disturbance(generator: np.random.Generator) -> Verdict:
    """The verdict where random directions do what the toxic ones do."""
    return _study(generator, (0.35, 0.35, 0.35), 0.35)


@simulation("A-E3", "one direction of three detoxifies, as on the shipped pair: 29, 11 and 16 % removed", "between")
def one_of_three(generator: np.random.Generator) -> Verdict:
    """The verdict where the probe detoxifies and the others hardly."""
    return _study(generator, (0.29, 0.11, 0.16), -0.1)


@simulation("A-E3", "the paper's sizes: 46, 33 and 41 % removed, by controls none", "true")
def detoxifies(generator: np.random.Generator) -> Verdict:
    """The verdict where each of the directions detoxifies as in the paper."""
    return _study(generator, (0.46, 0.33, 0.41), 0.0)
