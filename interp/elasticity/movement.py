"""How far training has moved a model's weights: the straight distance, and the length of the path."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from interp.errors import UserError


def weight_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The Euclidean distance of two sets of weights, squares added up in double precision."""
    total = 0.0
    for one, other in zip(first, second, strict=True):
        if one.shape != other.shape:
            raise UserError(f"weights of shapes {tuple(one.shape)} and {tuple(other.shape)} have no distance", "give one model's weights")
        total += float((one.detach() - other.detach().to(one.device)).double().pow(2).sum())
    return math.sqrt(total)


def path_length(states: Iterable[Sequence[Tensor]]) -> float:
    """The sum of the distances between successive sets of weights; never below the distance of the first from the last."""
    length, before = 0.0, None
    for state in states:
        copy = [part.detach().clone() for part in state]
        length += 0.0 if before is None else weight_distance(before, copy)
        before = copy
    return length


def fisher_length(divergences: Sequence[float]) -> float:
    """The length of a path in the space of distributions, from the KL of each point to the one before it: the sum of `sqrt(2 KL)`.

    That is the length in the Fisher-Rao metric for small moves. Raises `UserError` for a negative divergence.
    """
    if any(not value >= 0 for value in divergences):
        raise UserError("a KL divergence is negative or no number", "give divergences of at least 0")
    return float(torch.tensor(list(divergences), dtype=torch.float64).mul(2).sqrt().sum())
