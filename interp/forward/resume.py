"""Runs a model again from any block and position on, on many copies of one residual stream: what a change cannot reach, the
blocks below and the tokens before it, is not computed twice.

Each block is called with the very masks and rotary embeddings that the model gave it in the recorded forward, so that
nothing here knows an architecture. Blocks are called through the permanent hooks, hence edits and sites mean the same
as in a forward of the whole model.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import UserError
from interp.models.hooks import Call, Frame, Transform, Work, active, check_first, framed, recording_calls, working
from interp.models.model import Model, check_no_dropout
from interp.models.sites import layer_of, parse_site
from interp.models.tokens import pad
from interp.models.unembed import unembed


@dataclass(frozen=True, eq=False)
class Trace:
    """One forward of one prompt, kept so that any block can be run again.

    Attributes:
        row: the prompt's token ids.
        stream: the residual stream that enters each block and, last, the one that leaves the last block.
        sites: the other sites that were asked for, `1 pos ...` each.
        calls: what the model gave each block beside the residual stream.
    """

    model: Model
    row: tuple[int, ...]
    stream: Float[Tensor, "points pos d_model"]
    sites: Mapping[str, Tensor]
    calls: tuple[Call, ...]

    def __getitem__(self, site: str) -> Float[Tensor, "pos ..."]:
        """The activation at a site: `pos d_model`, `pos d_mlp` or `pos head d_head`."""
        place = parse_site(site)
        if place.name in ("resid_pre", "resid_post"):
            return self.stream[layer_of(place) + (place.name == "resid_post")]
        return self.sites[str(place)][0]

    @cached_property
    def reading(self) -> Reading:
        """What this forward itself gives to a metric."""
        return Reading(self, self.stream[-1:], self.sites)

    @cached_property
    def memory(self) -> tuple[Memory, ...]:
        """The keys and values of every block's attention, made when they are first needed."""
        found = []
        with torch.no_grad(), framed(self.frame(1)):
            for layer, block in enumerate(blocks(self.model)):
                held = Memory()
                block(self.stream[layer : layer + 1], **{**self.named[layer], "past_key_values": held})
                found.append(held)
        return tuple(found)

    @cached_property
    def named(self) -> tuple[dict[str, Any], ...]:
        """The recorded calls with every argument by its name."""
        return tuple(_named(block, call) for block, call in zip(blocks(self.model), self.calls, strict=True))

    def call(self, layer: int, start: int, past: Memory | None = None) -> dict[str, Any]:
        """What a block is given beside the stream when only the tokens from `start` on are run, behind the trace's or `past`."""
        found = self.named[layer]
        if not start:
            return found
        length = len(self.row)
        mask = found.get("attention_mask")
        if mask is None:
            mask = torch.ones((1, 1, length, length), dtype=torch.bool, device=self.model.device).tril()
        turned: dict[str, Any] = {name: _later(found[name], start) for name in ("position_embeddings", "position_ids") if name in found}
        return {**found, **turned, "attention_mask": mask[:, :, start:], "past_key_values": past or self.memory[layer].before(start)}

    def frame(self, count: int, start: int = 0) -> Frame:
        """The frame of `count` copies of the prompt, from a position on."""
        positions = repeat(torch.arange(start, len(self.row), device=self.model.device), "pos -> cell pos", cell=count)
        lengths = torch.full((count,), len(self.row), device=self.model.device)
        return Frame(positions, torch.ones_like(positions, dtype=torch.bool), lengths, rows=(0,) * count)


class _Full(Exception):
    """Raised by a memory that has what it was asked for, so that the rest of the block is not computed."""


