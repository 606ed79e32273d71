"""Intervals from a few independent repeats, such as seeds of a training run or gradient steps, by Student's t.

For so few numbers a bootstrap is too narrow. Both functions assume that the repeats are independent and about normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.special import stdtrit

from interp.stats.intervals import Interval


def repeats_mean(values: Sequence[float] | np.ndarray, *, level: float = 0.95) -> Interval:
    """The mean of independent repeats with its two-sided Student interval; the ends are NaN for fewer than two."""
    numbers = np.asarray(values, dtype=float)
    half = _quantile(0.5 + level / 2, len(numbers)) * _spread(numbers) / math.sqrt(max(1, len(numbers)))
    mean = float(numbers.mean()) if len(numbers) else math.nan
    return Interval(mean, mean - half, mean + half, len(numbers))


def lower_bound(values: Sequence[float] | np.ndarray, chance: float) -> float:
    """The number below which one further repeat lies with this probability; NaN for fewer than two repeats.

    This is the one-sided prediction bound `mean - t s sqrt(1 + 1/n)`.
    """
    numbers = np.asarray(values, dtype=float)
    if len(numbers) < 2:
        return math.nan
    return float(numbers.mean() - _quantile(1 - chance, len(numbers)) * _spread(numbers) * math.sqrt(1 + 1 / len(numbers)))


def detectable(spread: float, n: int, *, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true mean of `n` repeats of standard deviation `spread` whose two-sided interval excludes 0 in `power` of studies.

    By the usual approximation `(t(level) + t(power)) s / sqrt(n)`, which is a little too large for few repeats. NaN for fewer than two.
    """
    return (_quantile(0.5 + level / 2, n) + _quantile(power, n)) * spread / math.sqrt(n) if n > 1 else math.nan


@cache
def _quantile(probability: float, n: int) -> float:
    return float(stdtrit(n - 1, probability)) if n > 1 else math.nan


def _spread(numbers: np.ndarray) -> float:
    return float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
