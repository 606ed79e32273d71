"""The table of architectures: where the sites and weights of each family of Hugging Face models live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from interp.models.sites import Family

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Tap:
    """Where a site lives: a module path (below the block, or below the model) and which side of it.

    `shared` marks an input that the block keeps a second reference to (the skip connection reads the same tensor), so
    that an edit has to happen in place to reach both readers.
    """

    path: str
    side: Side
    shared: bool = False


@dataclass(frozen=True)
class Architecture:
    """Where sites and weights live in one family of Hugging Face models."""

    family: Family
    blocks: str
    final_norm: str
    taps: dict[str, Tap]
    key: str
    value: str
    up: str | None = None
    norm_offset: float = 0.0


def _glu(mid: str, attn_out: str = "self_attn", mlp_out: str = "mlp", norm_offset: float = 0.0) -> Architecture:
    return Architecture(
        family="glu",
        blocks="model.layers",
        final_norm="model.norm",
        key="mlp.gate_proj",
        up="mlp.up_proj",
        value="mlp.down_proj",
        norm_offset=norm_offset,
        taps={
            "resid_pre": Tap("", "input"),
            "attn_out": Tap(attn_out, "output"),
            "head_out": Tap("self_attn.o_proj", "input"),
            "resid_mid": Tap(mid, "input", shared=True),
            "mlp_pre": Tap("mlp.gate_proj", "output"),
            "mlp_gate": Tap("mlp.act_fn", "output"),
            "mlp_up": Tap("mlp.up_proj", "output"),
            "mlp_post": Tap("mlp.down_proj", "input"),
            "mlp_out": Tap(mlp_out, "output"),
            "resid_post": Tap("", "output"),
        },
    )


_GPT2 = Architecture(
    family="gelu",
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    key="mlp.c_fc",
    value="mlp.c_proj",
    taps={
        "resid_pre": Tap("", "input"),
        "attn_out": Tap("attn", "output"),
        "head_out": Tap("attn.c_proj", "input"),
        "resid_mid": Tap("ln_2", "input", shared=True),
        "mlp_pre": Tap("mlp.c_fc", "output"),
        "mlp_post": Tap("mlp.c_proj", "input"),
        "mlp_out": Tap("mlp", "output"),
        "resid_post": Tap("", "output"),
    },
)
_LLAMA = _glu("post_attention_layernorm")
_SANDWICH = _glu("pre_feedforward_layernorm", "post_attention_layernorm", "post_feedforward_layernorm", norm_offset=1.0)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _glu("post_attention_layernorm", norm_offset=1.0),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
}
