"""What the table of architectures says, held against the modules themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaForSequenceClassification, LlamaModel
from transformers.pytorch_utils import Conv1D

from interp import Model, UserError, load_model
from interp.models.architectures import ARCHITECTURES
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


@pytest.mark.parametrize("model_type", ["gemma3", "phi3", "olmo2", "mixtral", "invented"])
def test_a_type_that_does_not_load_is_refused_before_its_weights_are_read_with_the_list_of_those_that_do(
    tmp_path: Path, model_type: str
) -> None:
    save_file({"not.of.this.model": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "text_config": {"model_type": "gemma3_text"}}), "utf-8")
    with pytest.raises(UserError, match=f"of type '{model_type}', which is not supported") as refused:
        load_model(tmp_path)
    assert refused.value.fix.endswith(f"one of these types: {', '.join(ARCHITECTURES)}")


@pytest.mark.parametrize(
    ("name", "setting", "value"), [("gemma3_text", "use_bidirectional_attention", True), ("llama", "is_causal", False)]
)
def test_a_model_whose_tokens_attend_to_later_ones_is_refused(
    families: Callable[[str], Family], tmp_path: Path, name: str, setting: str, value: bool
) -> None:
    folder = shutil.copytree(families(name).folder, tmp_path / name)
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**settings, setting: value}), "utf-8")
    with pytest.raises(UserError, match="attend to later ones too"):
        load_model(folder)


def test_a_model_in_memory_without_logits_of_tokens_is_refused(families: Callable[[str], Family]) -> None:
    family = families("llama")
    for kind in (LlamaForSequenceClassification, LlamaModel):
        with pytest.raises(UserError, match=f"is a {kind.__name__}, which has no unembedding"):
            load_model(kind(family.plain.config), tokenizer=family.model.tokenizer)
