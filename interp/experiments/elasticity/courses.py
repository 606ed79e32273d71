"""The rows of the study of tuning on reviews as arrays by seed and dose."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.stats.repeats import repeats_mean

Rows = Sequence[Mapping[str, Any]]
TUNING = "tuning"
# The class of reviews that a model is tuned on, and what its behaviour is then meant to be: above the base's, or below it.
SIGNS = {"positive": 1, "negative": -1}
# Each class with the one that undoes it.
OTHER = {"positive": "negative", "negative": "positive"}


@dataclass(frozen=True, eq=False)
class Course:
    """The runs of one arm from the models that were tuned on one amount of reviews, at the seeds and doses that all of them have.

    Attributes:
        first, n, arm: the class of reviews that was tuned on, how many of them, and what was read then.
        base, tuned, scores: the behaviour of the base, of the tuned models and of the runs, turned so that tuning raises it.
        kl_before, kl: KL to the base by held-out text, of the tuned models and of the runs.
    """

    first: str
    n: int
    arm: str
    doses: tuple[int, ...]
    seeds: tuple[int, ...]
    base: Float[np.ndarray, " opening"]
    tuned: Float[np.ndarray, "seed opening"]
    scores: Float[np.ndarray, "seed dose opening"]
    kl_before: Float[np.ndarray, "seed text"]
    kl: Float[np.ndarray, "seed dose text"]

    @property
    def gap(self) -> Float[np.ndarray, " seed"]:
        """How far tuning moved the behaviour."""
        return np.asarray((self.tuned - self.base).mean(axis=1))

    @property
    def decline(self) -> Float[np.ndarray, "seed dose"]:
        """How much of it is undone, in nats."""
        return np.asarray((self.tuned[:, None] - self.scores).mean(axis=2))

    @property
    def kls(self) -> Float[np.ndarray, "seed dose"]:
        """The mean KL to the base."""
        return np.asarray(self.kl.mean(axis=2))

    @property
    def kls_before(self) -> Float[np.ndarray, " seed"]:
        """The mean KL of the tuned models to the base."""
        return np.asarray(self.kl_before.mean(axis=1))

    @property
    def share(self) -> Float[np.ndarray, "seed dose"]:
        """The share undone by dose, as linearised values by seed."""
        return np.stack([ratio_values(column, self.gap) for column in self.decline.T], axis=1)

    @property
    def shown_share(self) -> Float[np.ndarray, "seed dose"]:
        """The share undone where tuning moved the behaviour beyond chance; NaN where there is nothing to take a share of."""
        return np.full_like(self.decline, np.nan) if repeats_mean(self.gap).low <= 0 else self.share

    @property
    def returned(self) -> Float[np.ndarray, "seed dose"]:
        """`1 - KL/KL_0` by dose, as linearised values by seed."""
        return np.stack([1 - ratio_values(column, self.kls_before) for column in self.kls.T], axis=1)


def ratio_values(numerator: Float[np.ndarray, " seed"], denominator: Float[np.ndarray, " seed"]) -> Float[np.ndarray, " seed"]:
    """Values by seed whose mean is the ratio of the two means, and whose spread is that of this ratio to first order."""
    ratio = numerator.mean() / denominator.mean()
    return np.asarray(ratio + (numerator - ratio * denominator) / denominator.mean())


def course_of(record: Mapping[str, Any], first: str, n: int, arm: str) -> Course | None:
    """The runs of an arm; None where no seed has them. Seeds without all doses of the record are left out."""
    rows = [row for row in record["rows"] if (row["first"], row["n"], row["arm"]) == (first, n, arm)]
    tuned = {row["seed"]: row for row in record["rows"] if (row["first"], row["arm"], row["dose"]) == (first, TUNING, n)}
    doses = tuple(sorted({row["dose"] for row in rows}))
    by_place = {(row["seed"], row["dose"]): row for row in rows}
    seeds = tuple(seed for seed in sorted(tuned) if all((seed, dose) in by_place for dose in doses))
    if not seeds or not doses:
        return None
    sign = SIGNS[first]
    runs = [[by_place[seed, dose] for dose in doses] for seed in seeds]
    return Course(
        first, n, arm, doses, seeds, sign * _array(record["base_row"]["score"]), sign * _array([tuned[seed]["score"] for seed in seeds]),
        sign * _array([[row["score"] for row in some] for some in runs]), _array([tuned[seed]["kl_base"] for seed in seeds]),
        _array([[row["kl_base"] for row in some] for some in runs]),
    )  # fmt: skip


def of_seeds(course: Course, seeds: Collection[int]) -> Course:
    """The same runs of these seeds alone."""
    places = [place for place, seed in enumerate(course.seeds) if seed in seeds]
    return replace(
        course, seeds=tuple(course.seeds[place] for place in places), tuned=course.tuned[places], scores=course.scores[places],
        kl_before=course.kl_before[places], kl=course.kl[places],
    )  # fmt: skip


def _array(values: Any) -> np.ndarray:
    return np.array(values, dtype=np.float64)
