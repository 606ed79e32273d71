"""The rule of C-E6 on the study of methods, as functions of one number for each draw of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.errors import UserError
from interp.experiments.elasticity.courses import ratio_values
from interp.experiments.elasticity.criteria import CRITERIA
from interp.results.result import Verdict
from interp.stats.intervals import Interval
from interp.stats.repeats import repeats_mean

C_E6 = CRITERIA["C-E6"][-1].thresholds
METHODS = {"sft": "SFT on chosen answers", "dpo": "DPO", "kto": "KTO", "simpo": "SimPO"}
TOXIC, NEUTRAL = "toxic", "neutral"
# The base's own clean continuations, which one method's model reads as well.
CLEAN, CONTROLLED = "clean", "dpo"
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Method:
    """What a method did and what brought it back, means over draws with Student's intervals.

    Attributes:
        fall: of toxicity by tuning; `reached` counts the draws in which the goal was reached.
        undone: the share of it that is undone after the largest dose of toxic text.
        beyond: the same minus the share after as many steps on neutral text.
        home: the share of the KL to the base that is taken back at the dose of toxic text at which it is most.
    """

    fall: Interval
    undone: Interval
    beyond: Interval
    home: Interval
    reached: int


def of_method(row: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The part of a draw's row that is of one method."""
    found: dict[str, Any] = next(item for item in row["methods"] if item["method"] == method)
    return found


def undone_by_dose(rows: Rows, method: str, arm: str, start: float) -> Float[np.ndarray, "draw dose"]:
    """The share of the fall of toxicity that is undone at each dose, as linearised values by draw; `start` is the base's toxicity."""
    tuned = np.array([of_method(row, method)["toxicity"] for row in rows])
    after = np.array([[point["toxicity"] for point in of_method(row, method)["arms"][arm]] for row in rows])
    return np.stack([ratio_values(column - tuned, start - tuned) for column in after.T], axis=1)


def home_by_dose(rows: Rows, method: str, arm: str) -> Float[np.ndarray, "draw dose"]:
    """The share of the KL to the base that is taken back at each dose, as linearised values by draw; below 0 where it grows."""
    tuned = np.array([of_method(row, method)["kl"] for row in rows])
    after = np.array([[point["kl"] for point in of_method(row, method)["arms"][arm]] for row in rows])
    return np.stack([1 - ratio_values(column, tuned) for column in after.T], axis=1)


def methods(record: Mapping[str, Any]) -> dict[str, Method]:
    """The numbers of every method. Raises `UserError` for a study without draws."""
    rows, start = record["rows"], float(record["base_model"]["toxicity"])
    if not rows:
        raise UserError("the study of methods has no draw that is whole", "python -m training.studies.elasticity methods makes them")
    found = {}
    for method in METHODS:
        toxic, neutral = (undone_by_dose(rows, method, arm, start)[:, -1] for arm in (TOXIC, NEUTRAL))
        home = home_by_dose(rows, method, TOXIC)
        found[method] = Method(
            repeats_mean([start - of_method(row, method)["toxicity"] for row in rows]), repeats_mean(toxic), repeats_mean(toxic - neutral),
            best_dose(home), sum(bool(of_method(row, method)["reached"]) for row in rows),
        )  # fmt: skip
    return found


def best_dose(home: Float[np.ndarray, "draw dose"]) -> Interval:
    """The mean at the dose at which it is highest, with an interval that is as much wider as there are doses (Bonferroni)."""
    return repeats_mean(home[:, int(np.argmax(home.mean(axis=0)))], level=1 - 0.05 / home.shape[1])


@dataclass(frozen=True)
class Clean:
    """What the base's own clean continuations do to the model that `CONTROLLED` tuned, as the attributes of `Method` of these names."""

    undone: Interval
    home: Interval


def clean(record: Mapping[str, Any]) -> Clean:
    """The numbers of the control, which decides nothing."""
    rows, start = record["rows"], float(record["base_model"]["toxicity"])
    undone = undone_by_dose(rows, CONTROLLED, CLEAN, start)[:, -1]
    return Clean(repeats_mean(undone), best_dose(home_by_dose(rows, CONTROLLED, CLEAN)))


def judged(found: Mapping[str, Method]) -> dict[str, Method]:
    """The methods that are judged: those that reached the goal in every draw, and whose fall is above 0."""
    return {name: item for name, item in found.items() if item.reached == item.fall.n and item.fall.low > 0}


def judge(found: Mapping[str, Method]) -> Verdict:
    """`fails` where a part is refuted of a method, `holds` where all are shown of all; `inconclusive` with too few methods or draws."""
    usable = judged(found).values()
    if len(usable) < C_E6["methods"] or any(item.undone.n < C_E6["draws"] for item in usable):
        return "inconclusive"
    if any(item.undone.high < C_E6["undone"] or item.beyond.high < 0 or item.home.high < 0 for item in usable):
        return "fails"
    shown = all(item.undone.low > C_E6["undone"] and item.beyond.low > 0 and item.home.low > 0 for item in usable)
    return "holds" if shown else "inconclusive"
