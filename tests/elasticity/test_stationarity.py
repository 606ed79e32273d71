"""The closed forms of paper C's theory: the ideal mixture, and a bigram model at the joint optimum, after sequential training, and where
the two sets do not compete."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.elasticity.mixture import mixture_rates, rate_slopes
from interp.elasticity.stationarity import hooke_products, loss_gradient, mean_loss, rate_ratio, stationarity
from interp.errors import UserError
from interp.models.model import Model
from training.bigrams import OUTCOMES, Source, adam_course, fit, gradient, sources, start

KS = (3, 30, 100)


def pareto(n: int, places: slice, total: int) -> np.ndarray:
    """Pareto-like masses on some of the outcomes."""
    masses = np.zeros(total)
    masses[places] = 1 / np.arange(1, n + 1) ** 1.5
    return masses / masses.sum()


LARGE, SMALL, THIRD = pareto(20, slice(0, 20), 45), pareto(15, slice(20, 35), 45), pareto(10, slice(35, 45), 45)


@pytest.mark.oracle
@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("name", ["large", "small", "halves"])
def test_data_like_either_set_moves_the_small_sets_rate_k_times_as_far_the_other_way(k: int, name: str) -> None:
    further = {"large": LARGE, "small": SMALL, "halves": (LARGE + SMALL) / 2}[name]
    assert rate_slopes(LARGE, SMALL, further, k).ratio == pytest.approx(-k, rel=1e-10)
    before, after = (mixture_rates(LARGE, SMALL, further, k, amount) for amount in (0, 1e-4))
    assert (after.small - before.small) / (after.large - before.large) == pytest.approx(-k, rel=0.01)


@pytest.mark.oracle
@pytest.mark.parametrize("k", KS)
def test_a_disjoint_third_source_moves_both_rates_alike_and_one_mixed_as_the_data_moves_none(k: int) -> None:
    assert rate_slopes(LARGE, SMALL, THIRD, k).ratio == pytest.approx(1, rel=1e-12)
    as_trained = (k * LARGE + SMALL) / (k + 1)
    still = rate_slopes(LARGE, SMALL, as_trained, k)
    assert (still.large, still.small) == pytest.approx((0, 0), abs=1e-14)


def test_a_mixture_of_what_is_no_distribution_is_refused() -> None:
    with pytest.raises(UserError, match="add up to 1"):
        rate_slopes(LARGE * 2, SMALL, THIRD, 3)
    with pytest.raises(UserError, match="not usable"):
        rate_slopes(LARGE, SMALL, THIRD, 0)


@lru_cache(maxsize=4)
def at_optimum(k: int) -> tuple[Source, Source, list[Tensor]]:
    """Two sources and a model at the optimum of `k` times the loss on the first plus that on the second."""
    large, small = sources(1)
    parameters = start(0)
    fit(parameters, [(k, large), (1, small)])
    return large, small, parameters


def random_direction(parameters: list[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(part.shape, generator=generator, dtype=part.dtype) for part in parameters]


def moved(parameters: list[Tensor], direction: list[Tensor], size: float) -> list[Tensor]:
    norm = math.sqrt(sum(float((part**2).sum()) for part in direction))
    return [one.detach() + size / norm * other for one, other in zip(parameters, direction, strict=True)]


@pytest.mark.oracle
@pytest.mark.parametrize("k", KS)
def test_at_the_joint_optimum_every_direction_has_the_ratio_minus_k_and_hookes_products_cancel(k: int) -> None:
    large, small, parameters = at_optimum(k)
    slopes = gradient(large, parameters), gradient(small, parameters)
    assert stationarity(*slopes, k).residual < 1e-3
    for seed in range(3):
        direction = random_direction(parameters, seed)
        assert rate_ratio(*slopes, direction) == pytest.approx(-k, rel=0.01)
        # A finite step is small where it is small beside 1/k.
        there = moved(parameters, direction, 1e-4 / k)
        changes = tuple(float((one.divergence(there) - one.divergence(parameters)).detach()) for one in (large, small))
        assert changes[1] / changes[0] == pytest.approx(-k, rel=0.01)
        products = hooke_products((float(k), 1.0), (changes[0], changes[1]))
        assert products[0] == pytest.approx(-products[1], rel=0.01)


@pytest.mark.oracle
def test_the_law_holds_for_steps_that_are_small_beside_one_by_k_and_not_for_large_ones() -> None:
    for k in (3, 30):
        large, small, parameters = at_optimum(k)
        ratios = []
        for size in (1e-3, 1.0):
            there = moved(parameters, random_direction(parameters, 0), size)
            ratios.append(float(((small.loss(there) - small.loss(parameters)) / (large.loss(there) - large.loss(parameters))).detach()))
        assert abs(ratios[0] / -k - 1) < abs(ratios[1] / -k - 1)
        assert abs(ratios[1] / -k - 1) > 0.5


@pytest.mark.oracle
def test_after_sequential_training_the_ratio_does_not_depend_on_k_and_the_residual_says_so() -> None:
    large, small = sources(1)
    ratios = []
    for steps in (5, 400):
        parameters = start(0)
        fit(parameters, [(1, large)])
        (parameters,) = adam_course(parameters, small, [steps])
        slopes = gradient(large, parameters), gradient(small, parameters)
        back = [-part for part in slopes[0]]
        ratios.append(rate_ratio(*slopes, back))
        for k in (30, 100):
            assert stationarity(*slopes, k).residual > 0.5
    assert all(abs(ratio / -30 - 1) > 0.5 for ratio in ratios)
    # The longer the second stage, the less its own loss moves to first order.
    assert abs(ratios[1]) < abs(ratios[0])


@pytest.mark.oracle
def test_sets_with_contexts_of_their_own_have_no_ratio() -> None:
    large, small = sources(2, separate=True)
    for k in (3, 30):
        parameters = start(0, rank=OUTCOMES)
        fit(parameters, [(k, large), (1, small)], steps=400)
        slopes = gradient(large, parameters), gradient(small, parameters)
        still = stationarity(*slopes, k)
        shared = stationarity(gradient(large, start(0, OUTCOMES)), gradient(small, start(0, OUTCOMES)), k)
        assert max(still.norm_large, still.norm_small) < 1e-4 * shared.norm_large
        # The ratio of the finite changes is that of the curvatures, whatever k is.
        there = moved(parameters, random_direction(parameters, 0), 0.1)
        ratio = float(((small.loss(there) - small.loss(parameters)) / (large.loss(there) - large.loss(parameters))).detach())
        assert 0.1 < ratio < 10


def test_gradients_that_vanish_have_neither_residual_nor_ratio() -> None:
    none = (torch.zeros(3, dtype=torch.float64),)
    assert math.isnan(stationarity(none, none, 2).residual)
    assert math.isnan(rate_ratio(none, none, [torch.ones(3, dtype=torch.float64)]))
    one = (torch.tensor([1.0, 0.0]),)
    assert stationarity(one, one, 5).residual == pytest.approx(1)
    assert stationarity(one, (torch.tensor([-5.0, 0.0]),), 5).residual == 0
    with pytest.raises(UserError, match="ratio of the sizes"):
        stationarity(one, one, 0)


@pytest.mark.oracle
def test_the_gradient_of_a_models_loss_is_that_of_plain_transformers(gpt2: Model) -> None:
    rows = [[1, 5, 9, 3], [2, 2, 7]]
    hf = gpt2.plain_copy().requires_grad_(True)
    losses = [hf(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss * (len(row) - 1) for row in rows]
    expected = sum(losses[1:], losses[0]) / 5
    assert float(mean_loss(hf, rows)) == pytest.approx(float(expected), rel=1e-6)
    expected.backward()
    for one, parameter in zip(loss_gradient(hf, rows), hf.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(one, parameter.grad, rtol=1e-3, atol=1e-6)


def test_a_source_divergence_is_zero_for_its_own_model() -> None:
    large, _ = sources(1)
    assert isinstance(large, Source)
    parameters = start(3, rank=OUTCOMES)
    fit(parameters, [(1, large)])
    assert float(large.divergence(parameters)) == pytest.approx(0, abs=1e-6)
