"""The findings of C-E2 and C-E7: what they are called, and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from interp.experiments.elasticity.courses import OTHER, course_of
from interp.experiments.elasticity.rebound_rules import AMOUNTS, Rebound, judge_rebound, rebound
from interp.experiments.elasticity.tables import dose_figures, doses_table, return_table, tuning_table
from interp.experiments.registry import Finding
from interp.stats.intervals import Interval
from interp.stats.repeats import repeats_mean

FASTER = "share undone, many minus few (mean over doses)"
TEXT = "share undone at the last dose, opposite minus encyclopedic text"
RETURNED = "share of KL to the base taken back at the last dose"
KEYS = (FASTER, TEXT, RETURNED)


def settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a result of the study depends on, for its page."""
    return {
        "study": record["settings"],
        "interval": "Student's over seeds, each with texts of its own",
        "null": "as much encyclopedic text, and the KL after the tuning",
    }


def finding_of(record: Mapping[str, Any], first: str, seeds: float) -> Finding:
    """The finding on models that were tuned on reviews of the class `first`, of which `seeds` at least are asked for."""
    numbers = rebound(record, first)
    parts = dict(zip(KEYS, (part.mean for part in numbers.parts), strict=True))
    if not numbers.has_behaviour:
        # There is nothing to take a share of.
        parts |= dict.fromkeys((FASTER, TEXT), Interval(math.nan, math.nan, math.nan, parts[FASTER].n))
    return Finding(
        judge_rebound(numbers, seeds), summary_of(record, numbers, first), {name: part.value for name, part in parts.items()},
        dict.fromkeys(parts, 0.0), {name: (part.low, part.high) for name, part in parts.items()},
        {"by dose": doses_table(record, first), "tuning": tuning_table(record), "texts to return": return_table(record, first)},
        dose_figures(record, first), settings_of(record), sentence=sentence_of(record, numbers, first),
    )  # fmt: skip


def summary_of(record: Mapping[str, Any], numbers: Rebound, first: str) -> str:
    """The numbers with what they are made of."""
    gaps = ", ".join(f"{gap} after {n}" for n, gap in numbers.gaps.items())
    parts = []
    for n in AMOUNTS:
        for arm, shown in (("opposite", f"{OTHER[first]} reviews"), ("neutral", "encyclopedic text")):
            course = course_of(record, first, n, arm)
            if course is not None:
                values = course.shown_share.mean(axis=0)
                by_dose = ", ".join(f"{value:.0%}" for value in values)
                undone = "no share of it is defined" if np.isnan(values).any() else f"undone {by_dose}"
                kls = ", ".join(f"{value:.3f}" for value in course.kls.mean(axis=0))
                parts.append(f"{n} {first}, then {shown}: {undone}, KL {course.kls_before.mean():.3f} then {kls}")
    doses = ", ".join(map(str, record["settings"]["doses"]))
    return f"Tuning moved the behaviour by {gaps} nats. At {doses} further texts: {'; '.join(parts)}."


def sentence_of(record: Mapping[str, Any], numbers: Rebound, first: str) -> str:
    """What was found in one sentence."""
    if not numbers.has_behaviour:
        small = min(numbers.gaps.items(), key=lambda item: item[1].low)
        return (
            f"After {small[0]} {first} reviews the behaviour does not differ from the base's beyond chance ({small[1]} nats), so that "
            "shares of it decide nothing."
        )
    neutral = [course_of(record, first, n, "neutral") for n in AMOUNTS]
    undone = repeats_mean([float(course.share[:, -1].mean()) for course in neutral if course is not None]).value
    back, text, faster = numbers.returned.mean, numbers.text.mean, numbers.faster.mean
    what = "falls" if back.low > 0 else "rises" if back.high < 0 else "neither clearly falls nor rises"
    return (
        f"Under {OTHER[first]} reviews the KL to the base {what} (taken back {back} of it at the last dose; a return is above 0) while "
        f"they undo {text} more of the behaviour than encyclopedic text does, which undoes {undone:.0%}; after {AMOUNTS[1]} reviews the "
        f"share undone is {faster} above that after {AMOUNTS[0]} (the more, the faster is above 0)."
    )
