"""The one table of sites: every place where a model can be read or edited, by one name across architectures.

Hooks, capture, edits, adapters, the documentation and the tests all derive from this table, so that a tensor has one
name everywhere. A site is written `name.layer` (`resid_mid.3`), or `name` alone where there is one per model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from interp.errors import UserError

Family = Literal["gelu", "glu"]
Side = Literal["input", "output"]


@dataclass(frozen=True)
class SiteKind:
    """A row of the table: what the tensor is called, its axes, and what it means."""

    name: str
    axes: str
    meaning: str
    per_layer: bool = True
    families: tuple[Family, ...] = ("gelu", "glu")


KINDS: dict[str, SiteKind] = {
    kind.name: kind
    for kind in (
        SiteKind("resid_pre", "batch pos d_model", "residual stream entering the block"),
        SiteKind("attn_out", "batch pos d_model", "what attention adds to the residual stream"),
        SiteKind("head_out", "batch pos head d_head", "what each head reads out, before the output projection"),
        SiteKind("resid_mid", "batch pos d_model", "residual stream between attention and MLP"),
        SiteKind("mlp_pre", "batch pos d_mlp", "input times key vectors plus bias, before the nonlinearity (GLU: the gate's)"),
        SiteKind("mlp_gate", "batch pos d_mlp", "gate after its nonlinearity", families=("glu",)),
        SiteKind("mlp_up", "batch pos d_mlp", "linear part that the gate multiplies", families=("glu",)),
        SiteKind("mlp_post", "batch pos d_mlp", "activation of each neuron: the weight of its value vector"),
        SiteKind("mlp_out", "batch pos d_model", "what the MLP adds to the residual stream"),
        SiteKind("resid_post", "batch pos d_model", "residual stream leaving the block"),
        SiteKind("ln_final", "batch pos d_model", "last residual stream after the final norm", per_layer=False),
        SiteKind("logits", "batch pos vocab", "scores of the next token", per_layer=False),
    )
}


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


@dataclass(frozen=True, order=True)
class Site:
    """One place in one model: a kind and, unless there is one per model, a layer."""

    name: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name}.{self.layer}"

    @property
    def kind(self) -> SiteKind:
        return KINDS[self.name]


def parse_site(text: str | Site, *, n_layers: int | None = None, family: Family | None = None) -> Site:
    """Read `name.layer`; raises `UserError` for an unknown name, a missing or impossible layer, or a wrong family."""
    if isinstance(text, Site):
        name, dot, layer_text = str(text).partition(".")
    else:
        name, dot, layer_text = str(text).strip().partition(".")
    if name not in KINDS:
        raise UserError(f"{str(text)!r} is not a site", f"use one of {', '.join(KINDS)}, with a layer as in resid_mid.3")
    kind = KINDS[name]
    if family is not None and family not in kind.families:
        raise UserError(f"this model has no site {name!r}: it belongs to gated (GLU) MLPs", "use mlp_pre or mlp_post")
    if not kind.per_layer:
        if dot:
            raise UserError(f"site {name!r} has no layer, but {str(text)!r} names one", f"write {name!r}")
        return Site(name)
    if not layer_text.isdecimal():
        raise UserError(f"site {str(text)!r} needs a layer", f"write it as {name}.LAYER, counting from 0, for example {name}.0")
    layer = int(layer_text)
    if n_layers is not None and layer >= n_layers:
        raise UserError(f"site {str(text)!r} is out of range: the model has {n_layers} layers", f"use a layer from 0 to {n_layers - 1}")
    return Site(name, layer)


def expand_sites(texts: Sequence[str | Site], *, n_layers: int, family: Family | None = None) -> list[str]:
    """Every site that these name, once each: `name.layer`, `name.*` for all layers, `name.2-5` for layers 2 to 5.

    Raises `UserError` as `parse_site`, and for a range that runs backwards.
    """
    names: dict[str, None] = {}
    for text in texts:
        name, _, layers = str(text).strip().partition(".")
        first, dash, last = layers.partition("-")
        if layers == "*":
            first, last = "0", str(n_layers - 1)
        elif not (dash and first.isdecimal() and last.isdecimal()):
            names[str(parse_site(text, n_layers=n_layers, family=family))] = None
            continue
        if int(first) > int(last):
            raise UserError(f"the layers of {str(text)!r} run backwards", f"write {name}.{last}-{first}")
        # The ends first: a range beyond the model is refused without being spelled out.
        for end in (first, last):
            parse_site(f"{name}.{end}", n_layers=n_layers, family=family)
        for layer in range(int(first), int(last) + 1):
            names[str(parse_site(f"{name}.{layer}", n_layers=n_layers, family=family))] = None
    return list(names)
