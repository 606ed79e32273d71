"""Weights changed on copies alone, and the edits that do the same while a model runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp.directions.contrast import ablation
from interp.edits.edit import Edit
from interp.edits.weights import interpolated, orthogonalised, values_projected
from interp.errors import UserError
from interp.forward.capture import capture
from interp.forward.generate import generate_tokens
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.models.tokens import pad

ROWS = [[3, 50, 270, 271], [260, 261, 262, 263, 264], [300, 12, 80]]


def logits(model: Model, edits: tuple[Edit, ...] = ()) -> torch.Tensor:
    return capture(model, ROWS, ["logits"], positions="all", edits=edits)["logits"]


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.hf.state_dict().items()}


@pytest.mark.oracle
def test_interpolation_ends_at_both_models_bit_for_bit_and_leaves_them_alone(pair: ModelPair) -> None:
    before = {side: weights(model) for side, model in pair.sides.items()}
    for share, side in ((0, pair.base), (1, pair.tuned)):
        made = weights(interpolated(pair.base, pair.tuned, share))
        assert all(torch.equal(made[name], value) for name, value in weights(side).items())
    half, beyond = (weights(interpolated(pair.base, pair.tuned, share)) for share in (0.5, 1.5))
    for name, value in before["base"].items():
        torch.testing.assert_close(half[name], (value + before["tuned"][name]) / 2, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(beyond[name], 1.5 * before["tuned"][name] - 0.5 * value, atol=1e-6, rtol=1e-4)
    for side, model in pair.sides.items():
        assert all(torch.equal(before[side][name], value) for name, value in weights(model).items())


@pytest.mark.oracle
def test_some_weights_alone_come_from_the_other_side(pair: ModelPair) -> None:
    base, tuned = (weights(model) for model in pair.sides.values())
    swapped = weights(interpolated(pair.base, pair.tuned, 1, only=lambda name: ".attn." in name))
    assert any(".attn." in name and not torch.equal(base[name], tuned[name]) for name in swapped)
    assert all(torch.equal(value, (tuned if ".attn." in name else base)[name]) for name, value in swapped.items())
    with pytest.raises(UserError, match=r"no tensor of .* is selected"):
        interpolated(pair.base, pair.tuned, 1, only=lambda name: False)


@pytest.mark.oracle
def test_orthogonal_weights_equal_directional_ablation_while_the_model_runs(model: Model) -> None:
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    before = weights(model)
    changed = orthogonalised(model, direction)
    torch.testing.assert_close(logits(changed), logits(model, ablation(model, direction)), atol=2e-4, rtol=1e-4)
    last = f"resid_post.{model.n_layers - 1}"
    left = capture(changed, ROWS, [last], positions="all")[last] @ (direction / direction.norm())
    assert left.abs().max() < 1e-4
    assert (logits(changed) - logits(model)).abs().max() > 0.01
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())


def test_the_unembedding_stays_when_the_embedding_that_it_shares_is_changed(gpt2: Model) -> None:
    assert gpt2.hf.lm_head.weight is gpt2.hf.transformer.wte.weight
    changed = orthogonalised(gpt2, torch.ones(gpt2.d_model) + torch.arange(gpt2.d_model))
    assert torch.equal(changed.unembedding, gpt2.unembedding)
    assert not torch.equal(changed.hf.transformer.wte.weight, gpt2.hf.transformer.wte.weight)
    assert gpt2.hf.lm_head.weight is gpt2.hf.transformer.wte.weight


def test_no_strength_changes_nothing_and_twice_the_strength_reflects(gpt2: Model) -> None:
    direction = torch.randn(gpt2.d_model, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(logits(orthogonalised(gpt2, direction, 0.0)), logits(gpt2))
    unit = direction / direction.norm()
    reflected = orthogonalised(gpt2, direction, 2.0)
    for layer in range(gpt2.n_layers):
        torch.testing.assert_close(reflected.value_vectors(layer) @ unit, -gpt2.value_vectors(layer) @ unit, atol=1e-5, rtol=1e-4)


def test_where_a_norm_follows_no_matrix_can_lose_what_the_stream_gets(families: Any) -> None:
    model = families("gemma2").model
    for change in (lambda: values_projected(model, {1: torch.eye(model.d_model)[:1]}), lambda: orthogonalised(model, torch.ones(32))):
        with pytest.raises(UserError, match="through a norm"):
            change()


@pytest.mark.oracle
def test_projected_values_lose_the_subspace_in_the_layers_named_alone(model: Model) -> None:
    before = weights(model)
    rows = torch.linalg.qr(torch.randn(model.d_model, 2, generator=torch.Generator().manual_seed(3))).Q.T
    changed = values_projected(model, {1: rows})
    assert (changed.value_vectors(1) @ rows.T).abs().max() < 1e-5
    complement = torch.eye(model.d_model) - rows.T @ rows
    torch.testing.assert_close(changed.value_vectors(1), model.value_vectors(1) @ complement, atol=1e-5, rtol=1e-4)
    for layer in (0, 2):
        assert torch.equal(changed.value_vectors(layer), model.value_vectors(layer))
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())
    with pytest.raises(UserError, match="not orthonormal"):
        values_projected(model, {1: 2 * rows})


def test_generation_under_ablation_differs_from_plain_generation_only_where_the_direction_matters(gpt2: Model) -> None:
    direction = torch.randn(gpt2.d_model, generator=torch.Generator().manual_seed(7))
    rows = generate_tokens(orthogonalised(gpt2, direction), ROWS, max_new_tokens=5, stop_at_end=False)
    assert rows == generate_tokens(gpt2, ROWS, max_new_tokens=5, edits=ablation(gpt2, direction), stop_at_end=False)
    assert pad(rows, 0).ids.shape == (3, 5)
