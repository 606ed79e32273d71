"""Numbers of a dose-response curve: the initial slope, the area over the logarithm of the steps, the overshoot, and the return in KL."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from interp.errors import UserError
from interp.stats.intervals import Interval, draw_counts, tails


def initial_slope(steps: Sequence[int], shares: Float[np.ndarray, " dose"]) -> float:
    """The share undone per step over the first two doses: the least-squares line through zero."""
    first, values = np.array(steps[:2], dtype=np.float64), shares[:2]
    return float(first @ values / (first @ first))


def area_over_log_steps(steps: Sequence[int], shares: Float[np.ndarray, " dose"]) -> float:
    """The mean of the share undone over the logarithm of the steps, from the first dose to the last (trapezoids).

    Source: the area under the attack curve of Tamirisa et al. 2024 (TAR), which is over steps. NaN for a single dose.
    """
    if len(steps) < 2:
        return math.nan
    logs = np.log(np.array(steps, dtype=np.float64))
    return float(np.trapezoid(shares, logs) / (logs[-1] - logs[0]))


def overshoot(shares: Float[np.ndarray, " dose"]) -> float:
    """How far beyond the base the behaviour goes, in shares of the gap: the largest share undone less 1, and 0 where none is above 1."""
    return max(0.0, float(shares.max()) - 1)


def distribution_return(
    before: Float[np.ndarray, " text"], after: Float[np.ndarray, "seed text"], *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:  # fmt: skip
    """`1 - KL_n / KL_0` from the KL to base by text, of tuned and after a dose: 1 at the base, negative where KL has risen.

    The interval resamples texts and seeds. Raises `UserError` where tuned has no KL to base.
    """
    if before.mean() <= 0:
        raise UserError("the KL of tuned to base is zero on these texts, so nothing can return", "measure on other texts")
    rng = np.random.default_rng(seed)
    texts = draw_counts(rng, draws, len(before)) / len(before)
    seeds = draw_counts(rng, draws, len(after)) / len(after)
    moved, start = np.einsum("rs,st,rt->r", seeds, after, texts, optimize=True), texts @ before
    value = float(1 - after.mean() / before.mean())
    # Draws of texts on which the two models agree leave the ratio unbounded.
    if (start <= 0).any():
        return Interval(value, -math.inf, math.inf, len(before))
    low, high = np.quantile(1 - moved / start, tails(level))
    return Interval(value, float(low), float(high), len(before))
