"""The rule of C-E8, as a function of one slope for each seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from interp.experiments.elasticity.criteria import CRITERIA
from interp.results.result import Verdict, number
from interp.stats.intervals import Interval
from interp.stats.repeats import repeats_mean

Rows = Sequence[Mapping[str, Any]]
Answer = Literal["yes", "no", "open"]
C_E8 = CRITERIA["C-E8"][-1].thresholds
# The two ways in which k grows, as the rows name them.
PRETRAINING, ALIGNMENT = "more pre-training", "shorter alignment"
# A ratio that is nearer to 0 has no logarithm of use.
LEAST = 1e-9


@dataclass(frozen=True)
class Law:
    """The numbers of C-E8.

    Attributes:
        pretraining, alignment: the slope of log |dγ_A/dγ_P| against log k after sequential training, by how k grows, over seeds.
        joint: the same at the joint optimum.
        joint_apart: how far the slope of a seed is from 1 there at most, and `residual` the largest stationarity residual.
    """

    pretraining: Interval
    alignment: Interval
    joint: Interval
    joint_apart: float
    residual: float

    @property
    def is_measured(self) -> bool:
        """Whether the measurement finds the law where it is so by identity."""
        return self.joint_apart <= C_E8["joint"] and self.residual < C_E8["residual"]

    @property
    def answers(self) -> dict[str, Answer]:
        """By how k grows whether the law is so, is refuted, or is open."""
        return {PRETRAINING: answer(self.pretraining), ALIGNMENT: answer(self.alignment)}


def answer(slope: Interval) -> Answer:
    """Whether a slope is 1 within the bounds of the criterion."""
    low, high = 1 - C_E8["slope"], 1 + C_E8["slope"]
    if slope.low > high or slope.high < low:
        return "no"
    return "yes" if low < slope.low and slope.high < high else "open"


def law_of(rows: Rows) -> Law:
    """The numbers of C-E8 from the rows of `training.studies.elasticity_theory`."""
    by_seed = [[slope_of(row["joint"], name) for name in ("like P", "like A")] for row in rows]
    grown = {
        varied: [slope_of([cell for cell in row["sequential"] if cell["varied"] == varied], "like P") for row in rows]
        for varied in (PRETRAINING, ALIGNMENT)
    }
    apart = [abs(slope - 1) for both in by_seed for slope in both]
    residuals = [number(cell["residual"]) for row in rows for cell in row["joint"]]
    return Law(
        repeats_mean(grown[PRETRAINING]), repeats_mean(grown[ALIGNMENT]), repeats_mean([float(np.mean(both)) for both in by_seed]),
        float(np.max(apart)) if apart else math.nan, float(np.max(residuals)) if residuals else math.nan,
    )  # fmt: skip


def slope_of(cells: Rows, name: str) -> float:
    """The slope of log |dγ_A/dγ_P| against log k over cells, under data of this name; NaN where a ratio does not exist."""
    ratios = [abs(number(cell["ratios"][name])) for cell in cells]
    logs = np.log(np.maximum(ratios, LEAST))
    return float(np.polyfit(np.log([cell["k"] for cell in cells]), logs, 1)[0]) if np.isfinite(logs).all() else math.nan


def judge_law(law: Law) -> Verdict:
    """The verdict of C-E8."""
    if law.pretraining.n < C_E8["seeds"] or not law.is_measured:
        return "inconclusive"
    answers = set(law.answers.values())
    return "fails" if "no" in answers else "holds" if answers == {"yes"} else "inconclusive"
