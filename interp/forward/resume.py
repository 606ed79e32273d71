"""`resume`: running a model from a block and position on, on many copies of a prompt's residual stream.

Blocks below and tokens before a change cannot be affected by it, so they are taken from one recorded forward and not computed
again. Each block is called with the masks and rotary embeddings of that forward, so that this module needs no knowledge of
architectures. Blocks are called with the permanent hooks, so edits and sites mean the same as in a forward of the whole model.
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
from interp.models.chat import ChatTokens, role_codes
from interp.models.hooks import BlockCall, Frame, Transform, Work, active, check_first, framed, recording_calls, working
from interp.models.model import Model
from interp.models.modes import check_no_dropout
from interp.models.sites import BETWEEN_BLOCKS, layer_of, parse_site
from interp.models.tokens import pad
from interp.models.unembed import unembed


@dataclass(frozen=True, eq=False)
class Trace:
    """The record of one forward of one prompt, from which any block can be run again.

    Attributes:
        row: the prompt's token ids; `ChatTokens` where it is a conversation, whose roles its runs then have.
        stream: the residual stream that enters each block and, last, the one that leaves the last block.
        sites: the activations at the sites that `trace` was given, `1 pos ...` each.
        calls: the arguments of each block beside the residual stream.
    """

    model: Model
    row: tuple[int, ...] | ChatTokens
    stream: Float[Tensor, "points pos d_model"]
    sites: Mapping[str, Tensor]
    calls: tuple[BlockCall, ...]

    def __getitem__(self, site: str) -> Float[Tensor, "pos ..."]:
        """The activation at a site: `pos d_model`, `pos d_mlp` or `pos head d_head`."""
        place = parse_site(site)
        if place.name in BETWEEN_BLOCKS:
            return self.stream[layer_of(place) + BETWEEN_BLOCKS[place.name]]
        return self.sites[str(place)][0]

    @cached_property
    def reading(self) -> Reading:
        """The `Reading` of this forward itself."""
        return Reading(self, self.stream[-1:], self.sites)

    @cached_property
    def key_values(self) -> tuple[KeyValues, ...]:
        """The keys and values of every block's attention, computed when first used."""
        by_layer = []
        with torch.no_grad(), framed(self.frame(1)):
            for layer, block in enumerate(blocks(self.model)):
                cache = KeyValues()
                block(self.stream[layer : layer + 1], **{**self.named[layer], "past_key_values": cache})
                by_layer.append(cache)
        return tuple(by_layer)

    @cached_property
    def named(self) -> tuple[dict[str, Any], ...]:
        """The arguments of the recorded calls by name."""
        return tuple(_named(block, call) for block, call in zip(blocks(self.model), self.calls, strict=True))

    def call(self, layer: int, start: int, past: KeyValues | None = None) -> dict[str, Any]:
        """The arguments of a block when only the tokens from `start` on are run: earlier keys and values are `past`, or the trace's."""
        arguments = self.named[layer]
        if not start:
            return arguments
        length = len(self.row)
        mask = arguments.get("attention_mask")
        if mask is None:
            mask = torch.ones((1, 1, length, length), dtype=torch.bool, device=self.model.device).tril()
        names = [name for name in ("position_embeddings", "position_ids") if name in arguments]
        later: dict[str, Any] = {name: _from_position(arguments[name], start) for name in names}
        return {**arguments, **later, "attention_mask": mask[:, :, start:], "past_key_values": past or self.key_values[layer].before(start)}

    def frame(self, count: int, start: int = 0) -> Frame:
        """The frame of `count` copies of the prompt, from a position on."""
        positions = repeat(torch.arange(start, len(self.row), device=self.model.device), "pos -> cell pos", cell=count)
        lengths = torch.full((count,), len(self.row), device=self.model.device)
        roles = role_codes([self.row])
        return Frame(
            positions, torch.ones_like(positions, dtype=torch.bool), lengths, rows=(0,) * count,
            roles=None if roles is None else roles.expand(count, -1),
        )  # fmt: skip


