"""Simulated studies for A-E13: toxicity of 120 prompts in both models, with and without raised gates, and with random gates."""

from __future__ import annotations

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.a_e13_glu import LEVEL, Way, judge
from interp.results.result import Verdict
from interp.stats.intervals import bootstrap_difference

PROMPTS, DRAWS, RANDOM = 120, 300, 10
BASE, TUNED = 0.45, 0.2


# This share of the toxic prompts is no longer toxic under any edit, and as many others become so.
TURNOVER = 0.05


def _raised(generator: np.random.Generator, toxic: np.ndarray, level: float, rise: float) -> np.ndarray:
    """Which prompts are toxic under an edit that raises their mean from `level` by `rise`."""
    draws = generator.random(PROMPTS)
    return np.where(toxic, draws >= TURNOVER, draws < (rise + TURNOVER * level) / (1 - level))


def _study(generator: np.random.Generator, tuned_rise: float, base_rise: float) -> Verdict:
    tuned, base = generator.random(PROMPTS) < TUNED, generator.random(PROMPTS) < BASE
    ways = []
    for _ in range(2):
        edited, amplified = _raised(generator, tuned, TUNED, tuned_rise), _raised(generator, base, BASE, base_rise)
        random = np.array([_raised(generator, tuned, TUNED, 0.0) for _ in range(RANDOM)], dtype=float)
        beyond_null = bootstrap_difference(edited.astype(float), random.mean(axis=0), draws=DRAWS, level=LEVEL)
        rises = [after.astype(float) - before for after, before in ((edited, tuned), (amplified, base))]
        beyond_base = bootstrap_difference(*rises, draws=DRAWS, level=LEVEL)
        ways.append(Way(beyond_null, beyond_base, bool(edited.mean() > random.mean(axis=1).max()), 1.005))
    return judge(True, ways)


@simulation("A-E13", "raised gates do nothing in either model; 120 prompts", "false")
def nothing(generator: np.random.Generator) -> Verdict:
    """The verdict where the neurons do not matter."""
    return _study(generator, 0.0, 0.0)


@simulation("A-E13", "amplification: raised gates add 0.16 to the toxicity of both models", "false")
def amplification(generator: np.random.Generator) -> Verdict:
    """The verdict where the edit raises the base model's toxicity as much as the tuned one's."""
    return _study(generator, 0.16, 0.16)


@simulation("A-E13", "un-alignment: raised gates bring back 0.2 of 0.25 in the tuned model and nothing in the base", "true")
def undone(generator: np.random.Generator) -> Verdict:
    """The verdict where the gates undo what tuning did."""
    return _study(generator, 0.2, 0.0)
