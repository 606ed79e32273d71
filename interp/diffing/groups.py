"""MLP neurons in groups by how they lower the projection on a toxic direction, and how much each group lowers it.

A neuron with activation m and value vector v adds `m (v . d)` to the projection of the residual stream on the direction d. Tuning
can lower that projection in four ways: write along d and fire less (TP-), write along d with an activation that is below zero and
falls further (TN+), write against d and fire more (AP+), or write against d with a negative activation that comes nearer to zero
(AN-). Because neurons are put into these groups by the sign of the outcome, each group lowers the projection by construction; so
the groups are assigned on some prompts and measured on others, the neurons that raise it are shown beside those that lower it, and
the same is done for random directions. Source: Yang et al. (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.edits.edit import Edit
from interp.errors import UserError
from interp.forward.capture import capture
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.models.weights import check_neurons_add_up

# Toxic or anti-toxic (along or against the direction), positive or negative activation in the base model.
CELLS = ("TP", "TN", "AP", "AN")
# What the size of the activation does: + grows, - shrinks. The first four lower the projection, the others raise it.
REDUCING = ("TP−", "TN+", "AP+", "AN−")
OPPOSING = ("TP+", "TN−", "AP−", "AN+")
GROUPS = (*REDUCING, *OPPOSING)
UNCHANGED = len(GROUPS)
CHUNK = 16


@dataclass(frozen=True, eq=False)
class Activity:
    """Means over some positions of each text: neuron activations, and the other parts of the residual stream."""

    neurons: Float[Tensor, "prompt neuron"]
    parts: dict[str, Float[Tensor, "prompt d_model"]]


def activity(model: Model, rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> Activity:
    """Every neuron's activation, and the other parts of the residual stream, averaged over these positions of each text.

    Neuron number `layer * d_mlp + index`. Texts are read a few at a time, so that memory holds one mean per text.

    Args:
        positions: for each text equally many absolute positions.
    """
    post = [f"mlp_post.{layer}" for layer in range(model.n_layers)]
    last = f"resid_post.{model.n_layers - 1}"
    attention, mlp = ([f"{name}.{layer}" for layer in range(model.n_layers)] for name in ("attn_out", "mlp_out"))
    neurons: list[Tensor] = []
    parts: dict[str, list[Tensor]] = {"embedding": [], "attention": [], "mlp": [], "final": []}
    for start in range(0, len(rows), CHUNK):
        some = slice(start, start + CHUNK)
        acts = capture(
            model, list(rows[some]), [*post, *attention, *mlp, "resid_pre.0", last], positions=[list(p) for p in positions[some]]
        )
        means = {site: acts[site].double().mean(dim=1) for site in acts}
        neurons.append(torch.cat([means[site] for site in post], dim=1).float())
        parts["embedding"].append(means["resid_pre.0"])
        parts["final"].append(means[last])
        parts["attention"].append(torch.stack([means[site] for site in attention]).sum(dim=0))
        parts["mlp"].append(torch.stack([means[site] for site in mlp]).sum(dim=0))
    if not neurons:
        raise UserError("no texts were given", "give at least one")
    return Activity(torch.cat(neurons), {name: torch.cat(batches) for name, batches in parts.items()})


def alignments(model: Model, direction: Float[Tensor, " d_model"]) -> Float[Tensor, " neuron"]:
    """How much each neuron adds to the projection on the unit direction per unit of activation: `v . d`.

    Raises `UserError` for a direction that is none, or an architecture that norms the MLP's output.
    """
    check_neurons_add_up(model)
    norm = float(direction.double().norm())
    if not 0 < norm < float("inf") or direction.shape != (model.d_model,):
        raise UserError(
            f"a direction of shape {tuple(direction.shape)} and norm {norm} was given", f"give {model.d_model} numbers, not all zero"
        )
    unit = direction.double().cpu() / norm
    return torch.cat([model.value_vectors(layer).detach().double().cpu() @ unit for layer in range(model.n_layers)])


def sources(pair: ModelPair, base: Activity, tuned: Activity, direction: Float[Tensor, " d_model"]) -> dict[str, Float[Tensor, " prompt"]]:
    """How much tuning lowered each text's projection on the direction, in all and by each part of the model.

    `total` is the fall of the projection of the last residual stream; the others add up to it: changed activations (at the base
    model's value vectors), changed value vectors (at the tuned model's activations), other MLP writing (biases, norms after the
    MLP), attention, and embeddings. Positive numbers lower the projection.
    """
    unit = direction.double().cpu() / direction.double().cpu().norm()
    before, after = alignments(pair.base, direction), alignments(pair.tuned, direction)
    fall = {name: -(tuned.parts[name] - base.parts[name]) @ unit for name in base.parts}
    activations = -(tuned.neurons.double() - base.neurons.double()) @ before
    values = -tuned.neurons.double() @ (after - before)
    return {
        "total": fall["final"], "changed activations": activations, "changed value vectors": values,
        "MLP biases and norms": fall["mlp"] - activations - values, "attention": fall["attention"], "embeddings": fall["embedding"],
    }  # fmt: skip


def assign(
    alignment: Float[Tensor, " neuron"], before: Float[Tensor, " neuron"], after: Float[Tensor, " neuron"]
) -> Int[np.ndarray, " neuron"]:
    """The group of each neuron, as an index into `GROUPS`; `UNCHANGED` where nothing changed or the neuron writes across the direction.

    Args:
        alignment: as `alignments` gives.
        before: mean activation in the base model; above 0 makes a neuron positive.
        after: mean activation in the tuned model.
    """
    effect = (after.double() - before.double()).numpy() * alignment.double().numpy()
    cell = np.where(alignment.numpy() > 0, 0, 2) + np.where(before.numpy() > 0, 0, 1)
    return np.where(effect == 0, UNCHANGED, np.where(effect < 0, cell, cell + len(CELLS)))


def shares(reduction: Float[np.ndarray, "prompt neuron"], groups: Int[np.ndarray, " neuron"]) -> pd.DataFrame:
    """How much each group lowers the projection, as gross and net shares.

    Args:
        reduction: how much each neuron lowers the projection for each text (negative where it raises it).
        groups: from `assign`, best on other texts.

    One row per group: group, neurons, share of neurons, reduction (mean over texts), gross share (of the reduction by the four
    reducing groups together; empty for the others), net share (of all neurons together; these add up to 1).
    """
    means = reduction.mean(axis=0)
    sums = {name: float(means[groups == place].sum()) for place, name in enumerate(GROUPS)}
    gross, net = sum(sums[name] for name in REDUCING), float(means.sum())
    return pd.DataFrame([
        {
            "group": name, "neurons": int((groups == place).sum()), "share of neurons": float((groups == place).mean()),
            "reduction": sums[name], "gross share": sums[name] / gross if name in REDUCING and gross else float("nan"),
            "net share": sums[name] / net if net else float("nan"),
        }
        for place, name in enumerate(GROUPS)
    ])  # fmt: skip


def group_sums(reduction: Float[np.ndarray, "prompt neuron"], groups: Int[np.ndarray, " neuron"]) -> Float[np.ndarray, "prompt group"]:
    """How much each group lowers each text's projection, in the order of `GROUPS`."""
    return np.stack([reduction[:, groups == place].sum(axis=1) for place in range(len(GROUPS))], axis=1)


