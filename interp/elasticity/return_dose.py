"""How many samples it takes to undo a tuning: the share undone by dose, and the smallest dose with half and nine tenths undone.

With s the mean behaviour score, the share undone after n samples is `u(n) = (s_tuned - s_n) / (s_tuned - s_base)`. The return dose of a
level is where a non-decreasing fit of u over the doses reaches it, interpolated on the logarithm of the dose. It is censored where the
smallest dose already reaches the level (`at most`) and where the largest does not (`more than`). Intervals resample prompts and seeds
together; with one seed they are over prompts alone, and with a few seeds they are too narrow rather than too wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression

from interp.errors import UserError
from interp.stats.intervals import Interval, draw_counts, tails

LEVELS = (0.5, 0.9)


@dataclass(frozen=True, eq=False)
class UndoScores:
    """The behaviour score by prompt of base, of tuned, and of the runs of one arm at each dose and seed."""

    base: Float[np.ndarray, " prompt"]
    tuned: Float[np.ndarray, " prompt"]
    runs: Float[np.ndarray, "seed dose prompt"]


@dataclass(frozen=True)
class ReturnDose:
    """The smallest dose at which a level of the share undone is reached, in the unit of the doses, with its interval.

    `value` is infinite where the level is not reached, and the smallest dose where that already reaches it (`at_most`).
    """

    level: float
    value: float
    low: float
    high: float
    at_most: bool
    largest: float

    @property
    def is_reached(self) -> bool:
        """Whether the level is reached within the doses."""
        return math.isfinite(self.value)

    def __str__(self) -> str:
        if not self.is_reached:
            return f"> {self.largest:g}"
        return f"{'≤ ' if self.at_most else ''}{self.value:.3g}"

    def to_json(self) -> dict[str, Any]:
        """The dose, its interval and how it is censored, as a JSON object."""
        return {"level": self.level, "value": self.value, "low": self.low, "high": self.high, "at_most": self.at_most,
                "largest_dose": self.largest, "text": str(self)}  # fmt: skip


def behaviour_gap(scores: UndoScores, *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """s_tuned - s_base with its interval over prompts: what there is to undo."""
    difference = scores.tuned - scores.base
    means = draw_counts(np.random.default_rng(seed), draws, len(difference)) @ difference / len(difference)
    low, high = np.quantile(means, tails(level))
    return Interval(float(difference.mean()), float(low), float(high), len(difference))


def shares_undone(scores: UndoScores) -> Float[np.ndarray, " dose"]:
    """The share undone at each dose, over all seeds and prompts."""
    gap = scores.tuned.mean() - scores.base.mean()
    if gap == 0:
        raise UserError("base and tuned have the same score, so there is no share to undo", "choose another behaviour, or other prompts")
    return np.asarray((scores.tuned.mean() - scores.runs.mean(axis=(0, 2))) / gap)


def resampled_shares(scores: UndoScores, *, draws: int = 2000, seed: int = 0) -> Float[np.ndarray, "draw dose"]:
    """The shares undone in each bootstrap draw over prompts and seeds; NaN in a draw whose gap is zero or has the other sign.

    The same seed gives the same draws of prompts for every arm, so that arms are compared on the same prompts.
    """
    rng = np.random.default_rng(seed)
    prompts = draw_counts(rng, draws, len(scores.base)) / len(scores.base)
    seeds = draw_counts(rng, draws, len(scores.runs)) / len(scores.runs)
    tuned, base = prompts @ scores.tuned, prompts @ scores.base
    runs = np.einsum("rs,sdp,rp->rd", seeds, scores.runs, prompts, optimize=True)
    gap = tuned - base
    gap[gap * np.sign(scores.tuned.mean() - scores.base.mean()) <= 0] = np.nan
    return np.asarray((tuned[:, None] - runs) / gap[:, None])


def share_interval(values: Float[np.ndarray, " draw"], value: float, n: int, level: float = 0.95) -> Interval:
    """The percentile interval of a share; unbounded where the gap of some draw is zero or has the other sign."""
    if np.isnan(values).any():
        return Interval(value, -math.inf, math.inf, n)
    low, high = np.quantile(values, tails(level))
    return Interval(value, float(low), float(high), n)


def dose_at(doses: Sequence[float | int], shares: Float[np.ndarray, " dose"], level: float) -> float:
    """The smallest dose at which a non-decreasing fit of the shares reaches the level; infinite where it does not.

    Between doses the fit is linear in the logarithm of the dose; where the smallest dose reaches the level it is that dose.
    """
    fit = isotonic_regression(shares).x
    reached = np.flatnonzero(fit >= level)
    if not len(reached):
        return math.inf
    place = int(reached[0])
    if place == 0:
        return float(doses[0])
    below, above = float(fit[place - 1]), float(fit[place])
    share = (level - below) / (above - below)
    return math.exp(math.log(doses[place - 1]) + share * (math.log(doses[place]) - math.log(doses[place - 1])))


def return_dose(
    doses: Sequence[float | int], scores: UndoScores, level: float, *, draws: int = 500, seed: int = 0, confidence: float = 0.95
) -> ReturnDose:  # fmt: skip
    """The return dose of a level with its interval. Raises `UserError` for doses that are not positive and rising."""
    if len(doses) != scores.runs.shape[1] or any(b <= a for a, b in zip((0, *doses), doses, strict=False)):
        raise UserError(f"the doses {list(doses)} do not fit scores at {scores.runs.shape[1]} doses", "give rising positive doses")
    value = dose_at(doses, shares_undone(scores), level)
    resampled = resampled_shares(scores, draws=draws, seed=seed)
    if np.isnan(resampled).any():
        low, high = 0.0, math.inf
    else:
        values = np.sort([dose_at(doses, row, level) for row in resampled])
        # Whole draws are taken, since between a finite and an infinite dose there is nothing to interpolate.
        first, last = (round(tail * (len(values) - 1)) for tail in tails(confidence))
        low, high = float(values[first]), float(values[last])
    return ReturnDose(level, value, low, high, value == doses[0], float(doses[-1]))
