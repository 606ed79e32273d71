"""C-E3: how many opposite samples it takes to return to the base distribution, against how much a model was tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from interp.experiments.elasticity.context import ElasticityContext
from interp.experiments.elasticity.criteria import CRITERIA
from interp.experiments.elasticity.rebound_rules import AMOUNTS, C_E3, Back, back, judge
from interp.experiments.elasticity.rebound_words import settings_of
from interp.experiments.elasticity.tables import ARMS, THRESHOLDS, return_table, tuning_table
from interp.experiments.registry import Finding, experiment
from interp.results import figures
from interp.results.result import Figure

GROWS, BEST = "KL to the base after tuning, many minus few, nats per token", "share of KL taken back at the best dose"
SOONER = "share of KL taken back, many minus few (mean over doses)"


@experiment(
    "C-E3",
    claim="C-C7",
    title="After more tuning fewer samples return a model to its base",
    question="Do fewer negative reviews return a model to its base's distribution where it was tuned on more positive ones, and do they return it at all?",
    criterion=CRITERIA["C-E3"],
    caveat="The doses end at 400 negative reviews, twice the smaller amount of positive ones and two fifths of the larger; the paper needs 600 to 960 after 1000 to 10,000. In preparation, on two seeds, the KL dipped by 15 % at most and then rose; that "
    "was known when the criterion was fixed. The paper does not say how it estimates KL; here it is over the whole vocabulary, on posts that no arm reads.",
    does_not_show="That no number of samples returns a model: what is not reached within the doses is not reached within the doses.",
    reads="elasticity",
    about="base",
)
def run(context: ElasticityContext) -> Finding:
    record = context.courses()
    numbers = back(record)
    parts = dict(zip((GROWS, BEST, SOONER), (part.mean for part in numbers.parts), strict=True))
    table = return_table(record, "positive")
    return Finding(
        judge(numbers.parts, C_E3["seeds"]), _summary(numbers, table), {name: part.value for name, part in parts.items()}, dict.fromkeys(parts, 0.0),
        {name: (part.low, part.high) for name, part in parts.items()}, {"texts to return": table, "tuning": tuning_table(record)}, _figures(record),
        settings_of(record), sentence=_sentence(numbers, table),
    )  # fmt: skip


def reached(table: pd.DataFrame, until: str, n: int, arm: str = "opposite") -> str:
    """The number of texts in the table of return doses, `> 400` where it is not reached; "not asked" where the KL begins below."""
    rows = table[(table["until"] == until) & (table["tuned on"] == f"{n} positive") & (table["then"] == ARMS[arm])]
    return str(rows["texts"].iloc[0]) if len(rows) else "not asked"


def _summary(numbers: Back, table: pd.DataFrame) -> str:
    parts = []
    for until in dict.fromkeys(table["until"]):
        parts.append(f"{until} after " + " and ".join(f"{reached(table, until, n)} ({n} positive)" for n in AMOUNTS))
    return (
        f"KL to the base is {numbers.grows.mean} nats per token larger after {AMOUNTS[1]} positive reviews than after {AMOUNTS[0]}. At their best dose negative reviews take {numbers.best.mean} of it back; as a mean over the doses {numbers.sooner.mean} more after "
        f"{AMOUNTS[1]}. Negative reviews until: {'; '.join(parts)}."
    )  # fmt: skip


def _sentence(numbers: Back, table: pd.DataFrame) -> str:
    doses = " and ".join(reached(table, f"KL to the base below {THRESHOLDS[0]:g}", n) for n in AMOUNTS)
    halves = " and ".join(reached(table, "50% of the behaviour undone", n) for n in AMOUNTS)
    return (
        f"At their best dose negative reviews take {numbers.best.mean} of the KL to the base back (half was asked, and the paper's table has 95 %); KL below {THRESHOLDS[0]:g} takes {doses} of them after {AMOUNTS[0]} and {AMOUNTS[1]} positive reviews, half of the behaviour "
        f"{halves}."
    )  # fmt: skip


def _figures(record: Mapping[str, Any]) -> tuple[Figure, ...]:
    frame = tuning_table(record)
    if frame.empty:
        return ()
    return (figures.lines(
        "KL of tuning", frame, x="texts", y="KL to base", colour="tuned on", low="KL low", high="KL high", title="How far tuning on reviews goes from the base", x_title="reviews", y_title="KL to the base, nats per token",
        caption="Means over seeds with Student's intervals, on held-out posts.",
    ),)  # fmt: skip
