"""The region where a neuron fires: the prompts that tuning moves out of it, with random shifts and matched neurons as nulls.

A prompt is in a neuron's region where the product of the key with the stream before the MLP is above zero (paper A, section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.diffing.offsets import key_products, shifts
from interp.errors import UserError
from interp.models.model import Neuron
from interp.models.pair import ModelPair
from interp.stats.intervals import Interval, bootstrap_ratio, permutation_p
from interp.stats.nulls import matched_neurons, random_directions

# The states that a neuron can be in on one prompt.
STATES = ("fires strongly", "fires weakly", "silent")
TAILS = (0.025, 0.975)
# The number of neurons of the layer that are drawn for each matched one.
CANDIDATES = 8


@dataclass(frozen=True, eq=False)
class Leaving:
    """One neuron's inputs on each prompt before and after tuning, and the prompts that leave its region under nulls.

    Attributes:
        before: what it reads in the base model; above zero it fires.
        after: what it reads in the tuned model, with the tuned key.
        shift_alone: what the base model's neuron reads from the tuned model's states: the shift without the change of the key.
        random: prompts that leave under each random shift, every prompt moved as far as tuning moved it.
        matched: for each draw of a matched neuron, the share of the prompts on which it fires that leave it under the true shift.
    """

    neuron: Neuron
    before: Float[np.ndarray, " batch"]
    after: Float[np.ndarray, " batch"]
    shift_alone: Float[np.ndarray, " batch"]
    random: Int[np.ndarray, " draw"]
    matched: Float[np.ndarray, " matched_draw"]

    @property
    def fires(self) -> Bool[np.ndarray, " batch"]:
        """The prompts on which it fires in the base model."""
        return self.before > 0

    @property
    def leaves(self) -> Bool[np.ndarray, " batch"]:
        """The prompts on which it fires in the base model and not in the tuned model."""
        return self.fires & (self.after <= 0)

    @property
    def enters(self) -> Bool[np.ndarray, " batch"]:
        """The prompts on which it fires in the tuned model and not in the base model."""
        return ~self.fires & (self.after > 0)

    @property
    def leaves_by_shift(self) -> Bool[np.ndarray, " batch"]:
        """The prompts that leave when the key stays that of the base model."""
        return self.fires & (self.shift_alone <= 0)

    @property
    def share(self) -> float:
        """The share of the prompts on which it fires that leave; 0 where it fires on none."""
        return float(self.leaves.sum()) / max(1, int(self.fires.sum()))

    @property
    def null(self) -> Interval:
        """The number of prompts that leave under a random shift: the mean over draws, and the middle 95 % of them."""
        low, high = np.quantile(self.random, TAILS)
        return Interval(float(self.random.mean()), float(low), float(high), len(self.random))

    @property
    def p(self) -> float:
        """The p-value: how often at least as many prompts leave under a random shift as under the true one, with the base model's key."""
        return permutation_p(int(self.leaves_by_shift.sum()), self.random)

    def to_frame(self) -> pd.DataFrame:
        """Share of the firing prompts that leave, with `low` and `high`: one row per role, nulls without draws left out.

        Roles: `tuned` and `shift_alone` (bootstrap intervals over prompts, NaN where the neuron fires on none), `random_shift` and
        `matched_neurons` (mean and middle 95 % of the draws).
        """
        rows: list[tuple[str, float, float, float]] = []
        for role, leaves in (("tuned", self.leaves), ("shift_alone", self.leaves_by_shift)):
            share = bootstrap_ratio(leaves, self.fires) if self.fires.any() else Interval(float("nan"), float("nan"), float("nan"), 0)
            rows.append((role, share.value, share.low, share.high))
        for role, shares in (("random_shift", self.random / max(1, int(self.fires.sum()))), ("matched_neurons", self.matched)):
            if len(shares):
                low, high = (float(end) for end in np.quantile(shares, TAILS))
                rows.append((role, float(shares.mean()), low, high))
        return pd.DataFrame(rows, columns=["role", "share", "low", "high"])


