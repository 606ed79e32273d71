"""Simulated studies for A-E12: 280 prompts, random keys on 56 of them (20 draws that fire as often, 10 that are as selective)."""

from __future__ import annotations

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.a_e12_unalign import judge
from interp.experiments.toxicity.simulations.worlds import DRAWS, study
from interp.experiments.toxicity.unaligning import FREQUENCY, SELECTIVITY, Evidence
from interp.results.result import Verdict

KINDS = ((FREQUENCY, 20), (SELECTIVITY, 10))


def _study(rng: np.random.Generator, base_edited: float, tuned_edited: float, random: tuple[float, float] = (0.0, 0.0)) -> Evidence:
    return study(rng, 0.44, 0.19, base_edited, tuned_edited, prompts=280, random=random, kinds=KINDS, every=5)


def _verdict(rng: np.random.Generator, evidence: Evidence) -> Verdict:
    return judge(evidence, draws=DRAWS, seed=int(rng.integers(2**31)))


@simulation("A-E12", "the edit does nothing in either model", "false")
def nothing(rng: np.random.Generator) -> Verdict:
    """Base 0.44, tuned 0.19, with and without the edit."""
    return _verdict(rng, _study(rng, 0.44, 0.19))


@simulation("A-E12", "amplification: the edit adds 0.25 to the tuned and to the base model", "false")
def amplification(rng: np.random.Generator) -> Verdict:
    """All of the lost toxicity comes back, and the base model rises as much."""
    return _verdict(rng, _study(rng, 0.69, 0.44))


@simulation("A-E12", "fragility: random keys of both kinds return as much as the chosen ones", "false")
def fragility(rng: np.random.Generator) -> Verdict:
    """Any key brings the tuned model back."""
    return _verdict(rng, _study(rng, 0.44, 0.44, random=(0.0, 0.25)))


@simulation("A-E12", "half: the edit adds 0.18 to the tuned and 0.06 to the base model", "between")
def half(rng: np.random.Generator) -> Verdict:
    """About half of the lost toxicity comes back beyond what the base model rises."""
    return _verdict(rng, _study(rng, 0.50, 0.37))


@simulation("A-E12", "un-alignment as in paper A's Table 4: all of it comes back, the base model stays", "true")
def paper(rng: np.random.Generator) -> Verdict:
    """The tuned model returns to the base model's toxicity."""
    return _verdict(rng, _study(rng, 0.44, 0.445))
