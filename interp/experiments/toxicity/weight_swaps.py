"""What a part of the changed weights does by itself: the offset and the fall of toxicity with that part swapped between the sides.

This is the causal account beside the decomposition of A-E11, which follows the direct path only: a changed MLP below also changes
what attention above it writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.diffing.offset_sources import pooled
from interp.edits.weights import interpolated
from interp.experiments.toxicity.context import ToxicityContext
from interp.forward.capture import capture
from interp.models.parameters import parameter_group, parameter_layer
from interp.stats.intervals import Interval, bootstrap_ratio

GROUPS = {"attention": "attention", "mlp": "MLP", "norm": "norms", "embedding": "embeddings"}


@dataclass(frozen=True)
class Swap:
    """A part of the weights: its name in tables, its group, its layer (-1 for all), and whether it has a tensor."""

    name: str
    group: str
    layer: int
    has: Callable[[str], bool]


def swaps_of(context: ToxicityContext) -> Iterator[Swap]:
    """Each group of weights in all layers, then the attention of each layer; a group that the model lacks is left out."""

    def in_group(group: str, layer: int) -> Callable[[str], bool]:
        return lambda name: parameter_group(name) == group and layer in (-1, parameter_layer(name))

    names = [name for name, _ in context.pair.base.hf.named_parameters()]
    layers = () if context.quick else range(context.pair.base.n_layers)
    parts = [Swap(f"{title}, all layers", group, -1, in_group(group, -1)) for group, title in GROUPS.items()]
    parts += [Swap(f"attention of layer {layer}", "attention", layer, in_group("attention", layer)) for layer in layers]
    return (part for part in parts if any(map(part.has, names)))


def weight_swaps(
    context: ToxicityContext, layer: int, base: Float[Tensor, "batch d"], shift: Float[Tensor, "batch d"], weights: Tensor,
    counts: Float[Tensor, "draws batch"],
) -> pd.DataFrame:  # fmt: skip
    """One row for each part of the weights, with the tuned weights of that part alone in the base model.

    Columns: weights, group, layer (-1: all), share of the offset at `resid_mid.layer` (its coordinate along the tuning's offset, over
    the offset's length) with `low` and `high`, and the share of the fall of toxicity with its own; both intervals resample prompts in
    the denominator too. The shares of parts need not add up to 1. Where tuning did not lower toxicity, shares of the fall are NaN.

    Args:
        base, shift: the base model's mean states and the tuning's shift of them, by prompt; weights: the prompts' lengths.
        counts: bootstrap draws of the prompts, already weighted by their lengths, each row summing to 1.
    """
    rows = []
    for part in swaps_of(context):
        context.say(f"tuned weights of {part.name} alone in the base model")

        def measure(part: Swap = part) -> tuple[Tensor, np.ndarray, np.ndarray | None]:
            model = interpolated(context.pair.base, context.pair.tuned, 1, only=part.has)
            moved = capture(model, context.prompt_rows(), [f"resid_mid.{layer}"], positions="mean")[f"resid_mid.{layer}"]
            # A copy has a cache of its own, which goes with the model.
            own = replace(context)
            return moved.double() - base.double(), own.toxicity(model), own.second_toxicity(model)

        moved, scores, second = context.measured(("weight swap", part.name, layer), measure, seeded=True)
        offset = share_of_offset(moved, shift, weights, counts)
        fall = share_of_fall(context.toxicity, context, scores)
        second_fall = math.nan if second is None else share_of_fall(context.second_toxicity, context, second).value
        rows.append({
            "weights": part.name, "group": part.group, "layer": part.layer, "share of the offset": offset.value, "low": offset.low,
            "high": offset.high, "share of the fall": fall.value, "fall low": fall.low, "fall high": fall.high,
            "share of the fall, second scorer": second_fall,
        })  # fmt: skip
    return pd.DataFrame(rows)


def share_of_offset(moved: Tensor, shift: Tensor, weights: Tensor, counts: Tensor) -> Interval:
    """The coordinate of the mean of `moved` along the mean of `shift`, over the length of the latter, with a bootstrap interval."""

    def share(numerator: Tensor, denominator: Tensor) -> Tensor:
        return (numerator * denominator).sum(dim=-1) / denominator.square().sum(dim=-1).clamp(min=1e-300)

    value = float(share(pooled(moved, weights), pooled(shift, weights)))
    drawn = share(counts @ moved.double(), counts @ shift.double())
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return Interval(value, low, high, len(shift))


def share_of_fall(read: Callable[..., np.ndarray | None], context: ToxicityContext, scores: np.ndarray) -> Interval:
    """The share of the fall of toxicity from the base to the tuned side that `scores` show, by the scorer of `read`."""
    before, after = (read(model) for model in context.pair.sides.values())
    if before is None or after is None or before.mean() <= after.mean():
        return Interval(math.nan, math.nan, math.nan, len(scores))
    return bootstrap_ratio(before - scores, before - after, seed=context.seed)
