"""Weights by meaning do not ask for gradients where a model is trained, and are read where they are offloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp import Model, load_model
from interp.models.weights import folded_keys, frozen_norm, output_projection, position_embedding, unembedding_bias


def weights_of(model: Model) -> list[Tensor]:
    raw = torch.linspace(-1, 2, model.d_model)
    return [
        folded_keys(model, 1, [3, 0]), position_embedding(model, 2), unembedding_bias(model, 5, None), *output_projection(model, 1),
        frozen_norm(model, 1, "mlp_out", raw),
    ]  # fmt: skip


def test_those_of_a_trained_model_are_the_same_numbers_without_gradients(any_model: Model) -> None:
    trained = load_model(any_model.plain_copy().requires_grad_(True), tokenizer=any_model.tokenizer)
    for got, expected in zip(weights_of(trained), weights_of(any_model), strict=True):
        assert not got.requires_grad
        assert torch.equal(got, expected)


def test_those_of_an_offloaded_model_are_the_same_numbers(any_model: Model, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="needs the extra `train`")
    assert any_model.checkpoint is not None
    offloaded = load_model(any_model.checkpoint.source, device_map={"": "disk"}, offload_folder=tmp_path)
    assert all(parameter.is_meta for parameter in offloaded.hf.parameters())
    for got, expected in zip(weights_of(offloaded), weights_of(any_model), strict=True):
        assert torch.equal(got, expected)
