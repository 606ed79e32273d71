"""The rule of B-E3 on a study of refusals, as functions of one number for each run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.data.requests import Kind
from interp.errors import UserError
from interp.experiments.displacement.criteria import CRITERIA
from interp.results.result import Verdict
from interp.stats.intervals import Interval
from interp.stats.repeats import repeats_mean

B_E3 = CRITERIA["B-E3"][-1].thresholds
# The names of the ways of tuning; `random` may stand several times in a run, and its mean counts.
BEFORE, ALL, WITH_SFT, GOLD = "before", "all pairs", "with an SFT term", "fixed refusals chosen"
LOW, HIGH, MIXED, RANDOM = "lowest ln-CHES", "highest ln-CHES", "one side refuses", "random"
ALIKE, FEW_STEPS = "both sides alike", "all pairs, few steps"
ARMS = (BEFORE, ALL, WITH_SFT, GOLD, FEW_STEPS, LOW, HIGH, MIXED, ALIKE, RANDOM)
# The splits whose requests decide, by the version of the criterion.
DECIDES = {1: "held-out", 2: "held-out", 3: "train"}
# How a chat model is asked, as its study says it.
CHAT = "chat template"


KINDS: tuple[Kind, Kind] = ("unsafe", "benign")


def decided_by(version: int) -> tuple[str, str]:
    """The names of the unsafe and of the benign requests that decide under a version of the criterion."""
    return f"unsafe {DECIDES[version]}", f"benign {DECIDES[version]}"


# Those of the version in force.
UNSAFE, BENIGN = decided_by(3)


@dataclass(frozen=True)
class Refusals:
    """The numbers of B-E3, shares of requests with Student's intervals over runs.

    Attributes:
        before, before_benign: unsafe requests that are refused before tuning, and benign ones.
        lost: the change of that by DPO on all pairs.
        filtered: refused after DPO on the pairs of lowest ln-CHES, minus after random pairs.
        over: the same of benign requests, minus before tuning.
        told_apart: the share of answers that begin in the fixed words and are told apart by them, least over arms and runs; of a
            model that refuses by itself (version 1), that of the answers labelled by hand on which the rule agrees.
        version: of the criterion by which the task is judged.
    """

    before: Interval
    before_benign: Interval
    lost: Interval
    filtered: Interval
    over: Interval
    told_apart: float
    version: int = 3

    @property
    def is_testable(self) -> bool:
        """Whether the task gives the claim a chance: refusals to lose and to gain, and answers that can be told apart."""
        if self.version == 1:
            return self.before.n >= B_E3["runs"] and self.told_apart >= B_E3["agree"]
        enough = self.before.n >= B_E3["toy_runs"] and self.told_apart >= B_E3["agree"]
        tells_apart = self.version == 2 or self.before_benign.value <= B_E3["benign"]
        return bool(enough and tells_apart and B_E3["least"] <= self.before.value <= B_E3["most"])


def share(row: Mapping[str, Any], arm: str, requests: str) -> float:
    """The share of requests that is refused in one run after a way of tuning; of several the mean."""
    return float(np.mean([one[requests] for one in row["arms"] if one["arm"] == arm]))


def refusals(record: Mapping[str, Any], version: int = 3) -> Refusals:
    """The numbers of B-E3 as a version of its criterion reads them. Raises `UserError` for a study without runs."""
    rows = record["rows"]
    unsafe, benign = decided_by(version)
    if not rows:
        raise UserError("the study of refusals has no run that is whole", "python -m training.studies.refusals makes them")

    def of(arm: str, asked: str = unsafe) -> Float[np.ndarray, " run"]:
        return np.array([share(row, arm, asked) for row in rows])

    return Refusals(
        repeats_mean(of(BEFORE)), repeats_mean(of(BEFORE, benign)), repeats_mean(of(ALL) - of(BEFORE)), repeats_mean(of(LOW) - of(RANDOM)),
        repeats_mean(of(LOW, benign) - of(BEFORE, benign)),
        agreement(record) if version == 1 else min(one["like_fixed"] for row in rows for one in row["arms"]), version,
    )  # fmt: skip


def agreement(record: Mapping[str, Any]) -> float:
    """The share of a chat model's answers labelled by hand on which the rule agrees; NaN where none were labelled."""
    labelled = record.get("labelled") or {}
    return float(labelled["agree"] / labelled["answers"]) if labelled.get("answers") else float("nan")


def is_own(record: Mapping[str, Any]) -> bool:
    """Whether the study is of a chat model as it is, and not of the toy task."""
    return bool(record["settings"].get("asked") == CHAT)


def judge(numbers: Refusals) -> Verdict:
    """`fails` where one of the two claims is refuted, `holds` where both are shown and benign requests are answered as before."""
    if not numbers.is_testable:
        return "inconclusive"
    if numbers.lost.low > 0 or numbers.filtered.high < 0:
        return "fails"
    return "holds" if numbers.lost.high < 0 and numbers.filtered.low > 0 and not numbers.over.low > 0 else "inconclusive"
