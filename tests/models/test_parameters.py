"""The one table of groups of parameters."""

from __future__ import annotations

import pytest

from interp import Model
from interp.models.parameters import PARAMETER_KINDS, PARAMETERS, parameter_group, parameter_kind, parameter_layer


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer.wte.weight", "embedding"), ("lm_head.weight", "embedding"), ("model.embed_tokens.weight", "embedding"),
        ("transformer.wpe.weight", "position"), ("transformer.h.1.attn.c_attn.weight", "attention qkv"),
        ("transformer.h.1.attn.c_proj.weight", "attention out"), ("transformer.h.1.mlp.c_fc.weight", "mlp key"),
        ("transformer.h.1.mlp.c_proj.weight", "mlp value"), ("transformer.h.1.mlp.c_proj.bias", "bias"),
        ("transformer.h.1.ln_1.bias", "norm"), ("transformer.ln_f.weight", "norm"),
        ("model.layers.0.self_attn.k_proj.weight", "attention qkv"),
        ("model.layers.0.self_attn.k_proj.bias", "bias"), ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("model.layers.0.self_attn.o_proj.weight", "attention out"), ("model.layers.0.mlp.gate_proj.weight", "mlp key"),
        ("model.layers.0.mlp.up_proj.weight", "mlp up"), ("model.layers.0.mlp.down_proj.weight", "mlp value"),
        ("model.layers.0.post_attention_layernorm.weight", "norm"), ("model.norm.weight", "norm"),
    ],
)  # fmt: skip
def test_each_tensor_is_of_the_kind_that_its_name_says(name: str, kind: str) -> None:
    assert parameter_kind(name) == kind


@pytest.mark.parametrize(
    ("name", "group", "layer"),
    [
        ("transformer.wpe.weight", "embedding", -1), ("transformer.h.1.attn.c_attn.bias", "attention", 1),
        ("transformer.h.12.mlp.c_proj.bias", "mlp", 12), ("transformer.h.1.ln_1.bias", "norm", 1),
        ("model.layers.0.self_attn.q_norm.weight", "norm", 0), ("model.layers.3.mlp.up_proj.weight", "mlp", 3),
        ("bert.encoder.layer.1.attention.output.dense.weight", "attention", 1), ("bert.pooler.dense.weight", "other", -1),
        ("bert.encoder.layer.1.output.dense.bias", "mlp", 1), ("bert.embeddings.LayerNorm.weight", "norm", -1),
        ("base_model.model.transformer.h.2.attn.c_attn.lora_A.default.weight", "attention", 2),
        ("base_model.model.model.layers.1.mlp.up_proj.base_layer.weight", "mlp", 1),
        ("bert.embeddings.word_embeddings.weight", "embedding", -1),
    ],
)  # fmt: skip
def test_the_coarse_group_keeps_a_bias_with_its_module(name: str, group: str, layer: int) -> None:
    assert parameter_group(name) == group
    assert parameter_layer(name) == layer


def test_every_parameter_of_every_family_has_a_kind_and_both_tables_agree(any_model: Model) -> None:
    coarse = {kind.name: kind.group for kind in PARAMETERS} | {"norm": "norm"}
    for name, _ in any_model.hf.named_parameters():
        kind = parameter_kind(name)
        assert kind in PARAMETER_KINDS
        assert coarse.get(kind, parameter_group(name)) == parameter_group(name)
        assert parameter_group(name) != "other"
