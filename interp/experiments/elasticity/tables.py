"""The tables and figures of the study of tuning on reviews."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from interp.elasticity.return_dose import LEVELS, UndoScores, return_dose
from interp.experiments.elasticity.courses import OTHER, SIGNS, TUNING, Course, course_of
from interp.experiments.elasticity.rebound_rules import AMOUNTS
from interp.results import figures
from interp.results.result import Figure, number
from interp.stats.repeats import repeats_mean

ARMS = {
    "opposite": "opposite reviews",
    "neutral": "encyclopedic text",
    "pretraining": "posts, as in pretraining",
    "same": "more of the same",
}
# KL to the base, in nats a token, below which a model counts as returned; the first is the paper's.
THRESHOLDS = (0.01, 0.03)
BYTES = ("positive", "negative", "neutral", "pretraining")


def courses(record: Mapping[str, Any], first: str) -> list[Course]:
    """All arms of both amounts that the study has."""
    every = (course_of(record, first, n, arm) for n in AMOUNTS for arm in ARMS)
    return [course for course in every if course is not None]


def doses_table(record: Mapping[str, Any], first: str) -> pd.DataFrame:
    """By amount, arm and dose: behaviour and KL to the base side by side, means over seeds with Student's intervals, and bits per byte."""
    table = []
    for course in courses(record, first):
        undone, returned = course.shown_share, course.returned
        of_first = [row for row in record["rows"] if row["first"] == first and row["seed"] in course.seeds]
        for place, dose in enumerate(course.doses):
            share, back, nats = (repeats_mean(values[:, place]) for values in (undone, returned, course.decline))
            rows = [row for row in of_first if (row["n"], row["arm"], row["dose"]) == (course.n, course.arm, dose)]
            table.append({
                "tuned on": f"{course.n} {first}", "then": ARMS[course.arm], "texts": dose, "undone, nats": nats.value,
                "share undone": share.value, "low": share.low, "high": share.high, "KL to base": float(course.kls[:, place].mean()),
                "taken back of KL": back.value, "back low": back.low, "back high": back.high, **_means(rows), "seeds": share.n,
            })  # fmt: skip
    return pd.DataFrame(table)


def tuning_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """By class and amount of reviews what tuning the base on them does: the change of the behaviour, and KL to the base, over seeds."""
    base = float(np.mean(record["base_row"]["score"]))
    table = []
    for first in SIGNS:
        rows = [row for row in record["rows"] if (row["first"], row["arm"]) == (first, TUNING)]
        for dose in sorted({row["dose"] for row in rows}):
            some = [row for row in rows if row["dose"] == dose]
            change, kl = (
                repeats_mean([np.mean(row["score"]) - base for row in some]),
                repeats_mean([np.mean(row["kl_base"]) for row in some]),
            )
            table.append({
                "tuned on": first, "texts": dose, "change of word log-odds, nats": change.value, "low": change.low, "high": change.high,
                "KL to base": kl.value, "KL low": kl.low, "KL high": kl.high, **_means(some), "seeds": len(some),
            })  # fmt: skip
    return pd.DataFrame(table)


def _means(rows: list[Mapping[str, Any]]) -> dict[str, float]:
    """What is only shown: KL on encyclopedic text and to the tuned model, and bits per byte by source."""
    others = {"KL to base on articles": "kl_base_neutral", "KL to tuned": "kl_tuned"}
    shown = {title: float(np.mean([number(row.get(name)) for row in rows])) for title, name in others.items()}
    return shown | {f"bits per byte, {name}": float(np.mean([number(row["bits"][name]) for row in rows])) for name in BYTES}


def return_table(record: Mapping[str, Any], first: str) -> pd.DataFrame:
    """By arm and amount the number of texts until half and nine tenths of the behaviour are undone, and until the KL to the base is low.

    Censored where the doses do not reach it; intervals resample seeds with openings or texts, which with a few seeds is too narrow.
    """
    table = []
    for course in courses(record, first):
        before = float(course.kl_before.mean())
        behaviour = _aligned(course.base, course.tuned, course.scores)
        kl = _aligned(np.zeros(course.kl.shape[2]), course.kl_before, course.kl)
        has_behaviour = not np.isnan(course.shown_share).any()
        levels = [(f"{level:.0%} of the behaviour undone", behaviour, level) for level in LEVELS if has_behaviour]
        levels += [("half of the KL taken back", kl, 0.5)]
        levels += [(f"KL to the base below {bound:g}", kl, 1 - bound / before) for bound in THRESHOLDS if before > bound]
        for what, scores, level in levels:
            dose = return_dose(course.doses, scores, level)
            table.append({
                "tuned on": f"{course.n} {first}", "then": ARMS[course.arm], "until": what, "texts": str(dose), "low": dose.low,
                "high": dose.high, "seeds": len(course.seeds),
            })  # fmt: skip
    return pd.DataFrame(table)


def _aligned(base: np.ndarray, tuned: np.ndarray, runs: np.ndarray) -> UndoScores:
    """The runs as changes from the tuned model of their own seed, beside the mean of the tuned models."""
    mean = tuned.mean(axis=0)
    return UndoScores(base, mean, runs - tuned[:, None] + mean)


def dose_figures(record: Mapping[str, Any], first: str) -> tuple[Figure, ...]:
    """Behaviour and KL to the base by dose and arm, for each amount of reviews."""
    drawn = []
    for n in AMOUNTS:
        some = [course for course in courses(record, first) if course.n == n]
        if not some:
            continue
        rows = [
            {"then": ARMS[course.arm], "texts": dose, "share": float(value), "kl": float(kl)}
            for course in some
            for dose, value, kl in zip(
                (0, *course.doses),
                (0.0, *course.shown_share.mean(axis=0)),
                (course.kls_before.mean(), *course.kls.mean(axis=0)),
                strict=True,
            )
        ]
        frame = pd.DataFrame(rows)
        drawn += [
            figures.lines(
                f"{first} {n} {name}", frame, x="texts", y=column, colour="then", title=f"{n} {first} reviews, then other text: {title}",
                x_title=f"further texts ({OTHER[first]} reviews are the opposite ones)", y_title=axis, reference=reference,
                caption="Means over seeds.",
            )
            for name, column, title, axis, reference in (
                ("behaviour", "share", "behaviour undone", "share undone", (1.0, "the base")),
                ("distribution", "kl", "distance from the base", "KL to the base, nats per token", None),
            )
        ]  # fmt: skip
    return tuple(drawn)
