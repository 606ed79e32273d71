"""B-E2: whether CHES ranks preference pairs by how far training lowers their chosen answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.displacement.criteria import CRITERIA
from interp.experiments.displacement.pair_rules import B_E2, Ranked, rank_of, ranked, verdict_of
from interp.experiments.registry import Finding, experiment
from interp.results import figures
from interp.results.result import Figure
from interp.stats.repeats import repeats_mean

CHES, GIVEN, LEAD = "rank correlation of CHES with the fall", "the same given the difference of lengths", "CHES minus the best rival"
SCORES = {
    "ches": "CHES", "ln_ches": "ln-CHES", "alpha_ches": "α-CHES", "edit_similarity": "edit similarity", "last_hidden": "last hidden states",
    "length_difference": "difference of lengths", "minus_length": "shorter chosen answer", "logp_chosen": "log π(chosen) before",
    "own": "own", "own_sign": "own (sign)", "total": "total", "total_sign": "total (sign)",
}  # fmt: skip


@experiment(
    "B-E2",
    claim="B-C5",
    title="CHES ranks pairs by how far their chosen answers fall",
    question="Do the chosen answers of pairs with a high CHES fall furthest in an epoch of DPO, and would a measure that needs no model have told as well?",
    criterion=CRITERIA["B-E2"],
    caveat="The paper compares means of windows of 512 pairs of one percentile, each trained on by itself; here pairs of a random set are compared with each other, which asks more and is what a filter needs. The model is small, runs are of eight steps, "
    "and pairs have at most 128 tokens. In preparation, on other draws, CHES reached .03 to .30 and total .44 to 1.00; that was known when the criterion was fixed.",
    does_not_show="Whether a window of high CHES falls on average, nor what a longer training does.",
    reads="preference-pairs",
    about="base",
)
def run(context: DisplacementContext) -> Finding:
    record = context.preference_pairs("ranks")
    rows = record["ranks"]
    numbers = ranked(rows)
    parts = {CHES: numbers.ches.mean, GIVEN: numbers.given_length.mean, LEAD: numbers.lead.mean}
    chance = by_chance(rows)
    table = ranks_table(rows, record["filters"])
    return Finding(
        verdict_of(numbers.parts, rows, B_E2), _summary(numbers, table, chance), {name: part.value for name, part in parts.items()},
        {CHES: chance, GIVEN: chance, LEAD: 0.0}, {name: (part.low, part.high) for name, part in parts.items()},
        {"ranks": table, "by source": sources_table(rows), "runs": runs_table(rows)}, _figures(table, chance),
        {"study": record["settings"], "sources": record["sources"], "interval": "Student's over runs (a source of pairs and a draw of them), and over the means of the sources"},
        earlier={1: verdict_of(numbers.parts, rows, B_E2, version=1)},
        sentence=_sentence(numbers, chance),
    )  # fmt: skip


def by_chance(rows: Sequence[Mapping[str, Any]]) -> float:
    """The 97.5 % quantile of the mean over runs of a rank correlation under random orders of each run's pairs.

    The variance of a rank correlation of n untied values over all orders is 1 / (n - 1).
    """
    return 1.96 / math.sqrt(max(1, len(rows)) * (B_E2["trained"] - 1))


def ranks_table(rows: Sequence[Mapping[str, Any]], filters: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """By score its mean rank correlation with the falls in the epoch, with its interval, and given the lengths.

    Scores that need gradients, and falls by a step on a pair alone, are those of the rows `filters`, where these were measured.
    """
    table = []
    for score, shown in SCORES.items():
        runs = [row for row in rows if score in row["correlations"]["epoch"]] or list(filters)
        if not runs:
            continue
        mean = repeats_mean([rank_of(row, score) for row in runs])
        by_itself = [rank_of(row, score, when="alone") for row in filters if "alone" in row["correlations"]]
        table.append({
            "score": shown, "fall in the epoch": mean.value, "low": mean.low, "high": mean.high,
            "given the lengths": float(np.mean([rank_of(row, score, "given_length") for row in runs])),
            "fall by a step on the pair alone": float(np.mean(by_itself)) if by_itself else math.nan, "runs": mean.n,
        })  # fmt: skip
    return pd.DataFrame(table)


def runs_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """By source what the runs did to the pairs that they were trained on, means over runs in nats, and what these pairs are like."""
    flat = [{"source": row["source"], **row["trained"], **row["like"]} for row in rows]
    return pd.DataFrame(flat).groupby("source", sort=False).mean().reset_index() if flat else pd.DataFrame(columns=["source"])


def sources_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """By source and score the mean rank correlation with the falls in the epoch."""
    flat = pd.DataFrame(
        [
            {"source": row["source"], "score": shown, "rank": rank_of(row, score)}
            for row in rows
            for score, shown in SCORES.items()
            if score in row["correlations"]["epoch"]
        ],
        columns=["source", "score", "rank"],
    )
    return flat.pivot_table(index="score", columns="source", values="rank", sort=False).reset_index().rename_axis(columns=None)


def _summary(numbers: Ranked, table: pd.DataFrame, chance: float) -> str:
    best = table.loc[table["fall in the epoch"].idxmax()]
    highest = f" Highest of all is {best['score']} with {best['fall in the epoch']:.2f}."
    return (
        f"Over {numbers.ches.mean.n} runs the rank correlation of CHES with the fall of a pair's chosen answer is {numbers.ches.mean}; a random order reaches {chance:.2f} in one of 40 cases. Given the difference of lengths it is "
        f"{numbers.given_length.mean}. The best of the measures that the paper says do not rank, and of lengths, is {SCORES[numbers.rival]}; CHES exceeds it by {numbers.lead.mean}.{highest}"
    )  # fmt: skip


def _sentence(numbers: Ranked, chance: float) -> str:
    lead = numbers.lead.mean
    beside = "more than" if lead.low > 0 else "less than" if lead.high < 0 else "not clearly more or less than"
    return (
        f"CHES ranked pairs by the fall of their chosen answers with a correlation of {numbers.ches.mean} (given lengths {numbers.given_length.mean}; a random order stays below {chance:.2f}), {beside} {SCORES[numbers.rival]} "
        f"does (difference {lead})."
    )  # fmt: skip


def _figures(table: pd.DataFrame, chance: float) -> tuple[Figure, ...]:
    return (
        figures.bars(
            "ranks", table, x="score", y="fall in the epoch", low="low", high="high", horizontal=True, title="Which score ranks pairs by the fall of their chosen answers",
            x_title="score", y_title="rank correlation with the fall in one epoch", reference=(chance, "random order"),
            caption="Means over runs with Student's intervals. The upper scores read the pair alone; total, where it was measured, reads all pairs of the run.",
        ),
    )  # fmt: skip
