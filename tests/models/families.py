"""A tiny random model of every family that loads, with what is special to the family switched on, and its forward written out by hand.

The forward here is independent of Hugging Face's code and of the table of architectures: it reads the weights by their names in
the checkpoint and computes in double precision. It is the referee for every site where another library does not know the family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn.functional import gelu, silu
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)  # fmt: skip

from interp import Model, load_model
from tests.conftest import make_hf, save

# The types that TransformerLens does not know; nnsight knows all.
UNKNOWN_TO_LENS = {"ministral"}
# Shorter than the texts, so that a window of attention hides something.
WINDOW = 4
EPSILON = 1e-6
SLIDING, FULL = "sliding_attention", "full_attention"
TINY: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "initializer_range": 0.15,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 100.0}
ALTERNATING: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}
QWEN: dict[str, Any] = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "rope_parameters": ROPE}

FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(n_layer=2, n_head=4, n_embd=32, n_inner=48, n_positions=64, initializer_range=0.15),
    "llama": lambda: LlamaConfig(
        **TINY, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
        rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
    ),
    "mistral": lambda: MistralConfig(**TINY, head_dim=16, sliding_window=WINDOW, rope_parameters=ROPE),
    "ministral": lambda: MinistralConfig(**TINY, head_dim=16, **ALTERNATING, rope_parameters=ROPE),
    "smollm3": lambda: SmolLM3Config(**TINY, no_rope_layers=[1, 0], rope_parameters=ROPE),
    "qwen2": lambda: Qwen2Config(**TINY, **QWEN, tie_word_embeddings=False),
    "qwen3": lambda: Qwen3Config(**TINY, **QWEN, head_dim=16),
    "gemma": lambda: GemmaConfig(**TINY, head_dim=16, rope_parameters=ROPE),
    "gemma2": lambda: Gemma2Config(
        **TINY, head_dim=16, **ALTERNATING, query_pre_attn_scalar=9, attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
        rope_parameters=ROPE,
    ),
    "gemma3_text": lambda: Gemma3TextConfig(
        **TINY, head_dim=16, **ALTERNATING, query_pre_attn_scalar=9, final_logit_softcapping=3.0,
        rope_parameters={SLIDING: {"rope_type": "default", "rope_theta": 10.0},
                         FULL: {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Traits:
    """What a forward of a family does beside that of Llama, for the configurations above.

    Attributes:
        windows: each layer's number of keys that a query sees, its own included; None for all.
        ropes: each layer's base of the rotary embedding and the factor that positions are divided by; None for none.
        scale: the factor of the products of queries and keys, where it is not that of the width of a head.
        cap, final_cap: of the attention scores and of the logits.
    """

    windows: tuple[int | None, int | None] = (None, None)
    ropes: tuple[tuple[float, float] | None, tuple[float, float] | None] = ((100.0, 1.0), (100.0, 1.0))
    scaled_embedding: bool = False
    norm_offset: float = 0.0
    norms_heads: bool = False
    norms_writes: bool = False
    scale: float | None = None
    cap: float | None = None
    final_cap: float | None = None
    gated_by: Callable[[Tensor], Tensor] = silu


def tanh_gelu(x: Tensor) -> Tensor:
    return gelu(x, approximate="tanh")


GEMMA: dict[str, Any] = {"scaled_embedding": True, "norm_offset": 1.0, "gated_by": tanh_gelu}
TRAITS: dict[str, Traits] = {
    "gpt2": Traits(),
    "llama": Traits(ropes=((100.0, 2.0), (100.0, 2.0))),
    "mistral": Traits((WINDOW, WINDOW)),
    "ministral": Traits((WINDOW, None)),
    "smollm3": Traits(ropes=((100.0, 1.0), None)),
    "qwen2": Traits((None, WINDOW)),
    "qwen3": Traits((None, WINDOW), norms_heads=True),
    "gemma": Traits(**GEMMA),
    "gemma2": Traits((WINDOW, None), norms_writes=True, scale=1 / 3, cap=2.0, final_cap=3.0, **GEMMA),
    "gemma3_text": Traits(
        (WINDOW, None), ((10.0, 1.0), (100.0, 2.0)), norms_heads=True, norms_writes=True, scale=1 / 3, final_cap=3.0, **GEMMA
    ),
}


@dataclass(frozen=True, eq=False)
class Family:
    """The tiny model of a family as Hugging Face has it, and as `load_model` reads it from `folder`."""

    name: str
    plain: PreTrainedModel
    folder: Path
    model: Model

    @property
    def traits(self) -> Traits:
        return TRAITS[self.name]


def make_family(name: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Family:
    plain = make_hf(FAMILIES[name](), tokenizer, seed=5)
    return Family(name, plain, folder, load_model(save(plain, tokenizer, folder), name=name))


def by_hand(family: Family, row: list[int]) -> dict[str, Tensor]:
    """Every site of one text, `pos ...`, in double precision; `pattern` is `head pos key_pos`."""
    weights = {name: weight.double() for name, weight in family.plain.state_dict().items()}
    return _gpt2(weights, row) if family.name == "gpt2" else _glu(weights, row, family.traits)


def _gpt2(weights: dict[str, Tensor], row: list[int]) -> dict[str, Tensor]:
    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    acts: dict[str, Tensor] = {}
    x = weights["transformer.wte.weight"][row] + weights["transformer.wpe.weight"][: len(row)]
    for layer in range(2):
        block = f"transformer.h.{layer}"
        qkv = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").chunk(3, dim=-1)
        q, k, v = (rearrange(part, "pos (head d) -> pos head d", head=4) for part in qkv)
        pattern, z = _attention(q, k, v, 8**-0.5)
        attn_out = linear(z.flatten(1), f"{block}.attn.c_proj")
        mid = x + attn_out
        pre = linear(norm(mid, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        mlp_out = linear(tanh_gelu(pre), f"{block}.mlp.c_proj")
        sites = {"resid_pre": x, "q": q, "k": k, "v": v, "pattern": pattern, "z": z, "attn_out": attn_out, "resid_mid": mid,
                 "mlp_pre": pre, "mlp_post": tanh_gelu(pre), "mlp_out": mlp_out, "resid_post": mid + mlp_out}  # fmt: skip
        acts |= {f"{site}.{layer}": value for site, value in sites.items()}
        x = mid + mlp_out
    final = norm(x, "transformer.ln_f")
    return acts | {"ln_final": final, "logits": final @ weights["transformer.wte.weight"].T}


def _glu(weights: dict[str, Tensor], row: list[int], traits: Traits) -> dict[str, Tensor]:
    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + EPSILON).sqrt() * (weights[f"{name}.weight"] + traits.norm_offset)

    acts: dict[str, Tensor] = {}
    embedding = weights["model.embed_tokens.weight"]
    x = embedding[row] * (32**0.5 if traits.scaled_embedding else 1.0)
    for layer in range(2):
        block = f"model.layers.{layer}"
        attention, mlp = f"{block}.self_attn", f"{block}.mlp"
        read = norm(x, f"{block}.input_layernorm")
        parts = ((linear(read, f"{attention}.{name}_proj"), heads) for name, heads in (("q", 4), ("k", 2), ("v", 2)))
        q, k, v = (rearrange(part, "pos (head d) -> pos head d", head=heads) for part, heads in parts)
        query, key = (norm(q, f"{attention}.q_norm"), norm(k, f"{attention}.k_norm")) if traits.norms_heads else (q, k)
        rope = traits.ropes[layer]
        if rope is not None:
            query, key = _rotated(query, *rope), _rotated(key, *rope)
        pattern, z = _attention(query, key, v, traits.scale or q.shape[-1] ** -0.5, traits.windows[layer], traits.cap)
        attn_out = linear(z.flatten(1), f"{attention}.o_proj")
        if traits.norms_writes:
            attn_out = norm(attn_out, f"{block}.post_attention_layernorm")
        mid = x + attn_out
        read = norm(mid, f"{block}.{'pre_feedforward' if traits.norms_writes else 'post_attention'}_layernorm")
        pre, up = linear(read, f"{mlp}.gate_proj"), linear(read, f"{mlp}.up_proj")
        gate = traits.gated_by(pre)
        mlp_out = linear(gate * up, f"{mlp}.down_proj")
        if traits.norms_writes:
            mlp_out = norm(mlp_out, f"{block}.post_feedforward_layernorm")
        sites = {"resid_pre": x, "q": q, "k": k, "v": v, "pattern": pattern, "z": z, "attn_out": attn_out, "resid_mid": mid,
                 "mlp_pre": pre, "mlp_gate": gate, "mlp_up": up, "mlp_post": gate * up, "mlp_out": mlp_out,
                 "resid_post": mid + mlp_out}  # fmt: skip
        acts |= {f"{site}.{layer}": value for site, value in sites.items()}
        x = mid + mlp_out
    final = norm(x, "model.norm")
    logits = final @ weights.get("lm_head.weight", embedding).T
    cap = traits.final_cap
    return acts | {"ln_final": final, "logits": logits if cap is None else cap * (logits / cap).tanh()}


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None, cap: float | None = None) -> tuple[Tensor, Tensor]:
    """The pattern (`head pos key_pos`) and each head's output, of queries, keys and values `pos head d`."""
    k, v = (repeat(part, "pos head d -> pos (head group) d", group=q.shape[1] // part.shape[1]) for part in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if cap is not None:
        scores = cap * (scores / cap).tanh()
    behind = torch.arange(len(q)).unsqueeze(1) - torch.arange(len(q))
    seen = (behind >= 0) & (behind < (window or len(q)))
    pattern = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    return pattern, torch.einsum("hqk,khd->qhd", pattern, v)


def _rotated(x: Tensor, theta: float, factor: float) -> Tensor:
    """Queries or keys (`pos head d`), each pair (i, i + d/2) turned by its position."""
    half = x.shape[-1] // 2
    angles = torch.arange(len(x)).double()[:, None, None] / factor * theta ** (-torch.arange(half).double() / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1)
