"""What the unembedding alone says of a pair of one-token answers: Theorem 5 of Razin et al. (2025) and the geometry behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError


@dataclass(frozen=True)
class Difference:
    """The difference of the unembeddings of a preferred and a dispreferred token, split along the preferred one.

    Attributes:
        cosine: between the two unembeddings; centred: after the mean over the vocabulary is subtracted from both.
        along, orthogonal: the norms of the difference's component along the preferred unembedding and of the rest.
        expected: along / orthogonal for two vectors of equal norm and this cosine, sqrt((1 - c) / (1 + c)): the null of the split.
    """

    cosine: float
    centred: float
    preferred_norm: float
    dispreferred_norm: float
    along: float
    orthogonal: float
    expected: float


def difference_of(unembedding: Float[Tensor, "vocab d_model"], preferred: int, dispreferred: int) -> Difference:
    """The split of the difference of two tokens' unembeddings, in float64."""
    rows = unembedding[[preferred, dispreferred]].detach().double()
    one, other = rows
    centred = rows - unembedding.detach().double().mean(0)
    along, orthogonal = split_along(one - other, one)
    cosine = float(torch.cosine_similarity(one, other, dim=0))
    return Difference(
        cosine, float(torch.cosine_similarity(centred[0], centred[1], dim=0)), float(one.norm()), float(other.norm()),
        float(along.norm()), float(orthogonal.norm()), math.sqrt(max(0.0, 1 - cosine) / (1 + cosine)) if cosine > -1 else math.inf,
    )  # fmt: skip


def split_along(
    vector: Float[Tensor, " d_model"], direction: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    """The component of a vector along a direction, and the rest, which is orthogonal to it. Raises `UserError` for a zero direction."""
    square = direction @ direction
    if not square > 0:
        raise UserError("a vector cannot be split along a direction of length zero", "give another token")
    along = (vector @ direction) / square * direction
    return along, vector - along


def gain_scores(unembedding: Float[Tensor, "vocab d_model"], difference: Float[Tensor, " d_model"]) -> Float[Tensor, " vocab"]:
    """The order in which the log-probabilities of tokens grow at the first moment of tuning, by Theorem 5: `<W_z, W_+ - W_->`.

    It holds for every token but the pair's own two, under gradient flow in a model whose unembedding and hidden states are free
    parameters; in a real model it is an approximation.
    """
    return unembedding.detach().double() @ difference.double()


def pairs_like(
    unembedding: Float[Tensor, "vocab d_model"], cosine: float, count: int, *, without: tuple[int, ...] = (), seed: int = 0
) -> list[tuple[int, int]]:
    """Random pairs of different tokens, those of many draws whose unembeddings' cosine is nearest to the one given.

    Args:
        count: the number of pairs; two hundred times as many are drawn.
        without: tokens that belong to no pair.
    """
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor(sorted(set(range(len(unembedding))) - set(without)))
    if len(allowed) < 2:
        raise UserError("no two tokens are left to draw a pair from", "leave out fewer")
    drawn = allowed[torch.randint(len(allowed), (200 * count, 2), generator=generator)]
    drawn = drawn[drawn[:, 0] != drawn[:, 1]]
    one, other = (unembedding.detach()[drawn[:, side]].double() for side in (0, 1))
    distance = (torch.cosine_similarity(one, other, dim=1) - cosine).abs()
    nearest = drawn[distance.argsort(stable=True)[:count]]
    return [(int(first), int(second)) for first, second in nearest.tolist()]
