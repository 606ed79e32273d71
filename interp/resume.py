"""Runs a model again from any block on, on many copies of one residual stream: what is below is not computed twice.

Each block is called with the very masks and rotary embeddings that the model gave it in the recorded forward, so that
nothing here knows an architecture. Blocks are called through the permanent hooks, hence edits and sites mean the same
as in a forward of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from interp.hooks import Call, Frame, Transform, Work, framed, recording_calls, working
from interp.lens import unembed
from interp.models import Model
from interp.sites import parse_site
from interp.tokens import pad


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
        name, _, layer = site.partition(".")
        if name == "resid_pre":
            return self.stream[int(layer)]
        return self.stream[int(layer) + 1] if name == "resid_post" else self.sites[site][0]

    @cached_property
    def reading(self) -> Reading:
        """What this forward itself gives to a metric."""
        return Reading(self, self.stream[-1:], self.sites)

    def frame(self, count: int) -> Frame:
        """The frame of `count` copies of the prompt."""
        positions = repeat(torch.arange(len(self.row), device=self.model.device), "pos -> cell pos", cell=count)
        lengths = torch.full((count,), len(self.row), device=self.model.device)
        return Frame(positions, torch.ones_like(positions, dtype=torch.bool), lengths, rows=(0,) * count)


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
        if name in self.sites:
            return self.sites[name]
        if name == f"resid_post.{self.trace.model.n_layers - 1}":
            return self.final
        value = self.trace[name]
        return value.expand(len(self), *value.shape)


@torch.no_grad()
def trace(model: Model, row: Sequence[int], sites: Iterable[str] = ()) -> Trace:
    """Run one prompt and keep the residual stream between blocks, the sites named, and how each block was called.

    Raises `UserError` for a site that the model lacks.
    """
    wanted = {str(parse_site(site, n_layers=model.n_layers, family=model.family)) for site in sites}
    last = f"resid_post.{model.n_layers - 1}"
    between = [*(f"resid_pre.{layer}" for layer in range(model.n_layers)), last]
    found: dict[str, Tensor] = {}
    collectors = {name: (keeper(found, name),) for name in {*between, *wanted}}
    with recording_calls(model) as calls, working(model, Work(collectors=collectors, rows=(0,))):
        model.hf(**pad([row], 0).to(model.device).inputs(), use_cache=False, logits_to_keep=1)
    stream = torch.cat([found[name] for name in between])
    return Trace(model, tuple(row), stream, {name: found[name].clone() for name in wanted}, tuple(calls))


def resume(
    given: Trace, layer: int, hidden: Float[Tensor, "cell pos d_model"], *, transforms: Mapping[str, Transform] | None = None,
    keep: Sequence[str] = (), stop: int | None = None,
) -> Reading:  # fmt: skip
    """Run blocks `layer` and above on these residual streams.

    Args:
        layer: the first block to run; `n_layers` runs none.
        transforms: changes at sites of these blocks, by site.
        keep: sites to read on the way; those of blocks below are left to the trace.
        stop: the first block not to run; `final` is then the stream that enters it.
    """
    model = given.model
    found: dict[str, Tensor] = {}
    if f"resid_post.{layer - 1}" in keep:
        found[f"resid_post.{layer - 1}"] = hidden
    work = Work({site: (change,) for site, change in (transforms or {}).items()}, {site: (keeper(found, site),) for site in keep})
    with working(model, work), framed(given.frame(len(hidden))):
        for block, (args, kwargs) in zip(blocks(model)[layer:stop], given.calls[layer:stop], strict=True):
            hidden = first(block(hidden, *args, **kwargs))
    return Reading(given, hidden, found)


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
        found[name] = value.clone()

    return keep
