"""Attribution patching: a first-order estimate of patching for every cell, from one backward pass.

It estimates the same map over the same cells as `patch` and returns the same type; `agreement` compares the two. Along the straight
path from target to source (integrated gradients) the estimates of a layer's cells sum to the effect of patching that layer whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad as pad_keys

from interp.errors import UserError
from interp.forward.captured import Captured
from interp.forward.pattern import by_query, is_pattern
from interp.forward.resume import Trace, resume, trace
from interp.models.chat import Chat, chat_settings, prompt_rows
from interp.models.hooks import Frame, Transform, check_first
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.models.sites import BETWEEN_BLOCKS, Site, expand_sites, layer_of, parse_site
from interp.models.tokens import pad
from interp.patching.maps import Cell, PatchMap
from interp.patching.metrics import ContinuationToxicity, Metric, as_metric, functions_of
from interp.patching.patch import Runs, baselines, make_runs

ROUNDING = 1e-5


def attribution_patch(
    subject: Model | ModelPair, prompts: str | Sequence[str], corrupted: str | Sequence[str] | None = None, *, metric: Any,
    site: str = "resid_post", positions: Any = None, layers: Sequence[int] | None = None,
    units: Sequence[int] | Sequence[tuple[int, int]] | None = None, directions: Sequence[str] | None = None, steps: int | None = None,
    chat: Chat | bool = False,
) -> PatchMap:  # fmt: skip
    """The map of `patch` estimated to first order; arguments as there.

    The estimate of a cell is the sum over its numbers of `(source - target) * gradient of the metric`.

    Args:
        steps: None for the gradient at the target; a number for integrated gradients, which average the gradient at the
            middles of that many equal steps from the target's to the source's activation of the whole site and layer.

    Raises:
        UserError: as `patch`; and for the toxicity of a continuation, which has no gradient.

    Source: gradient times difference of activations; integrated gradients after Sundararajan, Taly and Yan (2017).
    """
    if steps is not None and steps < 1:
        raise UserError(f"{steps} steps were asked for", "give at least 1, or None for the plain gradient")
    runs = make_runs(subject, prompts, corrupted, metric, site, positions, layers, units, directions, chat=chat)
    if any(isinstance(item, ContinuationToxicity) for item in runs.metrics):
        raise UserError("the toxicity of a continuation has no gradient", "use patch, or another metric")
    target, source = baselines(runs)
    estimates = [
        torch.stack([_estimates(ours, theirs, runs, item, steps) for (ours, theirs), item in zip(traces, runs.metrics, strict=True)])
        for traces in runs.traces
    ]
    method = "gradient" if steps is None else "integrated gradients"
    values = torch.stack(estimates) + target.unsqueeze(-1)
    settings = {**runs.settings, "steps": steps}
    return PatchMap(
        runs.site, runs.metrics[0].label, method, runs.directions, runs.cells, runs.tokens, values, target, source, None, settings,
        functions_of(runs.metrics),
    )  # fmt: skip


def gradients(
    model: Model, prompts: str | Sequence[str] | Sequence[Sequence[int]], sites: Sequence[str | Site], metric: Any, *,
    positions: Literal["all", "last"] = "all", chat: Chat | bool = False,
) -> Captured:  # fmt: skip
    """The gradient of a metric with respect to the activations at sites, in the prompt's own forward.

    Args:
        sites: of blocks (`resid_post.3`); `resid_post.*` names every layer.
        metric: `LogitDifference`, `LogProbability`, `ProbeProjection`, or any function from the logits of the token after the prompt
            (`cell vocab`, here of one row) to one number per row.
        positions: `all` gives `batch pos ...` with a mask, `last` the prompts' last positions as `batch ...`, as in `capture`;
            at patterns `batch head pos key_pos`, and `batch head key_pos` at the last position.
        chat: read the prompts as user turns of the model's chat template.

    Raises:
        UserError: no prompts or sites, an unknown site, one that is in no block, or a metric that has no gradient.
    """
    names = expand_sites(sites, n_layers=model.n_layers, family=model.family)
    rows = prompt_rows(model, [prompts] if isinstance(prompts, str) else prompts, chat)
    measure = as_metric(metric)
    outside = [name for name in names if parse_site(name).layer is None]
    if not names or not rows:
        raise UserError("gradients were asked for without prompts or without sites", "give at least one of each")
    if outside:
        raise UserError(
            f"{', '.join(outside)} cannot be differentiated at", f"use a site of a block, such as resid_post.{model.n_layers - 1}"
        )
    if not isinstance(measure, Metric):
        raise UserError("the toxicity of a continuation has no gradient", "use another metric")
    if positions not in ("all", "last"):
        raise UserError(f"positions {positions!r} is unknown", "use all or last")
    measure.check(model)
    longest = max(len(row) for row in rows)
    runs = [_by_position(_gradients(trace(model, row, measure.sites(model)), measure, names), longest) for row in rows]
    settings = {"texts": len(rows), "gradient_of": repr(measure), "n_layers": model.n_layers, **chat_settings(chat)}
    if positions == "last":
        return Captured({name: torch.stack([run[name][0, -1] for run in runs]).cpu() for name in names}, "last", None, settings)
    tensors = {name: torch.nn.utils.rnn.pad_sequence([run[name][0] for run in runs], batch_first=True).cpu() for name in names}
    # As in `capture`, a pattern is `batch head pos key_pos`.
    tensors = {name: by_query(value) if is_pattern(name) else value for name, value in tensors.items()}
    return Captured(tensors, "all", pad(rows, 0, "right").mask, settings)


def _by_position(slopes: dict[str, Tensor], longest: int) -> dict[str, Tensor]:
    """Gradients of one prompt with positions on the second axis; those at patterns with zeros for keys up to the longest prompt."""
    return {
        name: pad_keys(by_query(slope), (0, longest - slope.shape[-1])) if is_pattern(name) else slope for name, slope in slopes.items()
    }


def _estimates(target: Trace, source: Trace, runs: Runs, metric: Any, steps: int | None) -> Float[Tensor, " cell"]:
    layers = sorted({cell.layer for cell in runs.cells})
    names = {layer: f"{runs.site}.{layer}" for layer in layers}
    changes = {layer: source[name].to(target.stream) - target[name] for layer, name in names.items()}
    if steps is None:
        slopes = _gradients(target, metric, list(names.values()))
        products = {layer: changes[layer] * slopes[name][0] for layer, name in names.items()}
    else:
        places = (torch.arange(steps, device=target.stream.device) + 0.5) / steps
        products = {}
        for layer, name in names.items():
            between = torch.stack([target[name] + place * changes[layer] for place in places])
            products[layer] = changes[layer] * reduce(_slope(target, metric, name, between), "step pos ... -> pos ...", "mean")
    return torch.stack([_sum(products[cell.layer], cell, runs.site) for cell in runs.cells]).float().cpu()


def _sum(product: Float[Tensor, "pos ..."], cell: Cell, site: str) -> Float[Tensor, ""]:
    part = product if cell.position is None else product[cell.position : cell.position + 1]
    return (part if cell.unit is None else part[:, cell.unit]).sum()


@torch.enable_grad()
def _gradients(target: Trace, metric: Metric, names: list[str]) -> dict[str, Tensor]:
    """The metric's gradient at sites of the run as it is, from one forward and one backward pass."""
    model = target.model
    acts: dict[str, Tensor] = {}
    start = target.stream[:1].detach().clone().requires_grad_()
    reading = resume(
        target, 0, start, transforms={name: _tap(acts, name) for name in names if name != "resid_pre.0"}, keep=metric.sites(model)
    )
    acts |= {"resid_pre.0": start} if "resid_pre.0" in names else {}
    value = metric.read(reading).sum()
    if not value.requires_grad:
        raise UserError(f"the {metric.label} has no gradient: it does not depend on the activations, or leaves torch", "use another metric")
    slopes = torch.autograd.grad(value, [acts[name] for name in names], allow_unused=True)
    return {name: torch.zeros_like(acts[name]) if slope is None else slope for name, slope in zip(names, slopes, strict=True)}


