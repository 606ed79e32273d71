"""Correlations of the scores, against planted ones."""

from __future__ import annotations

import numpy as np
import pandas as pd

from interp.preferences.forward_level import rank_residual
from interp.preferences.summary import correlations, rank_interval


def test_a_residual_of_ranks_does_not_depend_on_what_it_is_given() -> None:
    rng = np.random.default_rng(0)
    length = pd.Series(rng.normal(size=200))
    score = pd.Series(length * 3 + rng.normal(size=200))
    score[5] = np.nan
    residual = rank_residual(score, length)
    assert np.isnan(residual[5])
    assert abs(residual.corr(length.rank())) < 0.02
    assert score.corr(length, method="spearman") > 0.9
    # What is left is the part of its own.
    assert residual.corr(score - 3 * length, method="spearman") > 0.9


def test_rank_correlations_have_an_interval_that_covers() -> None:
    rng = np.random.default_rng(1)
    truth, hits = 6 / np.pi * np.arcsin(0.6 / 2), 0
    for _ in range(200):
        first = rng.normal(size=80)
        second = 0.6 * first + 0.8 * rng.normal(size=80)
        table = correlations(pd.DataFrame({"ches": first, "own": second}))
        hits += bool(table["low"][0] <= truth <= table["high"][0])
    assert hits >= 180
    assert rank_interval(1.0, 10) == (1.0, 1.0)
