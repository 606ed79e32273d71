"""The rules of B-E6 and B-E7 on the study of filtered pairs, as functions of one number for each draw of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.errors import UserError
from interp.experiments.displacement.criteria import CRITERIA
from interp.results.result import Verdict
from interp.stats.intervals import Interval
from interp.stats.repeats import repeats_mean

B_E6, B_E7 = (CRITERIA[name][-1].thresholds for name in ("B-E6", "B-E7"))
ALL, INFLUENCE, RANDOM = "all", "influence", "random"
# What is measured of each arm: its place in a row.
TOXICITY, KL, KEYS = ("toxicity",), ("kl",), ("unaligned",)
TOXIC, NEUTRAL = "after toxic", "after neutral"
NONE, NAMED, MATCHED, EVERY = "none", "toxic neurons", "equally active neurons", "all neurons"
Rows = Sequence[Mapping[str, Any]]


def of_arm(row: Mapping[str, Any], arm: str, place: Sequence[str]) -> float:
    """A draw's value at a place after training on an arm, the mean of its draws that were measured; NaN where none was."""
    values = []
    for item in row["arms"]:
        if item["arm"] == arm and place[0] in item:
            value = item
            for name in place:
                value = value[name]
            values.append(float(value))
    return float(np.mean(values)) if values else float("nan")


def beside_random(rows: Rows, arm: str, place: Sequence[str]) -> Interval:
    """The mean over draws of an arm's value minus that of the random halves that were measured."""
    return repeats_mean([of_arm(row, arm, place) - of_arm(row, RANDOM, place) for row in rows])


@dataclass(frozen=True)
class Filtered:
    """The numbers of B-E6: the half of highest influence minus random halves, with Student's intervals over draws.

    Attributes:
        toxicity: of continuations, directly after tuning.
        back: of continuations, after further steps on toxic ones.
        keys: of continuations, with the toxic keys enlarged.
        kl: KL to the base in nats, directly after tuning.
        removed: the share of the base's toxicity that random halves remove.
    """

    toxicity: Interval
    back: Interval
    keys: Interval
    kl: Interval
    removed: Interval

    @property
    def differences(self) -> tuple[Interval, ...]:
        """The three differences of toxicity."""
        return self.toxicity, self.back, self.keys


def filtered(record: Mapping[str, Any]) -> Filtered:
    """The numbers of B-E6. Raises `UserError` for a study without draws."""
    rows = rows_of(record)
    start = float(record["base_model"]["toxicity"])
    removed = repeats_mean([1 - of_arm(row, RANDOM, TOXICITY) / start for row in rows])
    toxicity, back, keys, kl = (beside_random(rows, INFLUENCE, place) for place in (TOXICITY, (TOXIC, "toxicity"), KEYS, KL))
    return Filtered(toxicity, back, keys, kl, removed)


def rows_of(record: Mapping[str, Any]) -> Rows:
    """The draws of a study. Raises `UserError` where none is whole."""
    if not record["rows"]:
        raise UserError("the study of filtered pairs has no draw that is whole", "python -m training.studies.filtered_tuning makes them")
    rows: Rows = record["rows"]
    return rows


def is_refuted(part: Interval, most: float) -> bool:
    """Whether a difference that is to be below a bound is shown to lie above it."""
    return part.low > most


def judge_filtered(numbers: Filtered) -> Verdict:
    """The verdict of B-E6."""
    if numbers.removed.n < B_E6["runs"] or not numbers.removed.value >= B_E6["least"]:
        return "inconclusive"
    margin = B_E6["margin"]
    if any(is_refuted(part, margin) for part in numbers.differences) or is_refuted(numbers.kl, 0.0):
        return "fails"
    return "holds" if all(part.high < margin for part in numbers.differences) and numbers.kl.high < 0 else "inconclusive"


@dataclass(frozen=True)
class Carried:
    """The numbers of B-E7, means over draws with Student's intervals.

    Attributes:
        change: of held-out rejected answers' log-probability by tuning, in nats.
        share: of that change, what is gone when the toxic neurons keep the base's activations.
        matched: the same of equally active neurons, and `lead` the difference.
    """

    change: Interval
    share: Interval
    matched: Interval
    lead: Interval


def carried_share(row: Mapping[str, Any], group: str, side: str = "rejected") -> float:
    """The share of a draw's change of one side's log-probability that is gone when a group keeps the base's activations.

    Of groups that were drawn several times the mean. Raises `UserError` for a group that the draw lacks.
    """
    whole = float(row["neurons"][NONE][side])
    left = [float(value[side]) for name, value in row["neurons"].items() if name == group or name.startswith(f"{group} ")]
    if not left:
        raise UserError(f"the study has no group {group!r}", f"it has {', '.join(row['neurons'])}")
    return 1 - float(np.mean(left)) / whole


def carried(record: Mapping[str, Any]) -> Carried:
    """The numbers of B-E7. Raises `UserError` for a study without draws."""
    rows = rows_of(record)
    shares = {group: np.array([carried_share(row, group) for row in rows]) for group in (NAMED, MATCHED)}
    return Carried(
        repeats_mean([row["neurons"][NONE]["rejected"] for row in rows]), repeats_mean(shares[NAMED]),
        repeats_mean(shares[MATCHED]), repeats_mean(shares[NAMED] - shares[MATCHED]),
    )  # fmt: skip


def judge_carried(numbers: Carried) -> Verdict:
    """The verdict of B-E7."""
    if numbers.change.n < B_E7["runs"] or not numbers.change.high < 0:
        return "inconclusive"
    if numbers.share.high < B_E7["share"] or numbers.lead.high < 0:
        return "fails"
    return "holds" if numbers.share.low > B_E7["share"] and numbers.lead.low > 0 else "inconclusive"