def _tap(acts: dict[str, Tensor], name: str) -> Transform:
    """A transform that replaces the activation by a copy, stored under `name`, with respect to which gradients can be taken."""

    def tap(x: Tensor, frame: Frame) -> Tensor:
        check_first(acts, name)
        acts[name] = x.clone()
        return acts[name]

    return tap


@torch.enable_grad()
def _slope(target: Trace, metric: Metric, site: str, values: Float[Tensor, "step pos ..."]) -> Float[Tensor, "step pos ..."]:
    """The metric's gradient at a site, with the site set to each of these values."""
    model = target.model
    values = values.detach().requires_grad_()
    name, layer, keep = parse_site(site).name, layer_of(site), metric.sites(model)
    if name in BETWEEN_BLOCKS:
        reading = resume(target, layer + BETWEEN_BLOCKS[name], values, keep=keep)
    else:
        hidden = target.stream[layer].expand(len(values), *target.stream[layer].shape)
        reading = resume(target, layer, hidden, transforms={site: lambda x, frame: values * 1}, keep=keep)
    total = metric.read(reading).sum()
    if not total.requires_grad:
        return torch.zeros_like(values)
    (slope,) = torch.autograd.grad(total, values, allow_unused=True)
    return torch.zeros_like(values) if slope is None else slope


