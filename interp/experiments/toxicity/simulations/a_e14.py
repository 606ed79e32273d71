"""Simulated studies for A-E14: sizes and stable ranks of runs under several strengths of the KL term, by seed.

Both spread over seeds by 2 %; with the same seed, runs of two strengths read the same pairs in the same order.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.a_e14_rule import compared, judge, judge_1
from interp.results.result import Verdict

SEEDS, SPREAD, BASE, TUNED = 4, 0.02, 0.45, 0.2
BETAS = (0.02, 1.0, 4.0)


def runs(generator: np.random.Generator, size: float, rank: float, margin: float = 2.5) -> list[dict[str, Any]]:
    """Runs of three strengths of the KL term; under the two strong ones sizes and ranks are multiplied by the factors given."""
    rows: list[dict[str, Any]] = []
    for beta in BETAS:
        strong = beta > BETAS[0]
        noise = np.exp(generator.normal(0, SPREAD, (SEEDS, 2)))
        rows += [
            {
                "optimizer": "rmsprop", "beta": beta, "seed": seed, "beta_margin": beta * margin, "kl": 0.05,
                "toxicity": TUNED + generator.normal(0, 0.01), "relative_change": noise[seed, 0] * (size if strong else 1.0),
                "stable_rank": noise[seed, 1] * (rank if strong else 1.0),
            }
            for seed in range(SEEDS)
        ]  # fmt: skip
    return rows


def without_effect_by_version_1(generator: np.random.Generator) -> Verdict:
    """Version 1 of the rule on three strengths without any effect: one run each, three seeds of one of them as the yardstick."""
    sizes, ranks = generator.standard_normal((2, 5))
    spread = [float(np.ptp(values[:3])) for values in (sizes, ranks)]
    single = {0.01: 3, 0.1: 0, 0.3: 4}
    pairs = []
    for low, high in itertools.combinations(single, 2):
        smaller, broader = sizes[single[low]] - sizes[single[high]], ranks[single[high]] - ranks[single[low]]
        pairs.append({
            "lower beta": low, "higher beta": high, "agrees": smaller > spread[0] and broader > spread[1],
            "opposes": smaller < -spread[0] or broader < -spread[1],
        })  # fmt: skip
    return judge_1(pairs)


@simulation("A-E14", "no effect of beta, where it can be seen: sizes and ranks differ by seed alone (2 %), 4 seeds", "false")
def no_effect(generator: np.random.Generator) -> Verdict:
    """The strong term changes nothing."""
    return judge(compared(runs(generator, 1.0, 1.0), BASE))


@simulation("A-E14", "the strong term makes the change 20 % larger and 20 % more concentrated", "false")
def opposite(generator: np.random.Generator) -> Verdict:
    """The opposite of the hypothesis."""
    return judge(compared(runs(generator, 1.2, 1 / 1.2), BASE))


@simulation("A-E14", "the strong term makes the change 25 % smaller and its stable rank 25 % higher, 4 seeds", "true")
def claimed(generator: np.random.Generator) -> Verdict:
    """The hypothesis."""
    return judge(compared(runs(generator, 0.75, 1.25), BASE))


@simulation("A-E14", "the strong term makes the change 10 % smaller and its stable rank 10 % higher: as much as the criterion asks", "true")
def just_claimed(generator: np.random.Generator) -> Verdict:
    """The hypothesis at the smallest effect that counts."""
    return judge(compared(runs(generator, 0.9, 1.1), BASE))


@simulation("A-E14", "beta cancels: beta times margin is 0.3 at most, and a strong term would make the change 25 % smaller", "true")
def cannot_be_seen(generator: np.random.Generator) -> Verdict:
    """The logged runs of the pair that ships, if the hypothesis were true."""
    return judge(compared(runs(generator, 1.0, 1.0, margin=0.075), BASE))
