"""Simulated studies for A-E4: which of 79 first tokens lose the first place under tuning, a subtraction and their nulls."""

from __future__ import annotations

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.a_e4_continuations import Places, judge
from interp.results.result import Verdict

PROMPTS, DRAWS = 79, 300
NOISE, RANDOM = 5, 10


def _study(generator: np.random.Generator, tuned: float, subtraction: float, null: float, reach: float = 0.85) -> Verdict:
    # Some first tokens are less sure than others, whatever the change: they lose the first place more easily.
    ease = generator.beta(2.0, 2.0, PROMPTS) * 2

    def lost(share: float, draws: int | None = None) -> np.ndarray:
        odds = np.clip(share * ease, 0.0, 1.0)
        drawn = generator.random((draws or 1, PROMPTS)) < odds
        return np.asarray(drawn.mean(axis=0), dtype=float)

    stays = (generator.random(PROMPTS) < reach).astype(float)
    return judge(Places(lost(tuned), lost(null), lost(null, NOISE), stays, lost(subtraction), lost(null), lost(null, RANDOM)), draws=DRAWS)


@simulation("A-E4", "selection alone: any change takes the first place from 18 % of first tokens", "false")
def selection(generator: np.random.Generator) -> Verdict:
    """The verdict where tuning and subtraction do what random changes do."""
    return _study(generator, 0.18, 0.18, 0.18)


@simulation("A-E4", "tuning takes it from 59 %, the subtraction from as many as its nulls (18 %)", "false")
def tuning_alone(generator: np.random.Generator) -> Verdict:
    """The verdict where tuning does what is claimed and the subtraction does not."""
    return _study(generator, 0.59, 0.18, 0.18)


@simulation("A-E4", "both take it from 75 % (nulls 18 %), and the word leaves the first five on 70 %", "false")
def capability_removed(generator: np.random.Generator) -> Verdict:
    """The verdict where the toxic word is gone."""
    return _study(generator, 0.75, 0.75, 0.18, reach=0.3)


@simulation(
    "A-E4", "tuning takes it from 70 %, the subtraction from 65 %, their nulls from 18 %; it stays among the first five on 85 %", "true"
)
def both(generator: np.random.Generator) -> Verdict:
    """The verdict where the claim is true of tuning and of the subtraction."""
    return _study(generator, 0.70, 0.65, 0.18)
