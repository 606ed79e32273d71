"""Bootstrap intervals and permutation p-values for the numbers that a verdict rests on.

Prompts are the unit of resampling everywhere, because tokens, steps and neurons of one prompt are not independent.
All resampling goes through one function that turns draws into counts and multiplies, so that curves (one column per
point) cost no more than single numbers and a seed gives the same draws for every column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import UserError

Alternative = Literal["greater", "less", "two-sided"]
CHUNK = 2**22
# Counts of so many numbers (8 MiB) and fewer are kept, eight sets of them.
KEPT = 2**20


@dataclass(frozen=True)
class Interval:
    """A statistic, its bootstrap interval, and the number of prompts that it is computed from."""

    value: float
    low: float
    high: float
    n: int

    def excludes(self, number: float | int) -> bool:
        """Whether `number` lies outside the interval."""
        return not self.low <= number <= self.high

    def to_json(self) -> dict[str, float]:
        """Value, both ends and the number of prompts as a JSON object."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}

    def to_frame(self) -> pd.DataFrame:
        """The same as a frame of one row."""
        return pd.DataFrame([self.to_json()])

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def percents(low: float | int, high: float | int, joined: str = ", ") -> str:
    """The ends of the interval of a share as whole percentages; "unbounded" where one is infinite.

    That happens where what it is a share of, such as the toxicity that tuning took away, is not above 0 in every resample.
    """
    return f"{percent(low)}{joined}{percent(high)}" if math.isfinite(low) and math.isfinite(high) else "unbounded"


def percent(share: float | int) -> str:
    """A share as a whole percentage, without a sign before zero."""
    return f"{round(share, 2) + 0.0:.0%}"