class Memory:
    """Stands in for a KV cache: remembers one block's keys and values, and puts those of earlier tokens before the later ones.

    Attributes:
        earlier: keys and values (`batch head pos d_head`) of the tokens before those that pass, if there are any.
        held: those of all tokens, once attention has called.
    """

    def __init__(self, earlier: tuple[Tensor, Tensor] | None = None, *, stop: bool = False) -> None:
        self.earlier, self.stop = earlier, stop
        self.held: tuple[Tensor, Tensor] | None = None

    def before(self, start: int, *, stop: bool = False) -> Memory:
        """A memory whose earlier tokens are those before `start` of this one."""
        if self.held is None:
            raise RuntimeError("no keys and values were remembered")
        return Memory((self.held[0][:, :, :start], self.held[1][:, :, :start]), stop=stop)

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What attention calls with the keys and values of the tokens that pass; gives those of all tokens."""
        if self.earlier is not None:
            old = [part.expand(len(keys), -1, -1, -1) for part in self.earlier]
            keys, values = torch.cat([old[0], keys], dim=2), torch.cat([old[1], values], dim=2)
        self.held = (keys, values)
        if self.stop:
            raise _Full
        return self.held


@dataclass(frozen=True, eq=False)
class Reading:
    """What a metric reads of some runs of one prompt: the residual stream that leaves the last block, and sites.

    A site that was not run again is that of the trace: nothing that was done could reach it.
    """

    trace: Trace
    final: Float[Tensor, "cell pos d_model"]
    sites: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.final)

    @cached_property
    def logits(self) -> Float[Tensor, "cell vocab"]:
        """Scores of the token after the prompt."""
        return unembed(self.trace.model, self.final[:, -1])

    def site(self, name: str) -> Float[Tensor, "cell pos ..."]:
        """The activation at a site in every run."""
        name = str(parse_site(name))
        if name in self.sites:
            return self.sites[name]
        if name == f"resid_post.{self.trace.model.n_layers - 1}":
            return self.final
        value = self.trace[name]
        return value.expand(len(self), *value.shape)


@torch.no_grad()
def trace(model: Model, row: Sequence[int], sites: Iterable[str] = ()) -> Trace:
    """Run one prompt and keep the residual stream between blocks, the sites named, and how each block was called.

    Edits that are active take part, as in any forward. Raises `UserError` for a site that the model lacks, and for active edits
    at `resid_pre`, `ln_final` or `logits`, where a resumed run would apply them twice or not at all.
    """
    edited = (parse_site(site) for site in active(model.hf).transforms)
    barred = next((site for site in edited if site.name == "resid_pre" or not site.kind.per_layer), None)
    if barred is not None:
        raise UserError(
            f"an edit at {barred} is active where a run is to be resumed", "edit resid_post of the layer below, or patch outside"
        )
    check_no_dropout(model)
    wanted = {str(parse_site(site, n_layers=model.n_layers, family=model.family)) for site in sites}
    last = f"resid_post.{model.n_layers - 1}"
    between = [*(f"resid_pre.{layer}" for layer in range(model.n_layers)), last]
    found: dict[str, Tensor] = {}
    collectors = {name: (keeper(found, name),) for name in {*between, *wanted}}
    with recording_calls(model.hf) as calls, working(model.hf, Work(collectors=collectors, rows=(0,))):
        model.hf(**pad([row], 0).to(model.device).inputs(), use_cache=False, logits_to_keep=1)
    stream = torch.cat([found[name] for name in between])
    return Trace(model, tuple(row), stream, {name: found[name].clone() for name in wanted}, tuple(calls))


def resume(
    given: Trace, layer: int, hidden: Float[Tensor, "cell pos d_model"], *, transforms: Mapping[str, Transform] | None = None,
    keep: Sequence[str] = (), stop: int | None = None, start: int = 0,
    last_only: bool = False,
) -> Reading:  # fmt: skip
    """Run blocks `layer` and above on these residual streams, which hold the tokens from `start` on.

    Args:
        layer: the first block to run; `n_layers` runs none.
        transforms: changes at sites of these blocks, by site.
        keep: sites to read on the way; those of blocks below are left to the trace.
        stop: the first block not to run; `final` is then the stream that enters it.
        start: the first position that differs from the trace; what is read holds the trace's tokens before it.
        last_only: nothing is read but the last token's final stream, so that of the last block the other tokens need keys and
            values alone; `final` then holds that one token.
    """
    model = given.model
    changes = {str(parse_site(site)): change for site, change in (transforms or {}).items()}
    keep = [str(parse_site(site)) for site in keep]
    found: dict[str, Tensor] = {}
    if f"resid_post.{layer - 1}" in keep:
        found[f"resid_post.{layer - 1}"] = hidden
    work = Work({site: (change,) for site, change in changes.items()}, {site: (keeper(found, site),) for site in keep})
    last = model.n_layers - 1
    short = last_only and stop is None and not keep and layer <= last and len(given.row) - start > 1
    short = short and not any(layer_of(site) == last for site in changes)
    steps = list(enumerate(blocks(model)[layer : last if short else stop], start=layer))
    # Made before the changes are active: keys and values of earlier tokens are those of the trace.
    calls = [given.call(number, start) for number, _ in steps]
    final = given.call(last, start) if short else {}
    with working(model.hf, work), framed(given.frame(len(hidden), start)):
        for (_, block), call in zip(steps, calls, strict=True):
            hidden = first(block(hidden, **call))
    if short:
        return Reading(given, _last_token(given, hidden, final, work), found)
    if start:
        found = {site: _behind(given[site], value, start) for site, value in found.items()}
        hidden = _behind(given.stream[model.n_layers if stop is None else stop], hidden, start)
    return Reading(given, hidden, found)


def _last_token(
    given: Trace, hidden: Float[Tensor, "cell pos d_model"], call: dict[str, Any], work: Work
) -> Float[Tensor, "cell 1 d_model"]:
    """The last block's output at the last token: of the others it needs keys and values, and stops once it has them."""
    model, at = given.model, len(given.row) - 1
    block = blocks(model)[-1]
    earlier = call.get("past_key_values")
    everyone = Memory(earlier.earlier if earlier is not None else None, stop=True)
    with working(model.hf, work):
        with framed(given.frame(len(hidden), len(given.row) - hidden.shape[1])), contextlib.suppress(_Full):
            block(hidden, **{**call, "past_key_values": everyone})
        with framed(given.frame(len(hidden), at)):
            return first(block(hidden[:, -1:], **given.call(model.n_layers - 1, at, everyone.before(at))))


