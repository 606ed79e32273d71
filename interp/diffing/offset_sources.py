"""Decomposition of the offset of the residual stream: what each part adds by changed weights and by changed activations.

The stream before an MLP is a sum (embedding, attention and MLP outputs below it), and an MLP output is a sum over neurons of
activation times value vector. Means over positions keep sums, so the mean offset splits exactly, from one mean per neuron and
prompt. The second-order term (weights and activations both changed) is shown by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float, Num
from torch import Tensor

from interp.errors import UserError
from interp.models.weights import check_neurons_add_up

if TYPE_CHECKING:
    from interp.models.pair import ModelPair

Mode = Literal["fixed", "code"]
Means = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The mean offset at `resid_mid.layer`, as parts that add up to it.

    Attributes:
        table: one row per layer, part and sign of the neuron's mean activation in the base model ("" where there is none):
            layer, part, sign, projection (on the offset's direction), share (of the offset's length).
        length: of the mean offset.
        residual: measured length minus the sum of the projections, over the length: rounding only.
    """

    table: pd.DataFrame
    layer: int
    length: float
    residual: float

    def by_part(self) -> pd.DataFrame:
        """The table summed over layers: part, sign, projection, share."""
        return self.table.groupby(["part", "sign"], sort=False)[["projection", "share"]].sum().reset_index()

    def share(self, part: str, sign: str = "") -> float:
        """The share of the offset that one part (of one sign) writes, over all layers."""
        rows = self.table[(self.table["part"] == part) & (self.table["sign"] == sign)]
        return float(rows["share"].sum())


def sites_below(layer: int) -> list[str]:
    """The sites whose means over positions `decompose` needs for the offset at `resid_mid.layer`."""
    return [
        "resid_pre.0", f"resid_mid.{layer}", *(f"attn_out.{below}" for below in range(layer + 1)),
        *(f"mlp_post.{below}" for below in range(layer)),
    ]  # fmt: skip


def pooled(means: Float[Tensor, "batch d"], weights: Num[Tensor, " batch"]) -> Float[Tensor, " d"]:
    """The mean over prompts and positions from each prompt's mean over positions; `weights` are the prompts' lengths."""
    share = weights.double() / weights.double().sum()
    return share @ means.double()


def value_update_cosines(
    pair: ModelPair, offset: Float[Tensor, " d_model"], layer: int, *, mode: Mode = "fixed"
) -> Float[Tensor, " neuron"]:
    """Cosine of each neuron's change of value vector with an offset: -1 is antipodal. A value vector that did not change has 0.

    Args:
        mode: `code` takes the mean off each value vector first, as the library that the paper's code uses does.

    Source: paper A, Figure 5; experiment A-E11.
    """
    change = pair.tuned.value_vectors(layer).detach().double().cpu() - pair.base.value_vectors(layer).detach().double().cpu()
    if mode == "code":
        change = change - change.mean(dim=1, keepdim=True)
    return _cosines(change, offset.double().cpu())


def _cosines(rows: Tensor, vector: Tensor) -> Tensor:
    normal = torch.nn.functional.normalize
    return einsum(normal(rows, dim=1), normal(vector, dim=0), "neuron d, d -> neuron")


def spearman(first: Sequence[float | int], second: Sequence[float | int]) -> float:
    """Rank correlation; NaN for fewer than three pairs or where one side is constant."""
    a, b = (pd.Series(np.asarray(side, dtype=float)).rank().to_numpy() for side in (first, second))
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


@torch.no_grad()
def decompose(
    pair: ModelPair,
    layer: int,
    base: Means,
    tuned: Means,
    weights: Num[Tensor, " batch"],
    *,
    along: Float[Tensor, " d_model"] | None = None,
) -> Decomposition:
    """The mean offset at `resid_mid.layer` as a sum over parts, those of neurons split by the sign of their activation.

    For each MLP below, with mean activation m and value vector v of a neuron: `changed values` is `m dv`, `changed
    activations` `dm v`, `both` `dm dv`; each is split by the sign of m in the base model. `value bias`, `attention` and
    `embedding` complete the sum. Each is projected on the offset's direction (or on `along`).

    Args:
        base, tuned: means over positions at `sites_below(layer)`, `batch d` each, of the same texts.
        weights: number of positions behind each text's mean.

    Source: experiment A-E11. Raises `UserError` for an offset of zero, or an architecture that norms the MLP's output.
    """
    check_neurons_add_up(pair.base)
    offset = pooled(tuned[f"resid_mid.{layer}"] - base[f"resid_mid.{layer}"], weights)
    length = float(offset.norm())
    if length == 0:
        raise UserError(f"the two sides have the same mean state at resid_mid.{layer}", "choose a layer above the first change")
    unit = torch.nn.functional.normalize((offset if along is None else along).double(), dim=0)
    total = float(offset @ unit)
    rows: list[tuple[int, str, str, float]] = [(0, "embedding", "", _moved("resid_pre.0", base, tuned, weights, unit))]
    for below in range(layer + 1):
        rows.append((below, "attention", "", _moved(f"attn_out.{below}", base, tuned, weights, unit)))
        if below < layer:
            rows += [(below, *row) for row in _of_mlp(pair, below, base, tuned, weights, unit)]
    table = pd.DataFrame(rows, columns=["layer", "part", "sign", "projection"])
    table["share"] = table["projection"] / total
    return Decomposition(table, layer, length, float(total - table["projection"].sum()) / length)


def _moved(site: str, base: Means, tuned: Means, weights: Tensor, unit: Tensor) -> float:
    return float(pooled(tuned[site] - base[site], weights) @ unit)


def _of_mlp(pair: ModelPair, layer: int, base: Means, tuned: Means, weights: Tensor, unit: Tensor) -> list[tuple[str, str, float]]:
    site = f"mlp_post.{layer}"
    before, after = pooled(base[site], weights), pooled(tuned[site], weights)
    old, new = (model.value_vectors(layer).detach().double().cpu() @ unit for model in (pair.base, pair.tuned))
    parts = {
        "changed values": before * (new - old), "changed activations": (after - before) * old, "both": (after - before) * (new - old)
    }  # fmt: skip
    rows = [
        (name, sign, float(value[where].sum()))
        for name, value in parts.items()
        for sign, where in (("inactive", before < 0), ("active", before >= 0))
    ]
    biases = (model.value_bias(layer).detach().double().cpu() @ unit for model in (pair.tuned, pair.base))
    return [*rows, ("value bias", "", float(next(biases) - next(biases)))]
