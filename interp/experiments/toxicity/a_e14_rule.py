"""The rule of A-E14: runs in which the KL term can be seen against runs in which it cannot, at equal toxicity, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from interp.experiments.toxicity.criteria import CRITERIA
from interp.results.result import Verdict
from interp.stats.intervals import Interval
from interp.stats.repeats import detectable, repeats_mean

THRESHOLDS: Mapping[str, float] = CRITERIA["A-E14"][-1].thresholds
MEASURES = ("relative_change", "stable_rank")


@dataclass(frozen=True)
class Comparison:
    """Runs of one optimizer under a strong and a weak KL term, paired by seed.

    Attributes:
        seen: beta times margin, weak and strong, each a mean over seeds.
        toxicity: strong minus weak, a mean over seeds; kl: KL to the base, weak and strong.
        size, rank: strong over weak, the geometric mean over seeds, with intervals corrected for the number of comparisons and measures.
        found: the smallest change of size and of rank, as shares, that this many seeds find in four of five studies.
        problem: why this comparison is no test; empty where it is one.
    """

    optimizer: str
    betas: tuple[float, float]
    seeds: int
    seen: tuple[float, float]
    toxicity: float
    kl: tuple[float, float]
    size: Interval
    rank: Interval
    found: tuple[float, float]
    problem: str = ""


def compared(runs: Sequence[Mapping[str, Any]], base_toxicity: float) -> list[Comparison]:
    """Every strength of the KL term against the weakest of its optimizer, with what keeps a comparison from being a test.

    Args:
        runs: the rows that `training.studies.kl_term` writes, one for each run.
    """
    cells: dict[str, dict[float, dict[int, Mapping[str, Any]]]] = {}
    for run in runs:
        cells.setdefault(run["optimizer"], {}).setdefault(run["beta"], {})[run["seed"]] = run
    pairs = [(optimizer, min(by_beta), beta) for optimizer, by_beta in sorted(cells.items()) for beta in sorted(by_beta)[1:]]
    return [_comparison(*pair, cells[pair[0]], base_toxicity, len(pairs)) for pair in pairs]


def _comparison(
    optimizer: str, low: float, high: float, by_beta: Mapping[float, Mapping[int, Mapping[str, Any]]], base_toxicity: float, count: int
) -> Comparison:
    weak, strong = by_beta[low], by_beta[high]
    seeds = sorted(weak.keys() & strong.keys())

    def values(cell: Mapping[int, Mapping[str, Any]], name: str) -> np.ndarray:
        return np.array([cell[seed][name] for seed in seeds], dtype=float)

    def mean(cell: Mapping[int, Mapping[str, Any]], name: str) -> float:
        return float(values(cell, name).mean()) if seeds else math.nan

    level = 1 - THRESHOLDS["chance"] / (len(MEASURES) * max(1, count))
    logs = [np.log(values(strong, name) / values(weak, name)) for name in MEASURES]
    size, rank = (_ratio(each, level) for each in logs)
    spreads = [float(np.std(each, ddof=1)) if len(seeds) > 1 else math.nan for each in logs]
    found = [math.expm1(detectable(spread, len(seeds), level=level)) for spread in spreads]
    seen = mean(weak, "beta_margin"), mean(strong, "beta_margin")
    gap = mean(strong, "toxicity") - mean(weak, "toxicity")
    fall = base_toxicity - mean(weak, "toxicity")
    problems = {
        f"{len(seeds)} seeds are too few": len(seeds) < THRESHOLDS["seeds"],
        f"beta times margin is {seen[0]:.2f} under the weaker term": not seen[0] <= THRESHOLDS["unseen"],
        f"beta times margin is {seen[1]:.2f} under the stronger term": not seen[1] >= THRESHOLDS["seen"],
        "toxicity is not equal": not abs(gap) <= THRESHOLDS["match"] * fall,
    }
    return Comparison(
        optimizer, (low, high), len(seeds), seen, gap, (mean(weak, "kl"), mean(strong, "kl")), size, rank, (found[0], found[1]),
        "; ".join(text for text, is_so in problems.items() if is_so),
    )  # fmt: skip


def _ratio(logs: np.ndarray, level: float) -> Interval:
    mean = repeats_mean(logs, level=level)
    return Interval(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high), mean.n)


def judge(comparisons: Sequence[Comparison]) -> Verdict:
    """The verdict from the comparisons that are a test: all must agree, and none may exclude a change that matters."""
    tests = [one for one in comparisons if not one.problem]
    smaller, broader = 1 - THRESHOLDS["matters"], 1 + THRESHOLDS["matters"]
    if any(one.size.low > smaller or one.rank.high < broader for one in tests):
        return "fails"
    agree = all(one.size.high < 1 and one.size.value <= smaller and one.rank.low > 1 and one.rank.value >= broader for one in tests)
    return "holds" if tests and agree else "inconclusive"


def judge_1(pairs: Sequence[Mapping[str, Any]]) -> Verdict:
    """The verdict under version 1, from single runs whose differences exceed the range over seeds of one of them (`comparisons`)."""
    betas = {row[key] for row in pairs for key in ("lower beta", "higher beta")} - {0.0}
    if any(row["opposes"] for row in pairs):
        return "fails"
    return "holds" if len(betas) > 1 and all(row["agrees"] for row in pairs) else "inconclusive"


def table_of_comparisons(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One row for each comparison, with the column names of the report."""
    return pd.DataFrame([
        {
            "optimizer": one.optimizer, "weaker beta": one.betas[0], "stronger beta": one.betas[1], "seeds": one.seeds,
            "beta × margin, weaker": one.seen[0], "beta × margin, stronger": one.seen[1], "difference of toxicity": one.toxicity,
            "KL to base, weaker": one.kl[0], "KL to base, stronger": one.kl[1],
            "size, ratio": one.size.value, "size, low": one.size.low, "size, high": one.size.high,
            "stable rank, ratio": one.rank.value, "stable rank, low": one.rank.low, "stable rank, high": one.rank.high,
            "least change of size found": one.found[0], "least change of rank found": one.found[1],
            "a test": not one.problem, "why not": one.problem,
        }
        for one in comparisons
    ])  # fmt: skip
