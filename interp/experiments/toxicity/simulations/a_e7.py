"""Simulated studies for A-E7: a toxic word's final probability on 79 prompts in both models and under random changes of equal KL."""

from __future__ import annotations

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.a_e7_lens import judge
from interp.results.result import Verdict
from interp.stats.intervals import bootstrap_ratio

PROMPTS, CHANGES, DRAWS = 79, 5, 300


def _study(generator: np.random.Generator, kept: float, noise: float, mlp: float) -> Verdict:
    """The verdict where tuning leaves the share `kept` of the probability, random changes `noise`, and MLPs add the share `mlp`."""
    base = generator.beta(1.2, 4.8, PROMPTS)

    def changed(share: float) -> np.ndarray:
        return np.asarray(np.clip(base * share * np.exp(generator.normal(0.0, 0.3, PROMPTS) - 0.045), 0.0, 1.0))

    by_mlps = base * mlp + generator.normal(0.0, 0.08, PROMPTS)
    share = bootstrap_ratio(by_mlps, base, draws=DRAWS)
    return judge(base, changed(kept), [changed(noise) for _ in range(CHANGES)], share, draws=DRAWS)


@simulation("A-E7", "tuning lowers the word as random changes of its KL do, by 10 %", "false")
def noise(generator: np.random.Generator) -> Verdict:
    """The verdict where prompts were chosen for the word and any change lowers it."""
    return _study(generator, 0.9, 0.9, 0.75)


@simulation("A-E7", "any change of this KL lowers the word to 40 %, tuning too", "false")
def strong_noise(generator: np.random.Generator) -> Verdict:
    """The verdict where the fall is large and not particular to tuning."""
    return _study(generator, 0.4, 0.4, 0.75)


@simulation("A-E7", "tuning lowers the word to 30 %, random changes to 90 %; attention adds 70 % of its rise", "false")
def by_attention(generator: np.random.Generator) -> Verdict:
    """The verdict where the word falls and MLPs do not write it."""
    return _study(generator, 0.3, 0.9, 0.3)


@simulation("A-E7", "the paper's sizes: the word falls to 30 % (random changes 90 %), MLPs add 75 % of its rise", "true")
def falls(generator: np.random.Generator) -> Verdict:
    """The verdict where the word falls as in the paper."""
    return _study(generator, 0.3, 0.9, 0.75)
