"""Intervals against closed forms and brute force: a wrong tail, pairing or tie would show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from interp.errors import UserError
from interp.stats import intervals
from interp.stats.intervals import (
    Interval,
    auc,
    bootstrap_auc,
    bootstrap_auc_difference,
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_means,
    bootstrap_rank_correlation,
    bootstrap_ratio,
    percents,
    permutation_p,
)


def test_the_interval_of_two_prompts_is_the_exact_distribution_of_their_resamples() -> None:
    # Of four equally likely resamples of {0, 1}, one has mean 0, two have 1/2, one has 1.
    assert bootstrap_mean([0.0, 1.0], level=0.4) == Interval(0.5, 0.5, 0.5, 2)
    assert bootstrap_mean([0.0, 1.0], level=0.6) == Interval(0.5, 0.0, 1.0, 2)


def test_the_interval_of_a_mean_approaches_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = bootstrap_mean(values, draws=20_000)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_a_seed_repeats_an_interval_and_another_seed_does_not() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_kept_counts_are_those_of_a_new_generator_and_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = intervals.counts_of(3, 20, 7)
    np.testing.assert_array_equal(counts, intervals.draw_counts(np.random.default_rng(3), 20, 7))
    assert intervals.counts_of(3, 20, 7) is counts
    with pytest.raises(ValueError, match="read-only"):
        counts[0, 0] = 9
    table = np.random.default_rng(0).normal(size=(50, 2))
    kept = bootstrap_means(table, seed=3)
    monkeypatch.setattr(intervals, "KEPT", 0)
    assert bootstrap_means(table, seed=3) == kept
    assert intervals.counts_of(3, 20, 7) is not counts


def test_every_column_of_a_curve_gets_the_interval_it_gets_alone() -> None:
    table = np.random.default_rng(0).normal(size=(30, 4))
    for column, found in zip(table.T, bootstrap_means(table, seed=2), strict=True):
        alone = bootstrap_mean(column, seed=2)
        assert [found.value, found.low, found.high] == pytest.approx([alone.value, alone.low, alone.high])


def test_many_values_are_drawn_in_pieces_without_changing_their_number() -> None:
    values = np.random.default_rng(0).normal(size=50_000)
    found = bootstrap_mean(values, draws=100)
    assert found.n == 50_000
    assert found.high - found.low == pytest.approx(3.92 / 50_000**0.5, rel=0.3)


def test_a_difference_is_paired() -> None:
    first = np.random.default_rng(0).normal(size=40) * 100
    found = bootstrap_difference(first + 1, first)
    assert [found.value, found.low, found.high] == pytest.approx([1, 1, 1])
    assert found.excludes(0)


def test_a_ratio_is_of_the_means_and_paired() -> None:
    below = np.random.default_rng(0).uniform(1, 9, 40)
    found = bootstrap_ratio(3 * below, below)
    assert [found.value, found.low, found.high] == pytest.approx([3, 3, 3])
    assert bootstrap_ratio([1.0, 5.0], [1.0, 1.0]).value == 3.0


def test_a_ratio_whose_denominator_may_be_zero_is_unbounded() -> None:
    found = bootstrap_ratio([1.0, 2.0, 3.0], [-1.0, 1.0, 1.0])
    assert (found.low, found.high) == (-np.inf, np.inf)
    with pytest.raises(UserError, match="mean zero"):
        bootstrap_ratio([1.0, 2.0], [-1.0, 1.0])


def test_a_permutation_p_counts_ties_and_is_never_zero() -> None:
    null = [0.0, 1.0, 2.0, 3.0]
    assert permutation_p(3.0, null) == 2 / 5
    assert permutation_p(9.0, null) == 1 / 5
    assert permutation_p(0.0, null, "less") == 2 / 5
    assert permutation_p(3.0, null, "two-sided") == 4 / 5
    assert permutation_p(1.5, null, "two-sided") == 1.0


def test_the_auc_agrees_with_scikit_learn_ties_included() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 300), rng.integers(0, 10, 300) / 10
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_the_bootstrap_of_an_auc_is_that_of_its_resamples() -> None:
    positive, negative = np.array([0.2, 0.9]), np.array([0.1, 0.5])
    resamples = [
        roc_auc_score([1, 1, 0, 0], [positive[a], positive[b], negative[c], negative[d]])
        for a, b, c, d in itertools.product(range(2), repeat=4)
    ]
    found = bootstrap_auc([1, 1, 0, 0], [0.2, 0.9, 0.1, 0.5], draws=40_000, level=0.8)
    assert found.value == 0.75
    assert (found.low, found.high) == (np.quantile(resamples, 0.1), np.quantile(resamples, 0.9))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean([]), "shape"),
        (lambda: bootstrap_mean([1.0, float("nan")]), "not finite"),
        (lambda: bootstrap_mean([[1.0]]), "one number per prompt"),
        (lambda: bootstrap_mean([1.0], level=95.0), "between 0 and 1"),
        (lambda: bootstrap_mean([1.0], draws=0), "at least 1"),
        (lambda: bootstrap_difference([1.0], [1.0, 2.0]), "same prompts"),
        (lambda: permutation_p(float("nan"), [1.0]), "finite"),
        (lambda: auc([1, 1], [0.1, 0.2]), "one class"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_two_aucs_on_the_same_texts_are_compared_text_by_text() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 60)
    signal = labels + rng.normal(0, 1.0, 120)
    near, far = signal + rng.normal(0, 0.1, 120), labels + rng.normal(0, 1.0, 120)
    same = bootstrap_auc_difference(labels, signal, signal)
    assert (same.value, same.low, same.high, same.n) == (0.0, 0.0, 0.0, 120)
    paired, unlike = bootstrap_auc_difference(labels, signal, near), bootstrap_auc_difference(labels, signal, far)
    assert paired.value == pytest.approx(roc_auc_score(labels, signal) - roc_auc_score(labels, near))
    assert paired.high - paired.low < 0.5 * (unlike.high - unlike.low)
    # Brute force over the same draws of texts: the share of pairs of a positive and a negative text that are in order.
    drawn = []
    for seed in range(300):
        negative, positive = (np.random.default_rng(seed).integers(0, 60, 60) + 60 * kind for kind in (0, 1))
        drawn.append(np.subtract(*[(scores[positive][:, None] > scores[negative]).mean() for scores in (signal, far)]))
    assert (unlike.low, unlike.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.05)


def test_the_ends_of_a_share_are_whole_percentages_and_unbounded_where_one_is_infinite() -> None:
    assert percents(0.094, 0.8) == "9%, 80%"
    assert percents(-0.001, 0.5, " to ") == "0% to 50%"
    # Where what it is a share of is not above 0 in every resample.
    share = bootstrap_ratio(np.array([1.0, 0.0, 1.0]), np.array([1.0, -1.0, 0.5]))
    assert percents(share.low, share.high) == "unbounded"


def test_the_rank_correlation_is_scipys_and_its_interval_covers_it() -> None:
    generator = np.random.default_rng(0)
    one = generator.integers(0, 9, 60).astype(float)
    other = one + generator.normal(0, 4, 60)
    interval = bootstrap_rank_correlation(one, other)
    assert interval.value == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert -1 < interval.low < interval.value < interval.high < 1
    exact = bootstrap_rank_correlation(one, one)
    assert (exact.value, exact.low, exact.high) == pytest.approx((1, 1, 1))
    assert np.isnan(bootstrap_rank_correlation(one, np.ones(60)).value)