@dataclass(frozen=True)
class Agreement:
    """Correlations and overlap of an estimated map with a measured one, per direction.

    Attributes:
        correlation: Pearson's, of the cells' effects.
        rank_correlation: Spearman's.
        same_sign: the share of cells whose effects have the same sign.
        overlap: the share of the measured map's largest cells (in size) that are among the estimate's largest.
        top: how many cells count as the largest.
    """

    directions: tuple[str, ...]
    correlation: tuple[float, ...]
    rank_correlation: tuple[float, ...]
    same_sign: tuple[float, ...]
    overlap: tuple[float, ...]
    top: int

    def to_frame(self) -> pd.DataFrame:
        """One row per direction: direction, correlation, rank_correlation, same_sign, overlap, top."""
        columns = zip(self.directions, self.correlation, self.rank_correlation, self.same_sign, self.overlap, strict=True)
        return pd.DataFrame([(*row, self.top) for row in columns],
                            columns=["direction", "correlation", "rank_correlation", "same_sign", "overlap", "top"])  # fmt: skip


def agreement(measured: PatchMap, estimated: PatchMap, *, top: int = 10) -> Agreement:
    """How far an estimated map agrees with a measured one: effects (means over prompts) compared cell by cell.

    Raises `UserError` for maps of other cells, sites, metrics or directions, or fewer than 2 cells.
    """
    same = ("site", "metric", "functions", "directions", "cells")
    different = [name for name in same if getattr(measured, name) != getattr(estimated, name)]
    if different:
        raise UserError(f"the maps differ in {', '.join(different)}", "make both with the same arguments")
    count = len(measured.cells)
    if count < 2 or top < 1:
        raise UserError(f"{count} cells and the top {top} are to be compared", "compare at least 2 cells, and at least the top 1")
    largest = min(top, count)
    rows = []
    for real, guess in zip(measured.effects.mean(dim=1).double(), estimated.effects.mean(dim=1).double(), strict=True):
        best = [set(side.abs().topk(largest).indices.tolist()) for side in (real, guess)]
        pair = pd.DataFrame({"real": real.tolist(), "guess": guess.tolist()})
        rows.append((
            float(pair["real"].corr(pair["guess"])), float(pair["real"].rank().corr(pair["guess"].rank())),
            float((_sign(real) == _sign(guess)).double().mean()), len(best[0] & best[1]) / largest,
        ))  # fmt: skip
    columns = tuple(zip(*rows, strict=True))
    return Agreement(measured.directions, columns[0], columns[1], columns[2], columns[3], largest)


def _sign(effects: Float[Tensor, " cell"]) -> Float[Tensor, " cell"]:
    """The sign of each effect; 0 where it is within rounding of the largest."""
    return torch.where(effects.abs() > ROUNDING * effects.abs().max(), effects.sign(), 0.0)


def per_layer(effects: PatchMap) -> Float[Tensor, "direction layer"]:
    """The sum of a map's effects over the cells of each layer (mean over prompts), layers in order."""
    layers = sorted({cell.layer for cell in effects.cells})
    mean = effects.effects.mean(dim=1)
    owner = torch.tensor([layers.index(cell.layer) for cell in effects.cells])
    member = rearrange(owner, "cell -> cell 1") == torch.arange(len(layers))
    return mean @ member.to(mean)
