"""Directions and subspaces between toxic and harmless texts, and the edits that remove them.

These are the baselines of the literature (difference in means, ProFS) and their random control. Directions must be fitted on other
prompts than those on which an edit is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from interp.edits.edit import Edit
from interp.errors import UserError
from interp.forward.capture import capture
from interp.models.model import Model
from interp.stats.intervals import auc

Rows = Sequence[Sequence[int]]
# Arditi et al. leave out the last fifth of the layers, where directions write tokens rather than meanings.
EARLY_SHARE = 0.8


@dataclass(frozen=True, eq=False)
class Difference:
    """Mean state on toxic prompts minus mean state on harmless ones, at the layer where it separates them best.

    Attributes:
        table: held-out AUC of each layer's difference, by layer.
    """

    direction: Float[Tensor, " d_model"]
    layer: int
    table: dict[int, float]


def difference_in_means(model: Model, toxic: Rows, harmless: Rows, *, standardise: bool = False) -> Difference:
    """The difference in means of the residual stream between toxic and harmless prompts at the last token, at the best layer.

    Fitted on every other prompt of each class and chosen by AUC on the rest, among the first 80 % of the layers. With `standardise`
    each coordinate is divided by its standard deviation over the prompts fitted on: models with a few coordinates of enormous activation
    have a plain difference along these, whatever the prompts mean (see `interp.directions.probe.Probe.direction`). Source: Arditi et
    al. (2024), with toxic prompts in the place of harmful instructions, who do not standardise. Raises `UserError` for fewer than 4
    prompts of a class.
    """
    if min(len(toxic), len(harmless)) < 4:
        raise UserError(f"{len(toxic)} toxic and {len(harmless)} harmless prompts were given", "give at least 4 of each")
    layers = range(max(1, round(EARLY_SHARE * model.n_layers)))
    sites = [f"resid_post.{layer}" for layer in layers]
    states = [capture(model, list(rows), sites, positions="last") for rows in (toxic, harmless)]
    directions, scores = {}, {}
    for layer, site in zip(layers, sites, strict=True):
        one, two = (acts[site].double() for acts in states)
        if standardise:
            deviations = torch.cat([one[::2], two[::2]]).std(dim=0, correction=0)
            deviations = torch.where(deviations > 0, deviations, 1.0)
            one, two = one / deviations, two / deviations
        directions[layer] = one[::2].mean(dim=0) - two[::2].mean(dim=0)
        odds = torch.cat([one[1::2], two[1::2]]) @ directions[layer]
        scores[layer] = auc([1] * len(one[1::2]) + [0] * len(two[1::2]), odds.numpy())
    best = max(layers, key=lambda layer: scores[layer])
    return Difference(directions[best].float(), best, scores)


def ablation(model: Model, direction: Float[Tensor, " d_model"]) -> tuple[Edit, ...]:
    """Edits that remove a direction from all that is written to the residual stream (directional ablation)."""
    sites = ["resid_pre.0", *(f"{name}.{layer}" for layer in range(model.n_layers) for name in ("attn_out", "mlp_out"))]
    return tuple(Edit.project_out(site, direction) for site in sites)


def toxic_subspaces(
    model: Model, toxic: Rows, harmless: Rows, *, layers: Sequence[int], rank: int = 2
) -> dict[int, Float[Tensor, "direction d_model"]]:
    """The top directions of the difference between paired toxic and harmless texts, by layer.

    Each text is its mean state at `resid_post`; from the differences of the pairs the mean harmless state is projected out (it carries
    what is common to all texts), and the top right singular vectors are returned. Source: ProFS (Uppaal et al.,
    2025). Raises `UserError` for fewer pairs than directions.
    """
    count = min(len(toxic), len(harmless))
    if not 1 <= rank <= min(count, model.d_model - 1):
        raise UserError(f"{rank} directions of {count} pairs were asked for", "ask for fewer directions, or give more texts")
    sites = [f"resid_post.{layer}" for layer in layers]
    one, two = (capture(model, list(rows[:count]), sites, positions="mean") for rows in (toxic, harmless))
    subspaces = {}
    for layer, site in zip(layers, sites, strict=True):
        common = functional.normalize(two[site].double().mean(dim=0), dim=0)
        differences = one[site].double() - two[site].double()
        differences = differences - (differences @ common).unsqueeze(1) * common
        subspaces[layer] = torch.linalg.svd(differences, full_matrices=False).Vh[:rank].float()
    return subspaces


def random_subspaces(like: Mapping[int, Float[Tensor, "direction d_model"]], seed: int) -> dict[int, Float[Tensor, "direction d_model"]]:
    """Subspaces of the same dimensions at the same layers, drawn at random: the control for `toxic_subspaces`."""
    generator = torch.Generator().manual_seed(seed)
    subspaces = {}
    for layer, rows in like.items():
        drawn = torch.randn(rows.shape[1], rows.shape[0], generator=generator, dtype=torch.float64)
        subspaces[layer] = torch.linalg.qr(drawn).Q.T.contiguous().to(rows.dtype)
    return subspaces
