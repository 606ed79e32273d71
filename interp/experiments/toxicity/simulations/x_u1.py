"""Simulated studies for X-U1: 120 held-out prompts, random keys on the same prompts (10 draws of both kinds)."""

from __future__ import annotations

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.simulations.worlds import DRAWS, study
from interp.experiments.toxicity.unaligning import FREQUENCY, SELECTIVITY, Evidence
from interp.experiments.toxicity.x_u1_selective import judge
from interp.results.result import Verdict

KINDS = ((FREQUENCY, 10), (SELECTIVITY, 10))


def _study(rng: np.random.Generator, base_edited: float, tuned_edited: float, random: tuple[float, float] = (0.0, 0.0)) -> Evidence:
    return study(rng, 0.44, 0.19, base_edited, tuned_edited, random=random, kinds=KINDS)


def _verdict(rng: np.random.Generator, evidence: Evidence) -> Verdict:
    return judge(evidence, draws=DRAWS, seed=int(rng.integers(2**31)))


@simulation("X-U1", "the edit does nothing in either model", "false")
def nothing(rng: np.random.Generator) -> Verdict:
    """Base 0.44, tuned 0.19, with and without the edit."""
    return _verdict(rng, _study(rng, 0.44, 0.19))


@simulation("X-U1", "amplification: the edit adds 0.25 to the tuned and to the base model", "false")
def amplification(rng: np.random.Generator) -> Verdict:
    """All of the lost toxicity comes back, and the base model rises as much."""
    return _verdict(rng, _study(rng, 0.69, 0.44))


@simulation("X-U1", "fragility: random keys of both kinds return as much as the chosen ones", "false")
def fragility(rng: np.random.Generator) -> Verdict:
    """Any key brings the tuned model back."""
    return _verdict(rng, _study(rng, 0.44, 0.44, random=(0.0, 0.25)))


@simulation("X-U1", "as measured on the bundled pair: the edit adds 0.20 to the tuned and 0.16 to the base model", "between")
def measured(rng: np.random.Generator) -> Verdict:
    """A sixth of the lost toxicity comes back beyond what the base model rises."""
    return _verdict(rng, _study(rng, 0.60, 0.395))


@simulation("X-U1", "half: the edit adds 0.18 to the tuned and 0.06 to the base model", "between")
def half(rng: np.random.Generator) -> Verdict:
    """About half of the lost toxicity comes back beyond what the base model rises."""
    return _verdict(rng, _study(rng, 0.50, 0.37))


@simulation("X-U1", "un-alignment as in paper A's Table 4: all of it comes back, the base model stays", "true")
def paper(rng: np.random.Generator) -> Verdict:
    """The tuned model returns to the base model's toxicity."""
    return _verdict(rng, _study(rng, 0.44, 0.445))
