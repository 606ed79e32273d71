"""The table of architectures: the modules in which each family of Hugging Face models has its sites and weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from interp.errors import UserError
from interp.models.sites import Family

Side = Literal["input", "output"]
Norm = Literal["layer", "rms"]


@dataclass(frozen=True)
class Tap:
    """The module that carries a site: its path (below the block, or below the model), and whether the site is its input or output.

    `shared` marks an input that the block keeps a second reference to (the skip connection reads the same tensor), so
    that an edit has to happen in place to reach both readers. `fused` marks an output in which queries, keys and values lie
    side by side; `item` is which entry of an output it is, where that is a tuple. The tap of `pattern` holds it only where
    attention is computed `eager`.
    """

    path: str
    side: Side
    shared: bool = False
    fused: bool = False
    item: int = 0


@dataclass(frozen=True)
class Architecture:
    """The modules of one family of Hugging Face models that hold its sites and weights, and how these are stored.

    Whether a projection has a bias is not stated here, since it depends on the configuration: it is read from the module.

    Attributes:
        family: the kind of MLP, and nothing else.
        transposed: whether matrices are stored with their inputs first (`Conv1D`) rather than their outputs (`nn.Linear`).
        norm: `layer` subtracts the mean and has a bias, `rms` does neither.
        norm_offset: what is added to a norm's weight to give its gain.
        positions: the module of learned position embeddings, or None where positions are rotary.
        attention: the attention module below the block; likewise the paths that follow.
        qkv: the modules of the query, key and value projections, or the one module that holds all three side by side.
        output: the output projection of attention.
        key, up, value: the MLP's projections; `up` is the linear part of a gated one.
        taps: where the sites of a layer are.
    """

    family: Family
    transposed: bool
    norm: Norm
    positions: str | None
    blocks: str
    final_norm: str
    attention: str
    qkv: tuple[str, ...]
    output: str
    key: str
    value: str
    taps: dict[str, Tap]
    up: str | None = None
    norm_offset: float = 0.0

    @property
    def writes_through_norm(self) -> bool:
        """Whether the outputs of attention and MLP pass a norm before they are added to the residual stream."""
        return self.taps["attn_out"].path != self.attention


def _glu(mid: str, attn_out: str = "self_attn", mlp_out: str = "mlp", norm_offset: float = 0.0) -> Architecture:
    return Architecture(
        family="glu",
        transposed=False,
        norm="rms",
        norm_offset=norm_offset,
        positions=None,
        blocks="model.layers",
        final_norm="model.norm",
        attention="self_attn",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        output="self_attn.o_proj",
        key="mlp.gate_proj",
        up="mlp.up_proj",
        value="mlp.down_proj",
        taps={
            "resid_pre": Tap("", "input"),
            "q": Tap("self_attn.q_proj", "output"),
            "k": Tap("self_attn.k_proj", "output"),
            "v": Tap("self_attn.v_proj", "output"),
            "pattern": Tap("self_attn", "output", item=1),
            "z": Tap("self_attn.o_proj", "input"),
            "attn_out": Tap(attn_out, "output"),
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
    transposed=True,
    norm="layer",
    positions="transformer.wpe",
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn",
    qkv=("attn.c_attn",),
    output="attn.c_proj",
    key="mlp.c_fc",
    value="mlp.c_proj",
    taps={
        "resid_pre": Tap("", "input"),
        "q": Tap("attn.c_attn", "output", fused=True),
        "k": Tap("attn.c_attn", "output", fused=True),
        "v": Tap("attn.c_attn", "output", fused=True),
        "pattern": Tap("attn", "output", item=1),
        "z": Tap("attn.c_proj", "input"),
        "attn_out": Tap("attn", "output"),
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
    "ministral": _LLAMA,
    "smollm3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _glu("post_attention_layernorm", norm_offset=1.0),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
}


def check_model_type(model_type: object, name: str) -> None:
    """Raise `UserError`, with the list of those that load, for a model type that is not in the table; `name` is the model's."""
    if model_type not in ARCHITECTURES:
        raise UserError(
            f"{name} is of type {model_type!r}, which is not supported", f"give a model of one of these types: {', '.join(ARCHITECTURES)}"
        )


def architecture_of(hf: PreTrainedModel, name: str) -> Architecture:
    """The row of the table for this model; raises `UserError` where there is none, or where it is no causal language model."""
    config: Any = hf.config
    check_model_type(config.model_type, name)
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        problem = f"tokens of {name} attend to later ones too (is_causal or use_bidirectional_attention in its config.json)"
        raise UserError(problem, "give a model that continues texts; this one embeds them")
    if hf.get_output_embeddings() is None:
        problem = f"{name} is a {type(hf).__name__}, which has no unembedding and so no logits of tokens"
        raise UserError(problem, "give the model for causal language modelling (its class is named ...ForCausalLM or ...LMHeadModel)")
    return ARCHITECTURES[config.model_type]


def check_unshared(hf: nn.Module, architecture: Architecture) -> None:
    """Raise `UserError` where two blocks share a module: its sites would silently be read at the wrong layer."""
    blocks = list(hf.get_submodule(architecture.blocks).children())
    for name, tap in architecture.taps.items():
        owners: dict[int, int] = {}
        for layer, block in enumerate(blocks):
            first = owners.setdefault(id(block.get_submodule(tap.path)), layer)
            if first != layer:
                raise UserError(f"{name}.{first} and {name}.{layer} are one and the same module", "give every layer modules of its own")
