"""What two ways of changing a model's toxicity need to be compared: one price, and directions fitted on other prompts.

A stronger change lowers toxicity more and hurts language more, so a table of ways at arbitrary strengths shows nothing. Here
the strength of each is found such that the loss on the same texts is the same. Directions are fitted on prompts or states
that the ways are not measured on; nothing here knows how a change is made.
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
