"""The table of sites: every tensor of a forward that can be captured or edited, by one name across architectures.

Hooks, capture, edits, patching, adapters, the page `docs/sites.md` and the tests all use this table, so that a tensor has one
name everywhere. A site is written `name.layer` (`resid_mid.3`), or `name` alone where there is one per model; `parse_site`
is the only reader of that form. `python -m interp.models.sites` prints the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from interp.errors import UserError

Family = Literal["gelu", "glu"]
# What the numbers of one position are: a vector of the residual stream, neurons, tokens, or the vectors of heads.
Axis = Literal["d_model", "d_mlp", "vocab", "head", "kv_head", "pattern"]
AXES: dict[Axis, str] = {
    "d_model": "batch pos d_model", "d_mlp": "batch pos d_mlp", "vocab": "batch pos vocab", "head": "batch pos head d_head",
    "kv_head": "batch pos kv_head d_head",
    "pattern": "batch head pos key_pos",
}  # fmt: skip
# What one entry of such an axis is called where entries are patched one by one.
UNITS: dict[Axis, str] = {"head": "head", "kv_head": "head", "d_mlp": "neuron"}


@dataclass(frozen=True)
class SiteKind:
    """A row of the table of sites.

    Attributes:
        axis: what the numbers of one position are.
        meaning: what the tensor is, in a phrase.
        whole_of: the site whose units, weighted by what they write, sum to this one (`attn_out` is the whole of the heads).
        stream: whether it is the residual stream itself rather than something that is added to it.
        patched: whether `patch` takes it.
        edited: whether an `Edit` can act at it.
        per_layer: False for a site that a model has once.
        families: the kinds of MLP that have it.
        alias: an earlier name that is still read.
    """

    name: str
    axis: Axis
    meaning: str
    whole_of: str | None = None
    stream: bool = False
    patched: bool = False
    edited: bool = True
    per_layer: bool = True
    families: tuple[Family, ...] = ("gelu", "glu")
    alias: str | None = None

    @property
    def axes(self) -> str:
        """The axes of its tensor, in jaxtyping's words."""
        return AXES[self.axis]

    @property
    def unit(self) -> str | None:
        """`head` or `neuron` where its entries are patched one by one, else None."""
        return UNITS.get(self.axis)


# These sites come before a norm of queries and keys and before rotary embedding, which are not linear in the projection's input.
PROJECTED = "as it leaves its projection (before a norm of queries and keys, and before rotary embedding)"
# In the order in which a forward computes them.
KINDS: dict[str, SiteKind] = {
    kind.name: kind
    for kind in (
        SiteKind("resid_pre", "d_model", "the residual stream before the layer", stream=True, patched=True),
        SiteKind("q", "head", f"each head's query, {PROJECTED}", patched=True),
        SiteKind("k", "kv_head", f"each key/value head's key, {PROJECTED}; heads of one group share it", patched=True),
        SiteKind("v", "kv_head", "each key/value head's value; heads of one group share it", patched=True),
        SiteKind("pattern", "pattern", "each head's attention weights, after the softmax: from each position to each", edited=False),
        SiteKind("z", "head", "each head's output before the output projection", patched=True, alias="head_out"),
        SiteKind("attn_out", "d_model", "what the layer's attention writes", whole_of="z", patched=True),
        SiteKind("resid_mid", "d_model", "the residual stream between the layer's attention and its MLP", stream=True, patched=True),
        SiteKind("mlp_pre", "d_mlp", "input times key vectors plus bias, before the nonlinearity (GLU: the gate's)"),
        SiteKind("mlp_gate", "d_mlp", "gate after its nonlinearity", families=("glu",)),
        SiteKind("mlp_up", "d_mlp", "linear part that the gate multiplies", families=("glu",)),
        SiteKind("mlp_post", "d_mlp", "activation of each neuron: the weight of its value vector", patched=True),
        SiteKind("mlp_out", "d_model", "what the layer's MLP writes", whole_of="mlp_post", patched=True),
        SiteKind("resid_post", "d_model", "the residual stream after the layer: everything written up to there", stream=True, patched=True),
        SiteKind("ln_final", "d_model", "last residual stream after the final norm", per_layer=False),
        SiteKind("logits", "vocab", "scores of the next token", per_layer=False),
    )
}
ALIASES = {kind.alias: kind.name for kind in KINDS.values() if kind.alias is not None}
PATCHED = tuple(kind.name for kind in KINDS.values() if kind.patched)
# The residual stream between blocks has two names: after layer 2 it is that before layer 3. Each with the layers to count on.
BETWEEN_BLOCKS = {"resid_pre": 0, "resid_post": 1}


@dataclass(frozen=True, order=True)
class Site:
    """A site of a model: its name and, unless a model has it once, a layer."""

    name: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name}.{self.layer}"

    @property
    def kind(self) -> SiteKind:
        """Its row of the table."""
        return KINDS[self.name]


def site_kind(name: str) -> SiteKind:
    """The row of the table with this name or alias, without a layer; raises `UserError` where there is none."""
    name = ALIASES.get(name, name)
    if name not in KINDS:
        raise UserError(f"{name!r} is not a site", f"use one of {', '.join(KINDS)}, with a layer as in resid_mid.3")
    return KINDS[name]


