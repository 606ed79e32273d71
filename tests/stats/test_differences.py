"""The difference of differences and its shares: planted effects, an independent bootstrap, and the cases without an answer."""

from __future__ import annotations

import math

import jaxtyping
import numpy as np
import pytest

from interp.errors import UserError
from interp.stats.differences import Cells, differences, logits, mean_cells


def planted(rng: np.random.Generator, n: int, lost: float, in_base: float, in_tuned: float) -> Cells:
    """Scores with these effects, each with noise of its own."""
    base = rng.normal(0.5, 0.1, n)
    tuned = base - lost + rng.normal(0, 0.02, n)
    return Cells(base, tuned, base + in_base + rng.normal(0, 0.02, n), tuned + in_tuned + rng.normal(0, 0.02, n))


def test_planted_effects_are_found_and_covered_by_their_intervals() -> None:
    found = differences(planted(np.random.default_rng(0), 2000, 0.3, 0.1, 0.25))
    truth = {
        "lost": 0.3, "rise_in_tuned": 0.25, "rise_in_base": 0.1, "difference": 0.15, "returned": 0.25 / 0.3, "undone": 0.5, "survives": 0.5,
    }  # fmt: skip
    for name, value in truth.items():
        interval = getattr(found, name)
        assert interval.low < interval.value < interval.high
        assert interval.value == pytest.approx(value, abs=0.01)
        assert interval.low - 0.005 < value < interval.high + 0.005


def test_what_survives_is_the_gap_between_the_edited_models_over_the_gap_between_the_models() -> None:
    cells = planted(np.random.default_rng(1), 50, 0.2, 0.15, 0.2)
    gap = (cells.base_edited - cells.tuned_edited).mean() / (cells.base - cells.tuned).mean()
    assert differences(cells).survives.value == pytest.approx(gap)


@pytest.mark.oracle
def test_shares_resample_the_loss_with_the_same_prompts() -> None:
    """Against a plain loop over draws, the referee's own; a fixed denominator would give another interval."""
    rng = np.random.default_rng(2)
    base = rng.beta(0.5, 0.6, 120)
    tuned, base_edited, tuned_edited = (np.clip(base + rng.normal(shift, 0.4, 120), 0, 1) for shift in (-0.25, 0.2, 0.0))
    cells = Cells(base, tuned, base_edited, tuned_edited)
    found = differences(cells, draws=4000)
    survived, fixed = [], []
    for _ in range(4000):
        i = rng.integers(0, 120, 120)
        survived.append((base_edited[i] - tuned_edited[i]).mean() / (base[i] - tuned[i]).mean())
        fixed.append((base_edited[i] - tuned_edited[i]).mean() / (base - tuned).mean())
    low, high = np.quantile(survived, [0.025, 0.975])
    assert (found.survives.low, found.survives.high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))
    assert np.quantile(fixed, 0.975) - np.quantile(fixed, 0.025) < 0.9 * (high - low)


def test_an_edit_that_adds_the_same_to_both_models_has_no_difference_and_all_survives() -> None:
    cells = planted(np.random.default_rng(3), 400, 0.3, 0.25, 0.25)
    found = differences(cells)
    assert found.returned.value > 0.8
    assert found.difference.low < 0 < found.difference.high
    assert found.survives.value == pytest.approx(1, abs=0.02)


def test_where_nothing_was_lost_there_is_no_share() -> None:
    cells = planted(np.random.default_rng(4), 50, -0.1, 0.0, 0.2)
    found = differences(cells)
    assert found.difference.value == pytest.approx(0.2, abs=0.02)
    assert math.isnan(found.undone.value)
    assert (found.undone.low, found.undone.high) == (-math.inf, math.inf)


def test_log_odds_give_a_score_near_one_as_much_room_as_one_near_zero() -> None:
    low, high = np.full(10, 0.1), np.full(10, 0.5)
    cells = logits(Cells(1 - low, low, 1 - low / 11.0, high))
    assert cells.rise_in_tuned.mean() == pytest.approx(math.log(9))
    assert (cells.base + cells.tuned).mean() == pytest.approx(0)
    assert cells.rise_in_base.mean() > 2
    assert np.isfinite(logits(Cells(low * 0, low * 0 + 1, low, high)).lost).all()


def test_the_mean_of_several_edits_is_taken_cell_by_cell() -> None:
    rng = np.random.default_rng(5)
    one, two = planted(rng, 8, 0.1, 0.1, 0.1), planted(rng, 8, 0.2, 0.2, 0.2)
    np.testing.assert_allclose(mean_cells([one, two]).difference, (one.difference + two.difference) / 2)


def test_cells_of_different_prompts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # With the checks of shapes on, as in all other tests, the annotations refuse them first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match=r"\[3, 3, 2, 3\]"):
        Cells(np.zeros(3), np.zeros(3), np.zeros(2), np.zeros(3))
