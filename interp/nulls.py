"""Matched controls: what a finding about chosen directions or neurons is compared with.

A control differs from what it controls in nothing but the choice: random directions have the same norm, random neurons
come from the same layers, matched neurons also write with about the same strength.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.models import Model

if TYPE_CHECKING:
    from interp.models import ModelPair

CANDIDATES = 32
Neuron = tuple[int, int]


def random_directions(like: Float[Tensor, " d"], count: int, seed: int) -> Float[Tensor, "count d"]:
    """Gaussian directions, uniform on the sphere, each with the norm of `like`.

    Raises `UserError` where `like` is zero or not finite, or `count` is less than 1.
    """
    norm = float(like.double().norm())
    if not norm > 0 or norm == float("inf"):
        raise UserError(f"random directions are matched to a vector of norm {norm}", "give a finite vector that is not zero")
    if count < 1:
        raise UserError(f"{count} random directions were asked for", "ask for at least 1")
    drawn = torch.randn(count, like.shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn * (norm / drawn.norm(dim=1, keepdim=True))).to(like.device, like.dtype)


def random_neurons(model: Model, neurons: Sequence[Neuron], *, seed: int, exclude: Sequence[Neuron] = ()) -> list[Neuron]:
    """For each neuron a random other neuron of its layer; never one of `neurons` or `exclude`, none twice."""
    return _draw(model, neurons, seed, exclude, candidates=1)


def matched_neurons(
    model: Model, neurons: Sequence[Neuron], *, seed: int, exclude: Sequence[Neuron] = (), candidates: int = CANDIDATES
) -> list[Neuron]:
    """For each neuron a random other neuron of its layer that writes about as strongly.

    `candidates` neurons of the layer are drawn at random, and the one whose value vector is nearest in norm is taken:
    more candidates match better, fewer are more random. Never one of `neurons` or `exclude`, none twice, in the order
    of `neurons`.

    Raises `UserError` for a neuron that the model lacks, or a layer without enough others.
    """
    return _draw(model, neurons, seed, exclude, candidates=candidates)


def _draw(model: Model, neurons: Sequence[Neuron], seed: int, exclude: Sequence[Neuron], *, candidates: int) -> list[Neuron]:
    if candidates < 1:
        raise UserError(f"{candidates} candidates per neuron were asked for", "ask for at least 1")
    generator = torch.Generator().manual_seed(seed)
    free: dict[int, Tensor] = {}
    norms: dict[int, Tensor] = {}
    for layer, index in neurons:
        if not (0 <= layer < model.n_layers and 0 <= index < model.d_mlp):
            raise UserError(
                f"neuron {layer}.{index} does not exist: the model has {model.n_layers} layers of {model.d_mlp} neurons",
                "count layers and neurons from 0",
            )
        if layer not in free:
            free[layer] = torch.ones(model.d_mlp, dtype=torch.bool)
            free[layer][[i for at, i in (*neurons, *exclude) if at == layer and 0 <= i < model.d_mlp]] = False
            norms[layer] = model.value_vectors(layer).float().norm(dim=1).cpu()
    found: list[Neuron] = []
    for layer, index in neurons:
        pool = free[layer].nonzero()[:, 0]
        if not len(pool):
            raise UserError(f"layer {layer} has no other neurons left to draw from", "exclude fewer neurons")
        drawn = pool[torch.randperm(len(pool), generator=generator)[:candidates]]
        best = int(drawn[(norms[layer][drawn] - norms[layer][index]).abs().argmin()])
        free[layer][best] = False
        found.append((layer, best))
    return found


@torch.no_grad()
def perturbed(pair: ModelPair, seed: int) -> Model:
    """The base model moved as far as tuning moved it, tensor by tensor, but in a random direction.

    What this model loses, any change of this size loses: the control for effects on prompts that were chosen by what the
    base model says.
    """
    hf = pair.base.plain_copy()
    generator = torch.Generator().manual_seed(seed)
    tuned = dict(pair.tuned.hf.named_parameters())
    for name, parameter in hf.named_parameters():
        length = (tuned[name].float() - parameter.float()).norm().cpu()
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_((noise * (length / noise.norm())).to(parameter.device, parameter.dtype))
    return Model(hf, pair.base.tokenizer, "random change of equal norm")
