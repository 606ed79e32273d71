"""The shift of the residual stream by tuning, and how alike the shifts of different prompts are.

By construction the mean shift has a positive coordinate along itself, so that coordinate alone says nothing. Informative is how
alike the single shifts are (explained share, pairwise cosine) and whether a direction fitted on some prompts moves the others. All
functions take two tables of states, `batch d_model` each, of any site.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from interp.directions.contrast import Rows
from interp.errors import UserError
from interp.forward.capture import capture
from interp.models.pair import ModelPair
from interp.models.weights import folded_keys, mlp_norm
from interp.stats.intervals import Interval, bootstrap_mean, counts_of

if TYPE_CHECKING:
    from interp.models.model import Model

Mode = Literal["paper", "code", "fixed"]
MODES: tuple[Mode, ...] = ("fixed", "paper", "code")
PLOTTED_BY_CODE = 30
# The names of the controls in tables and figures.
FLIPPED, RANDOM = "signs flipped at random after tuning (0 by arithmetic)", "random changes of equal norm (null)"


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Each prompt's coordinates in the plane of the paper's Figure 4: along the shift, and on the first principal component."""

    base: Float[Tensor, "batch 2"]
    tuned: Float[Tensor, "batch 2"]
    mode: Mode

    @property
    def moves(self) -> Float[Tensor, " batch"]:
        """The distance that each prompt moves along the shift."""
        return self.tuned[:, 0] - self.base[:, 0]


