"""The rules of B-E1 and B-E1b, as functions of one number for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from interp.experiments.displacement.criteria import CRITERIA
from interp.results.result import Verdict
from interp.stats.intervals import Interval
from interp.stats.repeats import repeats_mean

Answer = Literal["yes", "no", "open"]
B_E1: Mapping[str, float] = CRITERIA["B-E1"][-1].thresholds
B_E1B: Mapping[str, float] = CRITERIA["B-E1b"][-1].thresholds
PAPERS_CELL = {"stage": "sft", "objective": "dpo", "optimizer": "rmsprop"}


@dataclass(frozen=True)
class Displaced:
    """The three numbers of B-E1, each a mean over seeds with its Student interval.

    Attributes:
        fall: the largest fall of the preferred answer's probability from an earlier value.
        change: the change of its log-probability from start to end, in nats (Definition 1).
        opposite: the largest rise of the opposite meaning's probability, the similar pair's minus the control's, paired by seed.
        gap: the cosine of the similar pair's unembeddings minus that of the control's.
    """

    fall: Interval
    change: Interval
    opposite: Interval
    gap: float

    @property
    def runs(self) -> int:
        """The fewest runs that one of the three numbers is a mean of."""
        return min(self.fall.n, self.change.n, self.opposite.n)


def displaced(runs: Sequence[Mapping[str, Any]], gap: float) -> Displaced:
    """The numbers of B-E1 from the rows of `training.studies.displacement`; runs whose loss rises at any step are left out."""
    usable = [run for run in runs if run["falls"] and is_papers(run)]
    similar, control = ({run["seed"]: run for run in usable if run["role"] == role} for role in ("similar", "control"))
    both = sorted(similar.keys() & control.keys())
    return Displaced(
        repeats_mean([run["preferred"]["decrease"] for run in similar.values()]),
        repeats_mean([run["log_change"] for run in similar.values()]),
        repeats_mean([similar[seed]["rise"]["opposite"] - control[seed]["rise"]["opposite"] for seed in both]),
        gap,
    )


def is_papers(run: Mapping[str, Any]) -> bool:
    """Whether a run is in the paper's setting: after SFT, DPO with RMSprop."""
    return all(run[name] == value for name, value in PAPERS_CELL.items())


def judge_displaced(numbers: Displaced) -> Verdict:
    """The verdict of B-E1."""
    if numbers.runs < B_E1["runs"] or numbers.gap < B_E1["gap"]:
        return "inconclusive"
    parts = answers(numbers)
    return "fails" if "no" in parts.values() else "holds" if set(parts.values()) == {"yes"} else "inconclusive"


def answers(numbers: Displaced) -> dict[str, Answer]:
    """Whether each of the three parts of B-E1 is so, is refuted, or is open."""
    fall, change, opposite = numbers.fall, numbers.change, numbers.opposite
    return {
        "fall": "no" if fall.high < B_E1["fall"] else "yes" if fall.low > B_E1["fall"] else "open",
        "change": "no" if change.low > 0 else "yes" if change.high < 0 else "open",
        "opposite": "no" if opposite.high < B_E1["negligible"] else "yes" if opposite.low > 0 else "open",
    }


@dataclass(frozen=True)
class Ordered:
    """The numbers of B-E1b, each a mean over seeds (of the means over pairs and stages) with its Student interval.

    Attributes:
        order: the rank correlation with `<W_z, W_+ - W_->`.
        beyond: the same minus the quantile of random pairs of equal cosine.
        lead: the share of the tokens that gain most probability that Theorem 5 names, minus the share that squeezing names.
    """

    order: Interval
    beyond: Interval
    lead: Interval


def ordered(first_steps: Sequence[Mapping[str, Any]]) -> Ordered:
    """The numbers of B-E1b from the rows of `training.studies.displacement`. Only seeds that have all cells of the study count."""
    frame = pd.DataFrame(first_steps)
    if frame.empty:
        return Ordered(*[repeats_mean([])] * 3)
    frame["beyond"] = frame["order"] - frame["order_random"]
    frame["lead"] = frame["share"] - frame["share_squeezing"]
    count = frame.groupby("seed").size()
    whole = frame[frame["seed"].isin(count.index[count == count.max()])]
    means = whole.groupby("seed")[["order", "beyond", "lead"]].mean()
    return Ordered(*(repeats_mean(np.asarray(means[name])) for name in ("order", "beyond", "lead")))


def judge_ordered(numbers: Ordered) -> Verdict:
    """The verdict of B-E1b."""
    if numbers.beyond.n < B_E1B["seeds"]:
        return "inconclusive"
    if numbers.beyond.high < 0 or numbers.lead.high < 0:
        return "fails"
    return "holds" if numbers.beyond.low > 0 and numbers.lead.low > 0 else "inconclusive"