def firing_states(reads: Float[Tensor, " batch"], before: Float[Tensor, " batch"]) -> list[str]:
    """The state (of `STATES`) that a neuron is in on each prompt, by its input there.

    Args:
        before: what it reads from the same prompts in the base model: strong is above its median over the prompts on which it fires there.
    """
    firing = before[before > 0]
    strong = float(firing.median()) if len(firing) else 0.0
    return [STATES[2] if value <= 0 else STATES[0] if value > strong else STATES[1] for value in reads.tolist()]


def leaving(
    pair: ModelPair, neuron: Neuron, base: Float[Tensor, "batch d_model"], tuned: Float[Tensor, "batch d_model"], *,
    shift_draws: int = 200, matched_draws: int = 40, exclude: Sequence[Neuron] = (), seed: int = 0,
) -> Leaving:  # fmt: skip
    """The prompts that leave the region of one neuron under tuning, and under random shifts and matched neurons.

    Args:
        base: each prompt's state in the base model at `resid_mid` of the neuron's layer; `tuned`: in the tuned model.
        shift_draws: random shifts, each as long as the prompt's own.
        matched_draws: draws of another neuron of the layer that writes about as strongly.
        exclude: neurons that no matched one is drawn from, besides `neuron` itself; ignored where a layer would have none left.

    Raises `UserError` where tuning moved no prompt before this layer's MLP, or `shift_draws` is below 1.
    """
    layer, index = neuron
    shift = shifts(base, tuned)
    if not bool(shift.any()):
        raise UserError(f"tuning moved nothing before the MLP of layer {layer}", "choose a higher layer")
    before, after = (
        key_products(model, layer, [index], states)[:, 0] for model, states in zip(pair.sides.values(), (base, tuned), strict=True)
    )
    shift_alone = key_products(pair.base, layer, [index], tuned)[:, 0]
    fires, lengths = before > 0, shift.norm(dim=1, keepdim=True)
    directions = torch.nn.functional.normalize(random_directions(shift.mean(dim=0), shift_draws, seed), dim=1)
    random = [
        int((fires & (key_products(pair.base, layer, [index], (base + lengths * direction).float())[:, 0] <= 0)).sum())
        for direction in directions
    ]
    matched = matched_shares(pair, neuron, base, tuned, draws=matched_draws, exclude=exclude, seed=seed) if matched_draws else np.zeros(0)
    return Leaving(neuron, before.numpy(), after.numpy(), shift_alone.numpy(), np.array(random), matched)


def matched_shares(
    pair: ModelPair, neuron: Neuron, base: Float[Tensor, "batch d_model"], tuned: Float[Tensor, "batch d_model"], *,
    draws: int, exclude: Sequence[Neuron] = (), seed: int = 0,
) -> Float[np.ndarray, " draw"]:  # fmt: skip
    """For draws of neurons matched to one of a layer: the share of the prompts on which each fires that leave it.

    A drawn neuron that fires on no prompt is left out. Arguments as in `leaving`.
    """
    layer, _ = neuron
    others_left = pair.base.d_mlp > sum(at == layer for at, _ in exclude)
    drawn = [
        matched_neurons(pair.base, [neuron], seed=seed + draw, exclude=exclude if others_left else (), candidates=CANDIDATES)[0][1]
        for draw in range(draws)
    ]
    indices = list(dict.fromkeys(drawn))
    before, after = (
        (key_products(model, layer, indices, states) > 0).double().numpy()
        for model, states in zip(pair.sides.values(), (base, tuned), strict=True)
    )
    firing = before.sum(axis=0)
    shares = dict(zip(indices, (before * (1 - after)).sum(axis=0) / np.maximum(firing, 1), strict=True))
    active = {index for index, count in zip(indices, firing, strict=True) if count > 0}
    return np.array([shares[index] for index in drawn if index in active], dtype=float)