def bootstrap_mean(values: Any, *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean over prompts with its percentile bootstrap interval.

    Raises `UserError` where `values` (one number per prompt) is empty, not one axis, or not finite.
    """
    return bootstrap_means(_column(values, "values")[:, None], draws=draws, seed=seed, level=level)[0]


def bootstrap_means(values: Any, *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> list[Interval]:
    """The means, with intervals as of `bootstrap_mean`, of every column of `prompt column`, with the same prompts drawn for all columns."""
    table = _table(values, "values")
    low, high = np.quantile(resampled_means(table, draws, seed), tails(level), axis=0)
    return [Interval(float(m), float(a), float(b), len(table)) for m, a, b in zip(table.mean(axis=0), low, high, strict=True)]


def bootstrap_difference(first: Any, second: Any, *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean of `first - second`, paired by prompt, with its bootstrap interval."""
    a, b = _paired(first, second)
    return bootstrap_mean(a - b, draws=draws, seed=seed, level=level)


def bootstrap_ratio(numerator: Any, denominator: Any, *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """The ratio of two means over the same prompts, with its interval; prompts are resampled in pairs.

    Where some draws have a denominator of another sign or zero the ratio is unbounded, and so is the interval.
    Raises `UserError` where the mean of the denominator is zero.
    """
    a, b = _paired(numerator, denominator)
    if b.mean() == 0:
        raise UserError("the denominator of the ratio has mean zero", "report the difference instead")
    means = resampled_means(np.stack([a, b], axis=1), draws, seed)
    value = float(a.mean() / b.mean())
    if (means[:, 1] * np.sign(b.mean()) <= 0).any():
        return Interval(value, -np.inf, np.inf, len(a))
    low, high = np.quantile(means[:, 0] / means[:, 1], tails(level))
    return Interval(value, float(low), float(high), len(a))


def bootstrap_rank_correlation(first: Any, second: Any, *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """Spearman's rank correlation of two columns with a bootstrap interval over their rows; NaN where a column does not vary."""
    one, other = _paired(first, second)
    rows = np.stack([np.repeat(np.arange(len(one)), counts) for counts in counts_of(seed, draws, len(one)).astype(int)])
    drawn = _rank_correlations(one[rows], other[rows])
    low, high = np.nanquantile(drawn, tails(level)) if not np.isnan(drawn).all() else (np.nan, np.nan)
    return Interval(float(_rank_correlations(one[None], other[None])[0]), float(low), float(high), len(one))


def _rank_correlations(first: Float[np.ndarray, "draw row"], second: Float[np.ndarray, "draw row"]) -> Float[np.ndarray, " draw"]:
    # It takes a second to import, for which readers of the other intervals need not wait.
    from scipy.stats import rankdata

    one, other = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (rankdata(side, axis=1) for side in (first, second)))
    spread = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.divide((one * other).sum(axis=1), spread, out=np.full(len(one), np.nan), where=spread > 0)


def permutation_p(observed: float | int, null_values: Any, alternative: Alternative = "greater") -> float:
    """The permutation p-value of an observed value, `(1 + count) / (1 + n)`: the share of null values that are as extreme, never zero.

    Args:
        alternative: `greater` counts null values >= observed, `less` those <=; `two-sided` doubles the smaller of the two.
    """
    null = _column(null_values, "null values")
    if not np.isfinite(observed):
        raise UserError(f"the observed value is {observed}", "give a finite number")
    greater = (1 + int((null >= observed).sum())) / (1 + len(null))
    less = (1 + int((null <= observed).sum())) / (1 + len(null))
    if alternative == "two-sided":
        return min(1.0, 2 * min(greater, less))
    if alternative not in ("greater", "less"):
        raise UserError(f"alternative {alternative!r} is unknown", "use greater, less or two-sided")
    return greater if alternative == "greater" else less


def auc(labels: Any, scores: Any) -> float:
    """The area under the ROC curve: the probability that a random positive scores above a random negative, ties counting half."""
    positive, negative = _classes(labels, scores)
    return float(_weighted_auc(positive, negative, np.ones((1, len(positive))), np.ones((1, len(negative))))[0])


def bootstrap_auc(labels: Any, scores: Any, *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """The `auc` with its bootstrap interval; positives and negatives are resampled separately, so no draw lacks a class."""
    positive, negative = _classes(labels, scores)
    rng = np.random.default_rng(seed)
    resampled: list[np.ndarray] = []
    step = max(1, CHUNK // (len(positive) + len(negative)))
    for start in range(0, draws, step):
        count = min(step, draws - start)
        resampled.append(_weighted_auc(positive, negative, draw_counts(rng, count, len(positive)), draw_counts(rng, count, len(negative))))
    low, high = np.quantile(np.concatenate(resampled), tails(level))
    return Interval(auc(labels, scores), float(low), float(high), len(positive) + len(negative))


def bootstrap_auc_difference(labels: Any, first: Any, second: Any, *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """The `auc` of the first scores minus that of the second ones with its bootstrap interval, the same texts drawn for both."""
    sides = [_classes(labels, scores) for scores in (first, second)]
    positives, negatives = len(sides[0][0]), len(sides[0][1])
    rng = np.random.default_rng(seed)
    resampled: list[np.ndarray] = []
    step = max(1, CHUNK // (positives + negatives))
    for start in range(0, draws, step):
        count = min(step, draws - start)
        on_positive, on_negative = draw_counts(rng, count, positives), draw_counts(rng, count, negatives)
        one, other = (_weighted_auc(*side, on_positive, on_negative) for side in sides)
        resampled.append(one - other)
    low, high = np.quantile(np.concatenate(resampled), tails(level))
    return Interval(auc(labels, first) - auc(labels, second), float(low), float(high), positives + negatives)


def _weighted_auc(
    positive: np.ndarray, negative: np.ndarray, on_positive: np.ndarray, on_negative: np.ndarray
) -> Float[np.ndarray, " draws"]:
    """The AUC under weights per text, for many sets of weights at once with a single sort."""
    order = np.argsort(negative, kind="stable")
    ordered = negative[order]
    below = np.concatenate([np.zeros((len(on_negative), 1)), np.cumsum(on_negative[:, order], axis=1)], axis=1)
    left, right = np.searchsorted(ordered, positive, "left"), np.searchsorted(ordered, positive, "right")
    wins = ((below[:, left] + below[:, right]) / 2 * on_positive).sum(axis=1)
    return np.asarray(wins / (on_positive.sum(axis=1) * on_negative.sum(axis=1)))


def resampled_means(table: Float[np.ndarray, "prompt column"], draws: int, seed: int) -> Float[np.ndarray, "draws column"]:
    """The mean of every column in each bootstrap draw, with the same prompts drawn for all columns."""
    if draws < 1:
        raise UserError(f"{draws} bootstrap draws were asked for", "ask for at least 1")
    n = len(table)
    if draws * n <= KEPT:
        return np.asarray(counts_of(seed, draws, n) @ table / n)
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // n)
    return np.concatenate([draw_counts(rng, min(step, draws - start), n) @ table / n for start in range(0, draws, step)])


def counts_of(seed: int, draws: int, n: int) -> Float[np.ndarray, "draws n"]:
    """`draw_counts` of a new generator of this seed, made once for all tables of `n` prompts; copy it before writing to it."""
    return _kept_counts(seed, draws, n) if draws * n <= KEPT else draw_counts(np.random.default_rng(seed), draws, n)


@lru_cache(maxsize=8)
def _kept_counts(seed: int, draws: int, n: int) -> Float[np.ndarray, "draws n"]:
    counts = draw_counts(np.random.default_rng(seed), draws, n)
    counts.flags.writeable = False
    return counts


def draw_counts(rng: np.random.Generator, draws: int, n: int) -> Float[np.ndarray, "draws n"]:
    """How often each of `n` items is drawn, when `n` are drawn with replacement."""
    picks = rng.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(picks.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def tails(level: float) -> tuple[float, float]:
    """The two quantiles between which an interval of this level lies."""
    if not 0 < level < 1:
        raise UserError(f"an interval of level {level} was asked for", "give a level between 0 and 1, for example 0.95")
    return (1 - level) / 2, (1 + level) / 2


def _table(values: Any, name: str) -> np.ndarray:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise UserError(f"{name} have shape {table.shape}", "give at least one row and one column")
    if not np.isfinite(table).all():
        raise UserError(f"{name} hold {int((~np.isfinite(table)).sum())} numbers that are not finite", "drop those prompts first")
    return table


def _column(values: Any, name: str) -> np.ndarray:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or not column.size:
        raise UserError(f"{name} have shape {column.shape}", "give one number per prompt, at least one")
    return _table(column[:, None], name)[:, 0]


def _paired(first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = _column(first, "the first values"), _column(second, "the second values")
    if len(a) != len(b):
        raise UserError(f"the two sides have {len(a)} and {len(b)} values", "give both for the same prompts, in the same order")
    return a, b


def _classes(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    truth, values = _paired(labels, scores)
    positive, negative = values[truth > 0.5], values[truth <= 0.5]
    if not len(positive) or not len(negative):
        raise UserError("all labels are of one class, so there is nothing to separate", "give texts of both classes")
    return positive, negative
