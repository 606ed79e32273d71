"""MLP neurons as key-value memories: value vectors ranked by a direction, and what one neuron reads and writes.

A neuron is a pair (layer, index). Everything is computed from raw weights, and ranked over all layers at once: a cap per
layer would hide that one layer holds most of what is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.data.lexicon import mask
from interp.errors import UserError
from interp.models.model import Neuron
from interp.models.weights import written_values
from interp.neurons.projection import DOT, Projection
from interp.neurons.vocabulary import top_tokens

if TYPE_CHECKING:
    from interp.models.model import Model
    from interp.models.pair import ModelPair

# The number of value vectors nearest to the probe that count as toxic (MLP.v_toxic of paper A).
TOXIC_COUNT = 128


@dataclass(frozen=True, eq=False)
class Ranking:
    """Neurons ordered by the cosine of their value vector with a direction."""

    neurons: list[Neuron]
    cosines: Float[Tensor, " neuron"]
    norms: Float[Tensor, " neuron"]

    def __len__(self) -> int:
        return len(self.neurons)

    def to_frame(self) -> pd.DataFrame:
        """Columns layer, neuron, cosine, norm (of the value vector), best first."""
        return pd.DataFrame({
            "layer": [layer for layer, _ in self.neurons], "neuron": [index for _, index in self.neurons],
            "cosine": self.cosines.tolist(), "norm": self.norms.tolist(),
        })  # fmt: skip


@torch.no_grad()
def rank_values(model: Model, direction: Float[Tensor, " d_model"], *, top: int | None = TOXIC_COUNT, largest: bool = True) -> Ranking:
    """The value vectors of all layers ranked by cosine with `direction`, largest first (smallest with `largest=False`).

    Args:
        top: how many; None for all of them.

    Equal cosines keep the order of layers and neurons. A value vector of zero has cosine 0. Source: paper A section 3.
    Raises `UserError` for a direction that is zero, not finite or of another width, or a `top` below 1.
    """
    unit = _unit(direction, model.d_model)
    if top is not None and top < 1:
        raise UserError(f"the top {top} value vectors were asked for", "ask for at least 1")
    cosines, norms = [], []
    for layer in range(model.n_layers):
        values = written_values(model, layer).float()
        norms.append(values.norm(dim=1).cpu())
        cosines.append(
            einsum(values, unit.to(values.device), "neuron d_model, d_model -> neuron").cpu()
            / norms[-1].clamp(min=torch.finfo(torch.float32).tiny)
        )
    flat, sizes = torch.cat(cosines), torch.cat(norms)
    order = flat.argsort(descending=largest, stable=True)[:top]
    return Ranking([(int(i) // model.d_mlp, int(i) % model.d_mlp) for i in order], flat[order], sizes[order])


@torch.no_grad()
def nearest_in_layers(
    model: Model, directions: Float[Tensor, "count d_model"], neurons: Sequence[Neuron], *, exclude: Sequence[Neuron] = ()
) -> list[list[Neuron]]:
    """For each direction the neurons whose value vectors are nearest to it by cosine, as many in each layer as `neurons` has there.

    With random directions this is a null for neurons that were chosen by one direction: like those, the neurons of one set share
    what they write, so the sets, and not single neurons, are its units. They come by layer, within a layer the nearest first.
    Neurons of `exclude` are left out. Raises `UserError` where a layer has fewer others.
    """
    model.check_neurons(neurons)
    sets: list[list[Neuron]] = [[] for _ in directions]
    layers = [layer for layer, _ in neurons]
    for layer in sorted(set(layers)):
        left_out, count = [index for at, index in exclude if at == layer], layers.count(layer)
        if model.d_mlp - len(set(left_out)) < count:
            raise UserError(f"layer {layer} has no {count} other neurons", "exclude fewer neurons")
        values = torch.nn.functional.normalize(written_values(model, layer).float().cpu(), dim=1)
        cosines = torch.nn.functional.normalize(directions.float().cpu(), dim=1) @ values.T
        cosines[:, left_out] = -torch.inf
        for chosen, best in zip(sets, cosines.topk(count, dim=1).indices.tolist(), strict=True):
            chosen += [(layer, index) for index in best]
    return sets


def values_at(model: Model, neurons: Sequence[Neuron]) -> Float[Tensor, "neuron d_model"]:
    """The value vectors of these neurons as they reach the residual stream (see `written_values`), in this order."""
    return _stack(model, neurons, lambda layer: written_values(model, layer))


def keys_at(model: Model, neurons: Sequence[Neuron]) -> Float[Tensor, "neuron d_model"]:
    """The key vectors of these neurons (for GLU the gate's), in this order."""
    return _stack(model, neurons, model.key_vectors)


@torch.no_grad()
def svd_directions(
    model: Model, neurons: Sequence[Neuron], *, count: int = 3, towards: Float[Tensor, " d_model"]
) -> Float[Tensor, "count d_model"]:
    """The directions that these neurons' value vectors share, strongest first, as unit vectors.

    The value vectors are normalised and stacked as columns `d_model neuron`; the left singular vectors are returned, each
    with the sign that makes its cosine with `towards` positive. Source: experiment A-E2 of paper A (`U_toxic`).
    Raises `UserError` where there are fewer neurons than directions.
    """
    reference = _unit(towards, model.d_model)
    limit = min(len(neurons), model.d_model)
    if not 1 <= count <= limit:
        raise UserError(f"{count} directions of {len(neurons)} neurons were asked for", f"ask for 1 to {limit}")
    values = torch.nn.functional.normalize(values_at(model, neurons).double(), dim=1)
    left = torch.linalg.svd(values.T, full_matrices=False).U[:, :count].T
    signs = torch.where(left @ reference.to(left.device, left.dtype) < 0, -1.0, 1.0)
    return (left * signs.unsqueeze(1)).float()


@torch.no_grad()
def explain_neuron(
    subject: Model | ModelPair, layer: int, neuron: int, *, top: int = 10, final_norm: bool = False, projection: Projection = DOT,
    masked: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """The tokens that one neuron writes, and how far tuning changed its vectors.

    One row per side: side, layer, neuron, top_tokens and bottom_tokens (separated by a bar), value_norm, key_norm, key_bias, and
    the cosines of its value and key with the base model's (1 for the base itself; only for a pair).
    """
    sides = subject.sides if hasattr(subject, "sides") else {subject.name: subject}
    first = next(iter(sides.values()))
    rows = []
    for side, model in sides.items():
        value, key = values_at(model, [(layer, neuron)]), keys_at(model, [(layer, neuron)])
        words = [
            top_tokens(model, value, top=top, final_norm=final_norm, largest=best, projection=projection).words[0] for best in (True, False)
        ]
        row = {
            "side": side, "layer": layer, "neuron": neuron,
            "top_tokens": _joined(words[0], masked), "bottom_tokens": _joined(words[1], masked),
            "value_norm": float(value.float().norm()), "key_norm": float(key.float().norm()),
            "key_bias": float(model.key_biases(layer)[neuron]),
        }  # fmt: skip
        if len(sides) > 1:
            row["value_cosine"] = _cosine(value, values_at(first, [(layer, neuron)]))
            row["key_cosine"] = _cosine(key, keys_at(first, [(layer, neuron)]))
        rows.append(row)
    return pd.DataFrame(rows)


def _joined(words: Sequence[str], masked: bool) -> str:
    return " | ".join(mask(word.strip()) if masked else word.strip() for word in words)


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first.double().cpu(), second.double().cpu(), dim=1))


def _unit(direction: Tensor, width: int) -> Float[Tensor, " d_model"]:
    if direction.dim() != 1 or direction.shape[0] != width:
        raise UserError(f"a direction of shape {tuple(direction.shape)} was given", f"give one vector of {width} numbers")
    vector = direction.detach().float()
    norm = float(vector.norm())
    if not 0 < norm < float("inf"):
        raise UserError(f"the direction has norm {norm}", "give a finite direction that is not zero")
    return vector / norm


def _stack(model: Model, neurons: Sequence[Neuron], read: Callable[[int], Tensor]) -> Tensor:
    model.check_neurons(neurons)
    # Layers may lie on several devices.
    return torch.stack([read(layer)[index].to(model.device) for layer, index in neurons])
