"""Simulated studies for B-E1: runs of six seeds, whose falls, changes and rises spread as runs of one setting do.

Falls and rises are probabilities drawn on the scale of logits with a standard deviation of 0.8, changes of log-probability in nats
with one of 0.5; the control's run of a seed shares half of the variance with the similar pair's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from interp.experiments.displacement.single_token_rules import PAPERS_CELL, displaced, judge_displaced
from interp.experiments.power import simulation
from interp.results.result import Verdict

SEEDS, SPREAD, NATS, GAP = 6, 0.8, 0.5, 0.06


def study(generator: np.random.Generator, fall: float, change: float, opposite: float, control: float, *, gap: float = GAP) -> Verdict:
    """The verdict on one study.

    Args:
        fall: the median of the largest fall of the preferred answer's probability.
        change: the mean change of its log-probability, in nats.
        opposite, control: the median of the opposite meaning's largest rise, in the similar and in the control pair.
    """
    rows: list[dict[str, Any]] = []
    for seed in range(SEEDS):
        shared = generator.standard_normal()
        for role, rise in (("similar", opposite), ("control", control)):
            own = (shared + generator.standard_normal()) / math.sqrt(2)
            rows.append(
                PAPERS_CELL | {
                    "role": role, "seed": seed, "falls": True, "preferred": {"decrease": _drawn(fall, generator.standard_normal())},
                    "log_change": change + NATS * generator.standard_normal(), "rise": {"opposite": _drawn(rise, own)},
                }
            )  # fmt: skip
    return judge_displaced(displaced(rows, gap))


def _drawn(median: float, normal: float) -> float:
    return 1 / (1 + math.exp(-(math.log(median / (1 - median)) + SPREAD * normal)))


@simulation("B-E1", "no displacement: the preferred answer falls by 0.01 within a run and ends 1 nat higher", "false")
def none(generator: np.random.Generator) -> Verdict:
    """The preferred answer gains."""
    return study(generator, 0.01, 1.0, 0.02, 0.02)


@simulation("B-E1", "the preferred answer falls by 0.3 from a peak, and ends 1 nat above its start", "false")
def from_a_peak(generator: np.random.Generator) -> Verdict:
    """A fall within the run that is no displacement by Definition 1."""
    return study(generator, 0.3, 1.0, 0.3, 0.05)


@simulation("B-E1", "displaced (0.3, by 2 nats), and the opposite gains 0.2 in the similar and in the control pair", "false")
def not_by_similarity(generator: np.random.Generator) -> Verdict:
    """Displacement that has nothing to do with how similar the answers are."""
    return study(generator, 0.3, -2.0, 0.2, 0.2)


@simulation("B-E1", "displaced (0.3, by 2 nats), to answers of the same meaning: the opposite gains 0.002 in both pairs", "false")
def benign(generator: np.random.Generator) -> Verdict:
    """Displacement that is not catastrophic."""
    return study(generator, 0.3, -2.0, 0.002, 0.002)


@simulation("B-E1", "a fall of 0.15 by 0.3 nats; the opposite gains 0.05, and 0.03 in the control pair", "between")
def little(generator: np.random.Generator) -> Verdict:
    """An effect near the criterion's bounds."""
    return study(generator, 0.15, -0.3, 0.05, 0.03)


@simulation(
    "B-E1",
    "as in the paper's Table 1 (OLMo, No over Never): a fall of 0.8 by 2 nats; the opposite gains 0.5, and 0.05 in the control pair",
    "true",
)
def papers(generator: np.random.Generator) -> Verdict:
    """The claim at the paper's size."""
    return study(generator, 0.8, -2.0, 0.5, 0.05)


@simulation("B-E1", "a fall of 0.3 by 1.5 nats; the opposite gains 0.2, and 0.03 in the control pair", "true")
def smaller(generator: np.random.Generator) -> Verdict:
    """The claim at a smaller size."""
    return study(generator, 0.3, -1.5, 0.2, 0.03)
