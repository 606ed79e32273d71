"""Student intervals of a few repeats: coverage in simulated repeats, and values of a table."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from interp.stats.repeats import detectable, lower_bound, repeats_mean


@pytest.mark.oracle
def test_the_interval_is_that_of_scipy() -> None:
    values = [0.3, 0.5, 0.9, 0.2]
    found = repeats_mean(values, level=0.9)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))


@pytest.mark.oracle
def test_a_further_repeat_lies_below_the_bound_as_often_as_asked() -> None:
    draws = np.random.default_rng(0).normal(2.0, 3.0, (4000, 5))
    below = np.mean([row[4] < lower_bound(row[:4], 0.05) for row in draws])
    assert below == pytest.approx(0.05, abs=0.012)


@pytest.mark.oracle
def test_a_mean_of_the_detectable_size_is_found_in_four_of_five_studies() -> None:
    size = detectable(1.0, 8)
    draws = np.random.default_rng(0).normal(size, 1.0, (3000, 8))
    share = np.mean([repeats_mean(row).low > 0 for row in draws])
    assert 0.78 < share < 0.9


def test_one_repeat_says_nothing() -> None:
    assert math.isnan(repeats_mean([1.0]).low)
    assert math.isnan(lower_bound([1.0], 0.05))
    assert math.isnan(detectable(1.0, 1))