def chosen_of(groups: Int[np.ndarray, " neuron"], names: Sequence[str], d_mlp: int) -> dict[int, Bool[Tensor, " d_mlp"]]:
    """The neurons of some groups, layer by layer, as `interp.patching.cross_model` takes them."""
    return masks_by_layer(np.isin(groups, [GROUPS.index(name) for name in names]), d_mlp)


def masks_by_layer(neurons: Bool[np.ndarray, " neuron"], d_mlp: int) -> dict[int, Bool[Tensor, " d_mlp"]]:
    """A mask over all neurons split into one mask per layer; layers without a selected neuron are left out."""
    split = torch.from_numpy(np.ascontiguousarray(neurons)).view(-1, d_mlp)
    return {layer: row for layer, row in enumerate(split) if bool(row.any())}


def activation_edits(cells: Int[np.ndarray, " neuron"], d_mlp: int, strength: float | int) -> tuple[Edit, ...]:
    """Edits that shrink the activations that write along the direction and grow those that write against it.

    Neurons of cells TP and AN are multiplied by `1 - strength`, those of TN and AP by `1 + strength`; at 0.5 this is the editing of Yang
    et al. (2024). Above 1 the first are inverted, not shrunk (`interp.steering.strength.effect_of`).

    Args:
        cells: of each neuron an index into `CELLS`, or any other number for neurons that are left alone.
    """
    edits = []
    for factor, kinds in ((1 - float(strength), (0, 3)), (1 + float(strength), (1, 2))):
        for layer, units in masks_by_layer(np.isin(cells, kinds), d_mlp).items():
            edits.append(Edit.scale(f"mlp_post.{layer}", factor, units.nonzero()[:, 0].tolist()))
    return tuple(edits)


def cells_of(
    alignment: Float[Tensor, " neuron"], cosines: Float[Tensor, " neuron"], before: Float[Tensor, " neuron"], share: float | int
) -> Int[np.ndarray, " neuron"]:
    """The cell of each of the `share` of neurons that write most strictly along or against the direction, from the base model alone.

    Others get -1. This is the variant of the editing that needs no tuned model.
    """
    sizes = cosines.abs().double().numpy()
    strongest = sizes >= np.quantile(sizes, 1 - float(share))
    cell = np.where(alignment.numpy() > 0, 0, 2) + np.where(before.numpy() > 0, 0, 1)
    return np.where(strongest, cell, -1)