class _Stop(Exception):
    """Raised by `KeyValues` after attention has called it, so that the rest of the block is not computed."""


class KeyValues:
    """A KV cache of one block, in the form that its attention calls: stores keys and values, after those of earlier tokens.

    Attributes:
        earlier: keys and values (`batch head pos d_head`) of the tokens before those that are run, if there are any.
        all_tokens: those of all tokens, after attention has called `update`.
    """

    def __init__(self, earlier: tuple[Tensor, Tensor] | None = None, *, stop: bool = False) -> None:
        self.earlier, self.stop = earlier, stop
        self.all_tokens: tuple[Tensor, Tensor] | None = None

    def before(self, start: int, *, stop: bool = False) -> KeyValues:
        """A cache whose earlier tokens are those of this one before `start`."""
        if self.all_tokens is None:
            raise RuntimeError("no keys and values were stored")
        keys, values = self.all_tokens
        return KeyValues((keys[:, :, :start], values[:, :, :start]), stop=stop)

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The keys and values of all tokens, given those of the tokens that are run; attention calls it."""
        if self.earlier is not None:
            old = [part.expand(len(keys), -1, -1, -1) for part in self.earlier]
            keys, values = torch.cat([old[0], keys], dim=2), torch.cat([old[1], values], dim=2)
        self.all_tokens = (keys, values)
        if self.stop:
            raise _Stop
        return self.all_tokens


@dataclass(frozen=True, eq=False)
class Reading:
    """The final residual streams and site activations of several runs of one prompt, from which metrics are computed.

    The activation at a site that was not run again is that of the trace, because no change could affect it.
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
    """The record of a forward of one prompt: the residual stream between blocks, the sites named, and the arguments of each block.

    Active edits are applied, as in any forward. Raises `UserError` for a site that the model lacks, and for active edits
    at `resid_pre`, `ln_final` or `logits`, where a resumed run would apply them twice or not at all.
    """
    edited = (parse_site(site) for site in active(model.hf).transforms)
    barred = next((site for site in edited if site.name == "resid_pre" or not site.kind.per_layer), None)
    if barred is not None:
        raise UserError(
            f"an edit at {barred} is active where a run is to be resumed", "edit resid_post of the layer below, or patch outside"
        )
    check_no_dropout(model)
    names = {str(parse_site(site, n_layers=model.n_layers, family=model.family)) for site in sites}
    last = f"resid_post.{model.n_layers - 1}"
    between = [*(f"resid_pre.{layer}" for layer in range(model.n_layers)), last]
    activations: dict[str, Tensor] = {}
    collectors = {name: (collector(activations, name),) for name in {*between, *names}}
    tokens = pad([row], 0).to(model.device)
    work = Work(collectors=collectors, rows=(0,), roles=role_codes([row]))
    with recording_calls(model.hf) as calls, working(model.hf, work, None if work.roles is None else tokens.lengths):
        model.hf(**tokens.inputs(), use_cache=False, logits_to_keep=1)
    stream = torch.cat([activations[name] for name in between])
    return Trace(
        model, row if isinstance(row, ChatTokens) else tuple(row), stream, {name: activations[name].clone() for name in names}, tuple(calls)
    )


