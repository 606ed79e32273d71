"""Whether a model stands at the joint optimum of two data sets, and how their losses move against each other in a direction.

With γ_P and γ_A the mean losses on a large set P and a small set A, and k the ratio of their sizes, a model at the optimum of
`k γ_P + γ_A` satisfies `k ∇γ_P = -∇γ_A`. So along every direction dγ_A/dγ_P = -k, and the products of size and change of KL are equal and
opposite, which paper C calls a Hooke's law. It holds for small steps only: ∇γ_P is k times smaller than ∇γ_A, so that its second-order
term takes over k times earlier. After training on one set and then on the other it does not hold, and where the sets do not compete for
the same parameters both gradients vanish and it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.errors import UserError
from interp.preferences.influence import Gradient, dot

# Gradients whose norm is below this share of the reference's are zero up to rounding.
VANISHING = 1e-6


@dataclass(frozen=True)
class Stationarity:
    """Whether a model stands at the joint optimum of two sets.

    Attributes:
        residual: ‖k ∇γ_P + ∇γ_A‖ / (k ‖∇γ_P‖ + ‖∇γ_A‖): 0 at the joint optimum, 1 where the gradients do not oppose each other.
            NaN where both vanish.
        norm_large, norm_small: ‖∇γ_P‖ and ‖∇γ_A‖.
    """

    residual: float
    norm_large: float
    norm_small: float


def stationarity(large: Gradient, small: Gradient, k: float | int) -> Stationarity:
    """The stationarity residual of the gradients of two mean losses, of sets whose sizes are in the ratio k."""
    if not k > 0:
        raise UserError(f"the ratio of the sizes is {k}", "give a positive number")
    squared_large, squared_small = dot(large, large), dot(small, small)
    norm_large, norm_small = math.sqrt(squared_large), math.sqrt(squared_small)
    whole = k * norm_large + norm_small
    squared = dot(*[[k * one + other for one, other in zip(large, small, strict=True)]] * 2)
    return Stationarity(math.sqrt(squared) / whole if whole else math.nan, norm_large, norm_small)


def rate_ratio(large: Gradient, small: Gradient, direction: Sequence[Tensor]) -> float:
    """dγ_A/dγ_P along a direction of the parameters; NaN where γ_P does not move to first order."""
    moved = dot(large, direction)
    scale = math.sqrt(dot(large, large) * dot(direction, direction))
    return dot(small, direction) / moved if abs(moved) > VANISHING * scale and scale else math.nan


def hooke_products(sizes: tuple[float, float], changes: tuple[float, float]) -> tuple[float, float]:
    """Size times the change of KL from the model to each set; at the joint optimum they are equal and opposite for small moves."""
    return sizes[0] * changes[0], sizes[1] * changes[1]


def mean_loss(hf: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Float[Tensor, ""]:
    """The mean loss in nats per predicted token of rows of token ids, with its graph, added up in double precision."""
    total, count = torch.zeros((), dtype=torch.float64, device=hf.device), sum(len(row) - 1 for row in rows)
    if count < 1:
        raise UserError("the rows hold no token to predict", "give rows of at least two tokens")
    for row in rows:
        ids = torch.tensor([list(row)], device=hf.device)
        logps = hf(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(dim=-1)
        total = total - logps.gather(1, ids[0, 1:, None]).sum()
    return total / count


def loss_gradient(hf: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Gradient:
    """The gradient of `mean_loss` by each parameter that requires one."""
    parameters = tuple(parameter for parameter in hf.parameters() if parameter.requires_grad)
    return torch.autograd.grad(mean_loss(hf, rows), parameters, allow_unused=True, materialize_grads=True)
