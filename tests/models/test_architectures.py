"""What the table of architectures says, held against the modules themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from interp import Model
from interp.models.weights import mlp_norm, output_projection, position_embedding, writers
from tests.models.families import FAMILIES, Family


@pytest.fixture(params=sorted(FAMILIES))
def every(request: pytest.FixtureRequest, families: Callable[[str], Family]) -> Model:
    return families(request.param).model


def test_layout_norm_positions_and_paths_are_those_of_the_modules(every: Model) -> None:
    architecture = every.architecture
    paths = [architecture.output, architecture.key, architecture.value, *architecture.qkv]
    modules = [every.part(1, path) for path in paths]
    assert all(isinstance(module, Conv1D if architecture.transposed else nn.Linear) for module in modules)
    assert (architecture.norm == "layer") == isinstance(every.final_norm, nn.LayerNorm) == isinstance(mlp_norm(every, 1), nn.LayerNorm)
    learned = [
        name
        for name, module in every.hf.named_modules()
        if isinstance(module, nn.Embedding) and "wte" not in name and "embed_tokens" not in name
    ]
    assert learned == ([] if architecture.positions is None else [architecture.positions])
    assert every.part(1, architecture.attention).__class__.__name__.endswith("Attention")
    named = every.part(1, architecture.taps["attn_out"].path).__class__.__name__
    assert architecture.writes_through_norm == ("Norm" in named)
    assert (architecture.up is None) == (architecture.family == "gelu")


@torch.no_grad()
def test_a_projection_is_what_its_module_multiplies_by(every: Model) -> None:
    for path in (every.architecture.output, every.architecture.value, every.architecture.key, *every.architecture.qkv):
        matrix, bias = every.projection(1, path), every.projection_bias(1, path)
        x = torch.randn(2, len(matrix), generator=torch.Generator().manual_seed(0))
        expected = every.part(1, path)(x)
        torch.testing.assert_close(x @ matrix + (0 if bias is None else bias), expected, atol=1e-5, rtol=1e-5)
        assert matrix.data_ptr() == every.part(1, path).weight.data_ptr(), "a view, so that it can be changed in place"


@torch.no_grad()
def test_what_heads_and_neurons_write_and_where_positions_are(every: Model) -> None:
    weights, constant = output_projection(every, 1)
    (rows, bias), (values, _) = writers(every, 1)
    assert torch.equal(weights.flatten(0, 1), rows.double())
    assert torch.equal(constant, torch.zeros_like(constant) if bias is None else bias.double())
    assert torch.equal(values, every.value_vectors(1))
    assert bool(position_embedding(every, 2).any()) == (every.architecture.positions is not None)