def resume(
    recorded: Trace, layer: int, hidden: Float[Tensor, "cell pos d_model"], *, transforms: Mapping[str, Transform] | None = None,
    keep: Sequence[str] = (), stop: int | None = None, start: int = 0,
    last_only: bool = False,
) -> Reading:  # fmt: skip
    """The reading of runs of blocks `layer` and above on these residual streams, which hold the tokens from `start` on.

    Args:
        layer: the first block to run; `n_layers` runs none.
        transforms: changes at sites of these blocks, by site.
        keep: sites to read in these blocks; a site of an earlier block is read from the trace.
        stop: the first block not to run; `final` is then the stream that enters it.
        start: the first position that differs from the trace; the reading has the trace's tokens before it.
        last_only: only the final stream of the last token is read, so the last block computes only keys and values for the other
            tokens; `final` then has that one token.
    """
    model = recorded.model
    changes = {str(parse_site(site)): change for site, change in (transforms or {}).items()}
    keep = [str(parse_site(site)) for site in keep]
    activations: dict[str, Tensor] = {}
    if f"resid_post.{layer - 1}" in keep:
        activations[f"resid_post.{layer - 1}"] = hidden
    work = Work({site: (change,) for site, change in changes.items()}, {site: (collector(activations, site),) for site in keep})
    last = model.n_layers - 1
    short = last_only and stop is None and not keep and layer <= last and len(recorded.row) - start > 1
    short = short and not any(layer_of(site) == last for site in changes)
    steps = list(enumerate(blocks(model)[layer : last if short else stop], start=layer))
    # Computed before the changes are active, because keys and values of earlier tokens are those of the trace.
    calls = [recorded.call(number, start) for number, _ in steps]
    final = recorded.call(last, start) if short else {}
    with working(model.hf, work), framed(recorded.frame(len(hidden), start)):
        for (_, block), call in zip(steps, calls, strict=True):
            hidden = block_output(block(hidden, **call))
    if short:
        return Reading(recorded, _last_token(recorded, hidden, final, work), activations)
    if start:
        activations = {site: _after_earlier(recorded[site], value, start) for site, value in activations.items()}
        hidden = _after_earlier(recorded.stream[model.n_layers if stop is None else stop], hidden, start)
    return Reading(recorded, hidden, activations)


def _last_token(
    recorded: Trace, hidden: Float[Tensor, "cell pos d_model"], call: dict[str, Any], work: Work
) -> Float[Tensor, "cell 1 d_model"]:
    """The last block's output at the last token; for the other tokens only keys and values are computed."""
    model, at = recorded.model, len(recorded.row) - 1
    block = blocks(model)[-1]
    earlier = call.get("past_key_values")
    all_tokens = KeyValues(earlier.earlier if earlier is not None else None, stop=True)
    with working(model.hf, work):
        with framed(recorded.frame(len(hidden), len(recorded.row) - hidden.shape[1])), contextlib.suppress(_Stop):
            block(hidden, **{**call, "past_key_values": all_tokens})
        with framed(recorded.frame(len(hidden), at)):
            return block_output(block(hidden[:, -1:], **recorded.call(model.n_layers - 1, at, all_tokens.before(at))))


def _after_earlier(
    whole: Float[Tensor, "all_pos ..."], later: Float[Tensor, "cell pos ..."], start: int
) -> Float[Tensor, "cell all_pos ..."]:  # fmt: skip
    """The tokens of each run after the trace's earlier ones."""
    return torch.cat([whole[:start].expand(len(later), *whole[:start].shape), later], dim=1)


def _named(block: nn.Module, call: BlockCall) -> dict[str, Any]:
    """The arguments of a recorded call by name."""
    bound = inspect.signature(block.forward).bind(None, *call[0], **call[1]).arguments
    extra = next((name for name, p in inspect.signature(block.forward).parameters.items() if p.kind is p.VAR_KEYWORD), None)
    arguments = dict(list(bound.items())[1:])
    return {**arguments, **arguments.pop(extra, {})} if extra is not None else arguments


def _from_position(value: Any, start: int) -> Any:
    """Position ids, or rotary embeddings (a pair of tensors), from a position on."""
    if value is None:
        return None
    return tuple(_from_position(part, start) for part in value) if isinstance(value, tuple) else value[:, start:]


def blocks(model: Model) -> list[nn.Module]:
    """The model's blocks, in order."""
    return list(model.hf.get_submodule(model.architecture.blocks).children())


def block_output(output: Any) -> Tensor:
    """The residual stream in what a block returns, which some versions of transformers wrap in a tuple."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def collector(activations: dict[str, Tensor], name: str) -> Callable[[Tensor, Frame], None]:
    """A collector that stores a copy of a site's activation, so that a later in-place change does not affect it."""

    def collect(value: Tensor, frame: Frame) -> None:
        check_first(activations, name)
        activations[name] = value.clone()

    return collect
