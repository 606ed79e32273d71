"""Metrics: any function of the logits, words in place of ids, and maps as tables to draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp import (
    LogitDifference,
    LogProbability,
    Model,
    ModelPair,
    ProbeProjection,
    UserError,
    agreement,
    attribution_patch,
    patch,
    path_patch,
)
from interp.patching.metrics import Metric, as_metric

pytestmark = pytest.mark.oracle
CLEAN, CORRUPTED = "the quick wintle sings", "the bitter snarg walks"
DIFFERENCE = LogitDifference(5, 300)


def by_hand(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 5] - logits[:, 300]


@pytest.mark.parametrize("settings", [{"site": "resid_pre"}, {"site": "head_out"}, {"site": "mlp_out", "null_draws": 2}])
def test_a_function_of_the_logits_patches_as_the_metric_that_it_is(model: Model, settings: dict[str, Any]) -> None:
    own, metric = (patch(model, CLEAN, CORRUPTED, metric=metric, **settings) for metric in (by_hand, DIFFERENCE))
    assert torch.equal(own.values, metric.values)
    assert torch.equal(own.target, metric.target)
    assert own.metric == "by_hand"


@pytest.mark.parametrize("steps", [None, 3])
def test_a_function_of_the_logits_can_be_estimated(model: Model, steps: int | None) -> None:
    own, metric = (attribution_patch(model, CLEAN, CORRUPTED, metric=metric, steps=steps) for metric in (by_hand, DIFFERENCE))
    assert torch.equal(own.values, metric.values)
    assert float(own.effects.abs().max()) > 0


def test_a_function_of_the_logits_measures_paths_and_pairs(gpt2: Model, pair: ModelPair) -> None:
    nodes: dict[str, Any] = {"senders": ["embed", "mlp.0", "head.0.1"], "receivers": ["mlp.2", "logits"]}
    own, metric = (path_patch(gpt2, CLEAN, CORRUPTED, metric=metric, **nodes) for metric in (by_hand, DIFFERENCE))
    torch.testing.assert_close(own.values, metric.values, equal_nan=True)
    across = [patch(pair, CLEAN, metric=metric) for metric in (by_hand, DIFFERENCE)]
    assert torch.equal(across[0].values, across[1].values)


def test_maps_of_different_functions_are_not_compared(gpt2: Model) -> None:
    one, other = (lambda logits: logits[:, 5]), (lambda logits: logits[:, 300])
    measured, estimated = patch(gpt2, CLEAN, CORRUPTED, metric=one), attribution_patch(gpt2, CLEAN, CORRUPTED, metric=one)
    assert agreement(measured, estimated).top == 10
    with pytest.raises(UserError, match="the maps differ in functions"):
        agreement(measured, attribution_patch(gpt2, CLEAN, CORRUPTED, metric=other))


def test_words_stand_for_their_tokens(gpt2: Model) -> None:
    assert LogitDifference.of(gpt2, " river", "stone") == LogitDifference(gpt2.token("river"), gpt2.token(" stone"))
    assert LogProbability.of(gpt2, " river", " stone") == LogProbability((gpt2.token("river"), gpt2.token("stone")))
    with pytest.raises(UserError, match="tokens for gpt2, and one is needed"):
        LogitDifference.of(gpt2, " river", " riverstone")


def test_listing_the_sites_of_a_metric_checks_nothing_and_checking_lists_none(gpt2: Model) -> None:
    wrong = [LogitDifference(5, 10**6), LogProbability(()), ProbeProjection(torch.ones(3))]
    assert [metric.sites(gpt2) for metric in wrong] == [(), (), (f"resid_post.{gpt2.n_layers - 1}",)]
    for metric in wrong:
        with pytest.raises(UserError):
            metric.check(gpt2)
    for good in (DIFFERENCE, LogProbability((5,)), ProbeProjection(torch.ones(gpt2.d_model)), as_metric(by_hand)):
        assert isinstance(good, Metric)
        good.check(gpt2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        (lambda logits: logits, r"given logits of shape \[\d+, \d+\] and returned a tensor of shape \[\d+, \d+\]"),
        (lambda logits: logits.sum(), r"returned a tensor of shape \[\]"),
        (lambda logits: 3.0, "returned float"),
        (3.0, "3.0 is not a metric"),
        (LogitDifference, "is not a metric"),
        ([by_hand, DIFFERENCE], "2 metrics were given for 1 prompts"),
    ],
)
def test_what_does_not_measure_is_refused(gpt2: Model, metric: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        patch(gpt2, CLEAN, CORRUPTED, metric=metric)


def test_what_is_written_of_a_function_names_it_and_no_address(gpt2: Model) -> None:
    assert repr(as_metric(by_hand)) == "LogitFunction(by_hand)"
    assert patch(gpt2, CLEAN, CORRUPTED, metric=by_hand).settings["metric"] == ["LogitFunction(by_hand)"]
    assert as_metric(lambda logits: logits[:, 0]).label == "function of the logits"


@pytest.mark.parametrize(
    ("settings", "index", "shape"),
    [
        ({"site": "resid_pre"}, ["layer", "position"], (3, 4)),
        ({"site": "resid_pre", "layers": [2, 0], "positions": [3, 1]}, ["layer", "position"], (2, 2)),
        ({"site": "resid_pre", "positions": "all"}, ["layer"], (3,)),
        ({"site": "head_out"}, ["layer", "head"], (3, 4)),
        ({"site": "mlp_post", "units": [7, 3]}, ["layer", "neuron"], (3, 2)),
        ({"site": "head_out", "positions": "each"}, ["layer", "head", "position"], (3, 4, 4)),
    ],
)
def test_a_grid_holds_the_numbers_of_the_table(gpt2: Model, settings: dict[str, Any], index: list[str], shape: tuple[int, ...]) -> None:
    found = patch(gpt2, CLEAN, CORRUPTED, metric=DIFFERENCE, **settings)
    frame = found.to_frame()
    for direction in found.directions:
        grid = found.grid(direction)
        assert grid.shape == shape
        rows = frame[frame["direction"] == direction].set_index(index)["effect"].sort_index()
        assert grid.flatten().tolist() == pytest.approx(rows.tolist(), abs=1e-7)
    assert torch.equal(found.grid(), found.grid("denoising"))
    with pytest.raises(UserError, match="there is no direction 'sideways'"):
        found.grid("sideways")


def test_a_cell_that_was_not_patched_is_missing_in_the_grid(gpt2: Model) -> None:
    found = patch(gpt2, CLEAN, CORRUPTED, metric=DIFFERENCE, site="mlp_post", units=[(0, 7), (2, 3)])
    assert found.grid().isnan().tolist() == [[True, False], [False, True]]