def shifts(base: Float[Tensor, "batch d_model"], tuned: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
    """The shift of each prompt's state by tuning, in double precision. Raises `UserError` for unequal tables or under two prompts."""
    if base.shape != tuned.shape or len(base) < 2:
        raise UserError(
            f"states of shapes {tuple(base.shape)} and {tuple(tuned.shape)} were given",
            "give both sides' states of the same prompts, at least two",
        )
    return tuned.double() - base.double()


def explained_share(shift: Float[Tensor, "batch d_model"]) -> float:
    """The share of the shift that is the same for every prompt: `|mean shift|^2 / mean |shift|^2`, 1 when all are one vector.

    Unrelated shifts of `n` prompts give `1 / n`, not 0. NaN where nothing moved. Source: experiment A-E10.
    """
    size = shift.square().sum(dim=1).mean()
    return float(shift.mean(dim=0).square().sum() / size) if size > 0 else float("nan")


def pairwise_cosine(shift: Float[Tensor, "batch d_model"]) -> float:
    """Mean cosine between the shifts of two different prompts; a prompt that did not move has cosine 0 with all others.

    NaN where nothing moved. Source: experiment A-E10.
    """
    n = len(shift)
    unit = torch.nn.functional.normalize(shift, dim=1)
    alone = float(unit.square().sum())
    return (float(unit.sum(dim=0).square().sum()) - alone) / (n * (n - 1)) if alone > 0 else float("nan")


def consistency(
    shift: Float[Tensor, "batch d_model"], *, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[Interval, Interval]:
    """`explained_share` and `pairwise_cosine`, each with a bootstrap interval over prompts.

    A prompt that is drawn twice is not compared with itself. Intervals are NaN where nothing moved.
    """
    n, blank = len(shift), float("nan")
    share, cosine = explained_share(shift), pairwise_cosine(shift)
    if math.isnan(share):
        return Interval(blank, blank, blank, n), Interval(blank, blank, blank, n)
    counts = resampled(n, draws, seed)
    unit = torch.nn.functional.normalize(shift, dim=1)
    shares = (counts @ shift / n).square().sum(dim=1) / (counts @ shift.square().sum(dim=1) / n).clamp(min=1e-300)
    same, alone = counts.square().sum(dim=1), counts.square() @ unit.square().sum(dim=1)
    cosines = ((counts @ unit).square().sum(dim=1) - alone) / (n * n - same).clamp(min=1)
    tails = ((1 - level) / 2, (1 + level) / 2)
    ends = [np.quantile(drawn.numpy(), tails) for drawn in (shares, cosines)]
    first, second = (Interval(v, float(e[0]), float(e[1]), n) for v, e in zip((share, cosine), ends, strict=True))
    return first, second


def resampled(n: int, draws: int, seed: int) -> Float[Tensor, "draws n"]:
    """How often each of `n` prompts is drawn, in each of many draws with replacement."""
    return torch.tensor(counts_of(seed, draws, n))


def sign_flipped(shift: Float[Tensor, "batch d_model"], seed: int) -> Float[Tensor, "batch d_model"]:
    """The shifts with random signs, whose mean cosine is near 0 whatever the shifts are: a check of the arithmetic.

    It is no control of training: a run on shuffled labels is one, whose shifts may be nearly as alike as those of the true labels.
    """
    coins = np.random.default_rng(seed).integers(0, 2, len(shift))
    return shift * torch.from_numpy(1.0 - 2.0 * coins).to(shift)[:, None]


def folds(n: int, seed: int) -> Bool[np.ndarray, " n"]:
    """A mask of a random half of `n` prompts; what is fitted on one half is tested on the other, and the reverse."""
    return np.random.default_rng(seed).permutation(n) % 2 == 0


def held_out_directions(shift: Float[Tensor, "batch d_model"], seed: int) -> Float[Tensor, "batch d_model"]:
    """For each prompt the unit mean shift of the half of the prompts that it is not in; zero where that half did not move."""
    half = torch.from_numpy(folds(len(shift), seed))
    first, second = (torch.nn.functional.normalize(shift[part].mean(dim=0), dim=0) for part in (half, ~half))
    return torch.where(half[:, None], second, first)


def held_out_cosines(shift: Float[Tensor, "batch d_model"], seed: int) -> Float[Tensor, " batch"]:
    """Cosine of each prompt's shift with the mean shift of the other half of the prompts."""
    return einsum(torch.nn.functional.normalize(shift, dim=1), held_out_directions(shift, seed), "batch d, batch d -> batch")


def coordinates(
    base: Float[Tensor, "batch d_model"], tuned: Float[Tensor, "batch d_model"], *, mode: Mode = "fixed", seed: int = 0
) -> Coordinates:
    """Each prompt's coordinate along the mean shift and on the first principal component of all states.

    Args:
        mode: `fixed` projects raw states on the unit mean shift of the *other* half of the prompts. `paper` z-scores the
            pooled states and projects on their mean shift, all prompts at once. The released `code` applies the mean shift
            of the raw states, not normalised, to z-scored states, and draws the first 30 prompts only.

    Source: paper A, Figure 4; experiment A-E10.
    """
    shift = shifts(base, tuned)
    n = len(shift)
    pooled = torch.cat([base.double(), tuned.double()])
    centred = pooled - pooled.mean(dim=0)
    if mode == "fixed":
        along = einsum(centred, held_out_directions(shift, seed).repeat(2, 1), "batch d, batch d -> batch")
    else:
        centred = centred / pooled.std(dim=0, correction=0).clamp(min=1e-12)
        scored = centred[n:].mean(dim=0) - centred[:n].mean(dim=0)
        along = centred @ (shift.mean(dim=0) if mode == "code" else torch.nn.functional.normalize(scored, dim=0))
    # The Gram matrix of the short side: `batch` may be far below or above `d_model`.
    component = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    points = torch.stack([along, centred @ component], dim=1)
    plotted = min(n, PLOTTED_BY_CODE) if mode == "code" else n
    return Coordinates(points[:n][:plotted], points[n:][:plotted], mode)


@torch.no_grad()
def key_products(
    model: Model, layer: int, neurons: Sequence[int], states: Float[Tensor, "batch d_model"], *, mode: Mode = "fixed"
) -> Float[Tensor, "batch neuron"]:
    """Each neuron's product of key and state at `resid_mid.layer`; above zero the state is in the neuron's region.

    Args:
        mode: `fixed` is what the model computes, with the norm before the MLP and the bias. `paper` is `x . k` of the raw
            state. `code` is the raw state times the key with the norm's gain folded in and centred, without scale and bias.

    Source: paper A, section 5 (region gamma); experiment A-E10.
    """
    index = torch.tensor(list(neurons), device=model.device)
    keys = model.key_vectors(layer)[index].detach()
    inputs = states.to(model.device, model.dtype)
    if mode == "paper":
        return (inputs @ keys.T).double().cpu()
    if mode == "code":
        return (inputs @ folded_keys(model, layer, neurons).T).double().cpu()
    # `forward` instead of a call, so that hooks at this norm do not run.
    return (mlp_norm(model, layer).forward(inputs) @ keys.T + model.key_biases(layer)[index]).double().cpu()


def mean_offset_at_last(pair: ModelPair, rows: Rows, layer: int) -> Float[Tensor, " d_model"]:
    """The mean shift of `resid_mid.layer` at the last token of these prompts by tuning (paper A, section 5.2).

    W-E2 subtracts this vector; X-C1 and X-C2 move by the mean over all positions (`mean_offset_over_positions`).
    """
    site = f"resid_mid.{layer}"
    base, tuned = (capture(model, list(rows), [site], positions="last")[site] for model in pair.sides.values())
    return (tuned.double() - base.double()).mean(dim=0).float()


@dataclass(frozen=True, eq=False)
class Profile:
    """How alike the shifts of prompts are at every layer, beside shifts of random signs and random changes of the weights.

    Attributes:
        tuned: at each layer the mean cosine of a prompt's shift with the mean shift of the other half, with a bootstrap interval.
        flipped: the same mean for each draw of random signs of the shifts.
        changed: the same mean for each random change of the weights.
    """

    tuned: tuple[Interval, ...]
    flipped: Float[np.ndarray, "layer flip"]
    changed: Float[np.ndarray, "layer change"]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and role (`tuned`, `flipped`, and `changed` where there are draws): layer, role, cosine, low, high.

        `low` and `high` are the 95 % interval of `tuned`, the middle 95 % of `flipped`, and the range of the few draws of `changed`.
        """
        rows: list[tuple[int, str, float, float, float]] = []
        for layer, (interval, flipped, changed) in enumerate(zip(self.tuned, self.flipped, self.changed, strict=True)):
            rows.append((layer, "tuned", interval.value, interval.low, interval.high))
            low, high = np.quantile(flipped, (0.025, 0.975))
            rows.append((layer, "flipped", float(np.mean(flipped)), float(low), float(high)))
            if len(changed):
                rows.append((layer, "changed", float(np.mean(changed)), float(min(changed)), float(max(changed))))
        return pd.DataFrame(rows, columns=["layer", "role", "cosine", "low", "high"])


def shift_profile(
    base: Sequence[Float[Tensor, "batch d_model"]], tuned: Sequence[Float[Tensor, "batch d_model"]],
    changes: Sequence[Sequence[Float[Tensor, "batch d_model"]]] = (), *, flips: int = 40, seed: int = 0,
) -> Profile:  # fmt: skip
    """How alike the shifts of different prompts are, layer by layer; 1 is one shift for all of them.

    Args:
        base: the prompts' states in the base model, a table per layer; `tuned`: in the tuned model.
        changes: for each random change of the weights, what it adds to the base model's states: a table per layer.
        flips: draws of random signs.

    Raises `UserError` for sides or changes with another number of layers, no layer, or no draw.
    """
    if not base or flips < 1 or any(len(tables) != len(base) for tables in (tuned, *changes)):
        raise UserError(
            f"{len(base)} and {len(tuned)} layers, changes of {[len(tables) for tables in changes]} layers and {flips} draws were given",
            "give one table per layer for each of them, and at least one draw",
        )
    intervals, flipped, changed = [], [], []
    for layer, states in enumerate(zip(base, tuned, strict=True)):
        shift = shifts(*states)
        intervals.append(bootstrap_mean(held_out_cosines(shift, seed).numpy()))
        flipped.append([float(held_out_cosines(sign_flipped(shift, seed + draw), seed).mean()) for draw in range(flips)])
        changed.append([float(held_out_cosines(change[layer], seed).mean()) for change in changes])
    return Profile(tuple(intervals), np.array(flipped), np.array(changed).reshape(len(base), len(changes)))
