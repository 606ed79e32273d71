"""The names of our sites in TransformerLens (hook names) and in nnsight (module and side), and the reverse.

The reverse is derived from the same table, so that the two cannot drift apart.
"""

from __future__ import annotations

import re
from dataclasses import replace

from interp.errors import UserError
from interp.models.architectures import Tap
from interp.models.model import Model
from interp.models.sites import KINDS, Site, parse_site

# `None`: TransformerLens computes the tensor, but has no hook point for it.
HOOKS: dict[str, str | None] = {
    "resid_pre": "hook_resid_pre", "q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "pattern": "attn.hook_pattern",
    "z": "attn.hook_z", "attn_out": "hook_attn_out", "resid_mid": "hook_resid_mid", "mlp_pre": "mlp.hook_pre", "mlp_gate": None,
    "mlp_up": "mlp.hook_pre_linear", "mlp_post": "mlp.hook_post", "mlp_out": "hook_mlp_out", "resid_post": "hook_resid_post",
    "ln_final": "ln_final.hook_out", "logits": "unembed.hook_out",
}  # fmt: skip
# The bridge's own names, of which the names above are aliases.
ALIASES = {
    "hook_in": "resid_pre", "hook_out": "resid_post", "attn.hook_out": "attn_out", "attn.o.hook_in": "z", "ln2.hook_in": "resid_mid",
    "attn.q.hook_out": "q", "attn.k.hook_out": "k", "attn.v.hook_out": "v",
    "mlp.gate.hook_out": "mlp_pre", "mlp.out.hook_in": "mlp_post", "mlp.hook_out": "mlp_out",
}  # fmt: skip


def hook_name(site: str | Site) -> str:
    """The TransformerLens name of a site: `resid_mid.3` is `blocks.3.hook_resid_mid`.

    Raises `UserError` for `mlp_gate`, which has no hook point there (`adapters.run` reads it from the module instead).
    """
    parsed = parse_site(site)
    name = HOOKS[parsed.name]
    if name is None:
        raise UserError(f"TransformerLens has no hook for {parsed}", "use mlp_pre or mlp_post, or adapters.run, which reads the module")
    return name if parsed.layer is None else f"blocks.{parsed.layer}.{name}"


def site_of_hook(name: str) -> str:
    """The site of a TransformerLens hook name or one of its aliases; raises `UserError` where it is none of ours."""
    known = {hook: site for site, hook in HOOKS.items() if hook is not None}
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None:
        site_name = known.get(name) if name in (HOOKS["ln_final"], HOOKS["logits"]) else None
        layer = None
    else:
        site_name = {**ALIASES, **known}.get(match[2]) if match[2] not in (HOOKS["ln_final"], HOOKS["logits"]) else None
        layer = int(match[1])
    if site_name is None:
        raise UserError(f"the TransformerLens hook {name!r} is not one of our sites", f"use one of {', '.join(known)}")
    return str(Site(site_name, layer))


def tap_of(model: Model, site: Site) -> Tap:
    """The module of this model where a site lives, as a path from the top, and which side of it."""
    if site.name == "logits":
        return Tap("", "output")
    if site.layer is None:
        return Tap(model.architecture.final_norm, "output")
    tap = model.architecture.taps[site.name]
    path = f"{model.architecture.blocks}.{site.layer}"
    return replace(tap, path=f"{path}.{tap.path}" if tap.path else path)


def module_name(model: Model, site: str | Site) -> str:
    """The nnsight name of a site of this model: `resid_mid.3` is `transformer.h.3.ln_2.input` in a GPT-2.

    The output of an attention module is a tuple whose first entry is `attn_out`; its second is `pattern`, where the model computes
    attention `eager`. `logits` is `output.logits`. Where one module
    computes queries, keys and values, its output's columns are named: `transformer.h.3.attn.c_attn.output[..., 64:128]`.
    """
    place = parse_site(site, n_layers=model.n_layers, family=model.family)
    tap, columns = tap_of(model, place), model.view(place.name).columns
    part = f"[{tap.item}]" if tap.item else "" if columns is None else f"[..., {columns.start}:{columns.stop}]"
    return f"{tap.path}.{tap.side}{part}" if tap.path else "output.logits"


def site_of_module(model: Model, name: str) -> str:
    """The site of this model with an nnsight name such as `transformer.h.3.ln_2.input`."""
    for site in model.sites():
        if module_name(model, site) == name:
            return site
    raise UserError(f"{name!r} is none of the sites of {model.name}", f"write it as {module_name(model, 'resid_mid.0')}")


def in_order(model: Model, names: set[str]) -> list[Site]:
    """Sites in the order in which modules compute them; a pattern comes with the output of its attention module."""
    sites = [parse_site(name, n_layers=model.n_layers, family=model.family) for name in names]
    order = list(KINDS)

    def place(site: Site) -> tuple[int, int, int]:
        rank = order.index(site.name)
        source = order.index("attn_out") if site.kind.axis == "pattern" else rank
        return (model.n_layers if site.layer is None else site.layer), source, rank

    return sorted(sites, key=place)
