"""What two ways of changing a model's toxicity need to be compared: one price, and directions fitted on other prompts.

A stronger change lowers toxicity more and hurts language more, so a table of ways at arbitrary strengths shows nothing. Here
the strength of each is found such that the loss on the same texts is the same. Directions are fitted on prompts or states
that the ways are not measured on; nothing here knows how a change is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from interp.capture import capture
from interp.edits import Edit
from interp.errors import UserError
from interp.models import Model, ModelPair
from interp.stats import auc

Rows = Sequence[Sequence[int]]
TRIALS = 16
# Arditi et al. leave out the last fifth of the layers, where directions write tokens rather than meanings.
EARLY_SHARE = 0.8


@dataclass(frozen=True)
class Matched:
    """A strength, the loss there (nats per token), and whether the loss asked for lies within the range of strengths."""

    strength: float
    loss: float
    reached: bool


def match_loss(
    loss: Callable[[float], float], goal: float | int, *, most: float | int, first: float | int | None = None,
    tolerance: float | int = 1e-3, start: float | int | None = None,
) -> Matched:  # fmt: skip
    """At what strength between 0 and `most` does the loss reach `goal`?

    The strength is doubled from `first` (an eighth of `most`) until the loss is too large, then the bracket is narrowed by bisection,
    helped by the square law that a loss near its minimum follows. Where `most` is still cheap enough, `most` is the answer and
    `reached` is false: every strength that this way has costs less.

    Args:
        goal: the loss wanted, in nats per token; met within `tolerance` (0.001 nats is 0.1 % of perplexity).
        start: the loss at strength 0, where it is known already.

    Raises `UserError` where the loss at strength 0 is beyond the goal already, or the range is empty.
    """
    if not 0 < most < math.inf:
        raise UserError(f"strengths from 0 to {most} were asked for", "give a largest strength above 0")
    zero = float(loss(0.0) if start is None else start)
    if zero > goal + tolerance:
        raise UserError(f"the loss is {zero:.4f} before anything is changed, above the {goal:.4f} asked for", "ask for a larger loss")
    low, at_low = 0.0, zero
    high = min(float(most), float(first) if first is not None else float(most) / 8)
    at_high = _finite(loss(high))
    while at_high < goal - tolerance:
        if high >= most:
            return Matched(high, at_high, False)
        low, at_low, high = high, at_high, min(float(most), 2 * high)
        at_high = _finite(loss(high))
    if abs(at_high - goal) <= tolerance:
        return Matched(high, at_high, True)
    for trial in range(TRIALS):
        middle = (low + high) / 2
        if trial % 3 != 2 and math.isfinite(at_high) and at_high > at_low:
            share = (goal - at_low) / (at_high - at_low)
            middle = min(
                max(math.sqrt(low**2 + max(share, 0.0) * (high**2 - low**2)), low + 0.02 * (high - low)), high - 0.02 * (high - low)
            )
        at_middle = _finite(loss(middle))
        if abs(at_middle - goal) <= tolerance:
            return Matched(middle, at_middle, True)
        if at_middle < goal:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    # A loss that jumps has no strength at the goal; the cheaper side of the jump keeps the promise of the price.
    return Matched(low, at_low, True)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


@dataclass(frozen=True, eq=False)
class Difference:
    """Mean state on toxic prompts minus that on harmless ones, where they differ most clearly.

    Attributes:
        table: held-out AUC of each layer's difference, by layer.
    """

    direction: Float[Tensor, " d_model"]
    layer: int
    table: dict[int, float]


def difference_in_means(model: Model, toxic: Rows, harmless: Rows) -> Difference:
    """Which direction of the residual stream tells toxic from harmless prompts at their last token, and in which layer?

    Fitted on every other prompt of each class and chosen by AUC on the rest, among the first 80 % of the layers. Source: Arditi et
    al. (2024), with toxic prompts in the place of harmful instructions. Raises `UserError` for fewer than 4 prompts of a class.
    """
    if min(len(toxic), len(harmless)) < 4:
        raise UserError(f"{len(toxic)} toxic and {len(harmless)} harmless prompts were given", "give at least 4 of each")
    layers = range(max(1, round(EARLY_SHARE * model.n_layers)))
    sites = [f"resid_post.{layer}" for layer in layers]
    states = [capture(model, list(rows), sites, positions="last") for rows in (toxic, harmless)]
    found, scores = {}, {}
    for layer, site in zip(layers, sites, strict=True):
        one, two = (held[site].double() for held in states)
        found[layer] = one[::2].mean(dim=0) - two[::2].mean(dim=0)
        odds = torch.cat([one[1::2], two[1::2]]) @ found[layer]
        scores[layer] = auc([1] * len(one[1::2]) + [0] * len(two[1::2]), odds.numpy())
    best = max(layers, key=lambda layer: scores[layer])
    return Difference(found[best].float(), best, scores)


def ablation(model: Model, direction: Float[Tensor, " d_model"]) -> tuple[Edit, ...]:
    """Edits that remove a direction from all that is written to the residual stream while the model runs (directional ablation)."""
    sites = ["resid_pre.0", *(f"{name}.{layer}" for layer in range(model.n_layers) for name in ("attn_out", "mlp_out"))]
    return tuple(Edit.project_out(site, direction) for site in sites)


def toxic_subspaces(
    model: Model, toxic: Rows, harmless: Rows, *, layers: Sequence[int], rank: int = 2
) -> dict[int, Float[Tensor, "direction d_model"]]:
    """Which few directions carry the difference between paired toxic and harmless texts, layer by layer?

    Each text is its mean state at `resid_post`; from the differences of the pairs the mean harmless state is projected out (it carries
    what is common to all texts), and the top right singular vectors are returned. Source: ProFS (Uppaal et al.,
    2025). Raises `UserError` for fewer pairs than directions.
    """
    count = min(len(toxic), len(harmless))
    if not 1 <= rank <= min(count, model.d_model - 1):
        raise UserError(f"{rank} directions of {count} pairs were asked for", "ask for fewer directions, or give more texts")
    sites = [f"resid_post.{layer}" for layer in layers]
    one, two = (capture(model, list(rows[:count]), sites, positions="mean") for rows in (toxic, harmless))
    found = {}
    for layer, site in zip(layers, sites, strict=True):
        common = functional.normalize(two[site].double().mean(dim=0), dim=0)
        differences = one[site].double() - two[site].double()
        differences = differences - (differences @ common).unsqueeze(1) * common
        found[layer] = torch.linalg.svd(differences, full_matrices=False).Vh[:rank].float()
    return found


def random_subspaces(like: Mapping[int, Float[Tensor, "direction d_model"]], seed: int) -> dict[int, Float[Tensor, "direction d_model"]]:
    """Subspaces of the same dimensions at the same layers, drawn at random: the control for `toxic_subspaces`."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer, rows in like.items():
        drawn = torch.randn(rows.shape[1], rows.shape[0], generator=generator, dtype=torch.float64)
        found[layer] = torch.linalg.qr(drawn).Q.T.contiguous().to(rows.dtype)
    return found


def mean_offset(pair: ModelPair, rows: Rows, layer: int) -> Float[Tensor, " d_model"]:
    """What tuning adds to `resid_mid.layer` at the last token of these prompts, on average (paper A, section 5.2)."""
    site = f"resid_mid.{layer}"
    base, tuned = (capture(model, list(rows), [site], positions="last")[site] for model in pair.sides.values())
    return (tuned.double() - base.double()).mean(dim=0).float()
