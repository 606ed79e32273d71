"""Which tokens gain at the first step of tuning on a pair of one-token answers, against what Theorem 5 and the squeezing account say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from interp.errors import UserError
from interp.preferences.unembedding import gain_scores, pairs_like, split_along


@dataclass(frozen=True)
class Gains:
    """How well the order in which tokens gain is told before the step; the pair's own two tokens are left out of everything.

    Attributes:
        order: rank correlation of the change of log-probability with `<W_z, W_+ - W_->` (Theorem 5).
        order_orthogonal: the same with the component of `W_+ - W_-` that is orthogonal to `W_+`.
        order_squeezing: the same with the log-probability before the step.
        order_random: a high quantile of the same for random pairs of tokens whose unembeddings have the pair's cosine.
        share, share_squeezing: the part of the tokens that gain most probability that are among the first by `<W_z, W_+ - W_->`, and
            among the most probable before the step.
        share_chance: the same for tokens at random.
        argmax_first: whether the token that was most probable gains most probability.
    """

    order: float
    order_orthogonal: float
    order_squeezing: float
    order_random: float
    share: float
    share_squeezing: float
    share_chance: float
    argmax_first: bool


def gains_of_step(
    before: Float[Tensor, " vocab"], after: Float[Tensor, " vocab"], unembedding: Float[Tensor, "vocab d_model"], preferred: int,
    dispreferred: int, *, top: int = 20, draws: int = 100, tail: float = 0.975, seed: int = 0,
) -> Gains:  # fmt: skip
    """The gains of one step, from the log-probabilities before and after it and the unembedding before it.

    Args:
        draws: the number of random pairs of tokens.
        tail: the quantile of their rank correlations.

    Raises `UserError` where nothing changed, or the vocabulary has no more than `top` other tokens.
    """
    others = torch.ones(len(before), dtype=torch.bool)
    others[[preferred, dispreferred]] = False
    start, change = before[others].double(), (after.double() - before.double())[others]
    if not change.any() or len(change) <= top:
        raise UserError("the step changed no other token, or there are too few of them", "give a step with a learning rate above 0")
    rows = unembedding.detach().double()
    difference = rows[preferred] - rows[dispreferred]
    _, orthogonal = split_along(difference, rows[preferred])
    ranks = _ranks(change)
    scores = gain_scores(rows, difference)[others]
    cosine = float(torch.cosine_similarity(rows[preferred], rows[dispreferred], dim=0))
    pairs = pairs_like(rows, cosine, draws, without=(preferred, dispreferred), seed=seed)
    by_chance = [_correlation(ranks, _ranks(gain_scores(rows, rows[one] - rows[other])[others])) for one, other in pairs]
    rises = (start + change).exp() - start.exp()
    gaining = set(rises.topk(top).indices.tolist())
    first, probable = (set(values.topk(top).indices.tolist()) for values in (scores, start))
    return Gains(
        _correlation(ranks, _ranks(scores)), _correlation(ranks, _ranks(gain_scores(rows, orthogonal)[others])),
        _correlation(ranks, _ranks(start)), float(np.quantile(by_chance, tail)), len(gaining & first) / top, len(gaining & probable) / top,
        top / len(change), bool(rises.argmax() == start.argmax()),
    )  # fmt: skip


def _ranks(values: Tensor) -> np.ndarray:
    return np.asarray(rankdata(values.numpy()))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])