def whole_site(name: str) -> str:
    """The site that these units sum to: `attn_out` for the heads, `mlp_out` for the neurons, else the site itself."""
    name = site_kind(name).name
    return next((kind.name for kind in KINDS.values() if kind.whole_of == name), name)


def parse_site(text: str | Site, *, n_layers: int | None = None, family: Family | None = None) -> Site:
    """The site that `name.layer` names; raises `UserError` for an unknown name, a missing or impossible layer, or a wrong family."""
    name, dot, layer_text = str(text).strip().partition(".")
    if name not in KINDS and name not in ALIASES:
        raise UserError(f"{str(text)!r} is not a site", f"use one of {', '.join(KINDS)}, with a layer as in resid_mid.3")
    kind = site_kind(name)
    if family is not None and family not in kind.families:
        raise UserError(f"this model has no site {name!r}: it belongs to gated (GLU) MLPs", "use mlp_pre or mlp_post")
    if not kind.per_layer:
        if dot:
            raise UserError(f"site {name!r} has no layer, but {str(text)!r} names one", f"write {name!r}")
        return Site(kind.name)
    if not layer_text.isdecimal():
        raise UserError(f"site {str(text)!r} needs a layer", f"write it as {name}.LAYER, counting from 0, for example {name}.0")
    layer = int(layer_text)
    if n_layers is not None and layer >= n_layers:
        raise UserError(f"site {str(text)!r} is out of range: the model has {n_layers} layers", f"use a layer from 0 to {n_layers - 1}")
    return Site(kind.name, layer)


def expand_sites(texts: Sequence[str | Site], *, n_layers: int, family: Family | None = None) -> list[str]:
    """The sites that these texts name, without duplicates: `name.layer`, `name.*` for all layers, `name.2-5` for layers 2 to 5.

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
        # The ends are checked first, so that a range beyond the model raises before it is expanded.
        for end in (first, last):
            parse_site(f"{name}.{end}", n_layers=n_layers, family=family)
        for layer in range(int(first), int(last) + 1):
            names[str(parse_site(f"{name}.{layer}", n_layers=n_layers, family=family))] = None
    return list(names)


def layer_of(text: str | Site) -> int:
    """The layer of a site; raises `UserError` for a site that a model has once."""
    site = parse_site(text)
    if site.layer is None:
        raise UserError(f"site {str(site)!r} has no layer", "name a site that every layer has, such as resid_post.0")
    return site.layer


PAGE = """# Sites

A site is a tensor inside a model that can be captured, edited or patched. It is written `name.layer`, counting layers from 0
(`resid_mid.3`), or `name` alone where a model has it once. The rows stand in the order in which a forward computes them. This
page is generated from the table in `interp/models/sites.py`: `python -m interp.models.sites > docs/sites.md`.

| site | axes | what it is | sum over its units | edit | patch | models |
|---|---|---|---|---|---|---|
{rows}

- *alias*: an earlier name of the same site. It is still read wherever a site is named; what is written uses the new name.
- *axes*: what `capture(..., positions="all")` returns; with `positions="last"` or `"mean"` there is no `pos`.
- *sum over its units*: the site whose heads or neurons this one sums, each weighted by what it writes, plus a bias.
- `attn_out` and `mlp_out` are what is added to the residual stream: `resid_mid` is `resid_pre` plus `attn_out`, `resid_post` is
  `resid_mid` plus `mlp_out`. Where a norm stands behind attention and MLP (Gemma 2 and 3), they are read after it, and the sum over
  units is what enters that norm.
- *edit*: whether an `Edit` can act at it. A pattern's numbers belong to pairs of positions, which an edit cannot name: edit `q` or
  `k`, which make the pattern, or `z`, which it makes.
- *patch*: whether `patch(..., site=...)` takes it, and which units it can patch one by one.
- Every site can be captured. `positions="last"` gives of a pattern the row of the last token (`batch head key_pos`). Key positions
  are counted as positions are, from the first token of each text; beyond a text they hold 0.
- *models*: `gelu` stands for models with a plain MLP (GPT-2), `glu` for those with a gated one (Llama, Mistral, Qwen, Gemma).
  [models.md](models.md) lists the types of models that load.
"""


def sites_page() -> str:
    """The text of `docs/sites.md`: the table for readers."""
    rows = []
    for kind in KINDS.values():
        name = f"`{kind.name}.LAYER`" if kind.per_layer else f"`{kind.name}`"
        name += f" (alias `{kind.alias}`)" if kind.alias else ""
        edited = "yes" if kind.edited else ""
        patched = "" if not kind.patched else f"yes, each {kind.unit}" if kind.unit else "yes"
        whole = "" if kind.whole_of is None else f"`{kind.whole_of}`"
        rows.append(f"| {name} | `{kind.axes}` | {kind.meaning} | {whole} | {edited} | {patched} | {', '.join(kind.families)} |")
    return PAGE.format(rows="\n".join(rows))


if __name__ == "__main__":
    print(sites_page(), end="")