def _behind(whole: Float[Tensor, "all_pos ..."], later: Float[Tensor, "cell pos ..."], start: int) -> Float[Tensor, "cell all_pos ..."]:
    """The later tokens of each run behind the trace's earlier ones."""
    return torch.cat([whole[:start].expand(len(later), *whole[:start].shape), later], dim=1)


def _named(block: nn.Module, call: Call) -> dict[str, Any]:
    """A recorded call with every argument by its name."""
    bound = inspect.signature(block.forward).bind(None, *call[0], **call[1]).arguments
    rest = next((name for name, p in inspect.signature(block.forward).parameters.items() if p.kind is p.VAR_KEYWORD), None)
    own = dict(list(bound.items())[1:])
    return {**own, **own.pop(rest, {})} if rest is not None else own


def _later(value: Any, start: int) -> Any:
    """Position ids, or rotary embeddings as a pair of tensors, from a position on."""
    if value is None:
        return None
    return tuple(_later(part, start) for part in value) if isinstance(value, tuple) else value[:, start:]


def blocks(model: Model) -> list[nn.Module]:
    """The model's blocks, in order."""
    return list(model.hf.get_submodule(model.architecture.blocks).children())


def first(output: Any) -> Tensor:
    """The tensor that a block returns, which some versions wrap in a tuple."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def keeper(found: dict[str, Tensor], name: str) -> Callable[[Tensor, Frame], None]:
    """A collector that keeps a site's value; a later in-place change of it must not reach what was kept."""

    def keep(value: Tensor, frame: Frame) -> None:
        check_first(found, name)
        found[name] = value.clone()

    return keep
