"""Return doses of curves whose answer is known, censored where they have to be, and the numbers of a curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interp.elasticity.curves import area_over_log_steps, distribution_return, initial_slope, overshoot
from interp.elasticity.movement import fisher_length, path_length, weight_distance
from interp.elasticity.return_dose import UndoScores, behaviour_gap, dose_at, resampled_shares, return_dose, share_interval, shares_undone
from interp.errors import UserError

DOSES = [8, 16, 40, 80]


def scores_of(shares: list[list[float]], *, noise: float = 0.0, prompts: int = 40, gap: float = -2.0) -> UndoScores:
    """Scores of runs whose shares undone are these by seed and dose, with noise by prompt that is in base and tuned alike."""
    rng = np.random.default_rng(5)
    base = rng.normal(0, noise, prompts)
    tuned = base + gap
    runs = np.stack([np.stack([tuned - share * gap + rng.normal(0, noise, prompts) for share in row]) for row in shares])
    return UndoScores(base, tuned, runs)


def test_the_dose_lies_between_doses_on_the_logarithm() -> None:
    scores = scores_of([[0.1, 0.4, 0.6, 1.2]])
    assert shares_undone(scores) == pytest.approx([0.1, 0.4, 0.6, 1.2])
    half = return_dose(DOSES, scores, 0.5)
    assert half.value == pytest.approx(math.sqrt(16 * 40))
    assert (half.low, half.high) == pytest.approx((half.value, half.value))
    assert return_dose(DOSES, scores, 0.9).value == pytest.approx(math.sqrt(40 * 80))


def test_doses_are_censored_on_both_sides_and_say_so() -> None:
    late = return_dose(DOSES, scores_of([[0.0, 0.1, 0.2, 0.3]]), 0.5)
    assert (late.is_reached, str(late), late.high) == (False, "> 80", math.inf)
    early = return_dose(DOSES, scores_of([[0.7, 0.8, 0.9, 1.0]]), 0.5)
    assert (early.value, early.at_most, str(early)) == (8, True, "≤ 8")
    assert early.to_json()["text"] == "≤ 8"


def test_a_curve_that_dips_is_fitted_so_that_it_does_not_fall() -> None:
    # The fit pools .6 and .2 to .4, so that half is reached only after them.
    assert dose_at(DOSES, np.array([0.1, 0.6, 0.2, 0.8]), 0.5) == pytest.approx(math.exp(math.log(40) + 0.25 * math.log(2)))
    assert dose_at(DOSES, np.array([0.9, 0.1, 0.1, 0.1]), 0.5) == math.inf


def test_the_interval_is_over_prompts_and_seeds_together() -> None:
    seeds = [[0.1, 0.2, 0.3, 0.9], [0.4, 0.7, 0.9, 1.0], [0.2, 0.45, 0.7, 0.95]]
    apart = return_dose(DOSES, scores_of(seeds), 0.5)
    mean = return_dose(DOSES, scores_of([np.mean(seeds, axis=0).tolist()]), 0.5)
    assert apart.value == pytest.approx(mean.value)
    assert mean.high - mean.low == pytest.approx(0, abs=1e-9)
    assert apart.low < apart.value < apart.high
    noisy = return_dose(DOSES, scores_of([[0.1, 0.4, 0.6, 1.0]], noise=1.0), 0.5)
    assert noisy.low < noisy.high


@pytest.mark.oracle
def test_the_intervals_of_shares_cover_the_truth_about_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(0), 0
    for trial in range(60):
        base = rng.normal(0, 1, 60)
        tuned = base - 2 + rng.normal(0, 0.3, 60)
        runs = (tuned + 0.5 * 2 + rng.normal(0, 0.6, 60))[None, None]
        scores = UndoScores(base, tuned, runs)
        share = share_interval(resampled_shares(scores, draws=400, seed=trial)[:, 0], float(shares_undone(scores)[0]), 60)
        covered += share.low <= 0.5 <= share.high
    assert 51 <= covered <= 60


def test_the_gap_is_gated_by_its_interval_and_an_uncertain_one_has_unbounded_shares() -> None:
    assert behaviour_gap(scores_of([[0.5] * 4])).excludes(0)
    rng = np.random.default_rng(1)
    same = UndoScores(rng.normal(0, 1, 30), rng.normal(0, 1, 30), rng.normal(0, 1, (1, 4, 30)))
    assert not behaviour_gap(same).excludes(0)
    assert np.isnan(resampled_shares(same)).any()
    dose = return_dose(DOSES, same, 0.5)
    assert (dose.low, dose.high) == (0, math.inf)
    assert share_interval(resampled_shares(same)[:, 0], 0.1, 30).high == math.inf
    equal = UndoScores(same.base, same.base, same.runs)
    with pytest.raises(UserError, match="no share to undo"):
        shares_undone(equal)


def test_doses_that_do_not_rise_are_refused() -> None:
    for doses in ([8, 8, 40, 80], [0, 8, 16, 40], [8, 16]):
        with pytest.raises(UserError, match="rising"):
            return_dose(doses, scores_of([[0.1, 0.2, 0.3, 0.4]]), 0.5)


def test_slope_area_and_overshoot_of_curves_that_are_known() -> None:
    assert initial_slope([1, 2, 5], np.array([0.1, 0.2, 0.9])) == pytest.approx(0.1)
    steps = [1, 10, 100]
    assert area_over_log_steps(steps, np.array([0.0, 0.5, 1.0])) == pytest.approx(0.5)
    assert area_over_log_steps(steps, np.array([0.3, 0.3, 0.3])) == pytest.approx(0.3)
    assert math.isnan(area_over_log_steps([5], np.array([0.3])))
    assert (overshoot(np.array([0.5, 1.3, 1.1])), overshoot(np.array([0.2]))) == (pytest.approx(0.3), 0.0)


def test_the_return_of_the_distribution_is_one_at_the_base_and_negative_where_kl_rises() -> None:
    before = np.array([0.1, 0.2, 0.3])
    assert distribution_return(before, np.zeros((2, 3))).value == 1
    risen = distribution_return(before, np.stack([before * 1.5, before * 1.7]))
    assert risen.value == pytest.approx(-0.6)
    assert (risen.low, risen.high) == pytest.approx((-0.7, -0.5))
    some = distribution_return(np.array([0.0, 0.0, 0.3]), np.array([[0.0, 0.0, 0.1]]))
    assert (some.value, some.low, some.high) == (pytest.approx(2 / 3), -math.inf, math.inf)
    with pytest.raises(UserError, match="is zero"):
        distribution_return(np.zeros(3), np.zeros((1, 3)))


def test_a_path_is_as_long_as_its_legs() -> None:
    corners = [[torch.tensor([0.0, 0.0])], [torch.tensor([3.0, 0.0])], [torch.tensor([3.0, 4.0])]]
    assert path_length(corners) == pytest.approx(7)
    assert weight_distance(corners[0], corners[2]) == pytest.approx(5)
    assert fisher_length([0.02, 0.08]) == pytest.approx(0.2 + 0.4)
    with pytest.raises(UserError, match="shapes"):
        weight_distance([torch.zeros(2)], [torch.zeros(3)])
    with pytest.raises(UserError, match="negative"):
        fisher_length([-0.1])
