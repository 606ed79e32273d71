"""Total and influence with respect to the unembedding alone, by forwards: no gradient of the whole model is needed.

The gradient of log π(answer) by the unembedding, the input embedding held apart, is `Rᵀ H` (see `interp.preferences.similarity`), so
that the predictors of `interp.preferences.influence` are sums of products of `R` and `H` and of two matrices of the unembedding's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.models.model import Model
from interp.models.unembed import head_logits
from interp.preferences.pairs import TokenPair
from interp.preferences.side_by_side import side_by_side, workers
from interp.preferences.similarity import prediction_errors
from interp.preferences.states import AnswerStates, check_pairs, measured_model, states_by

# Bytes of states that are stored between the two passes; more are computed again.
STORED_BYTES = 1 << 28
# Logits that exist at a time: a product of few rows with a whole vocabulary takes as long as one of many.
LOGITS = 1 << 22


@dataclass(frozen=True, eq=False)
class HeadScores:
    """`total` and `influence` of each pair with respect to the unembedding alone and to the pairs that were given together."""

    total: Float[np.ndarray, " pair"]
    influence: Float[np.ndarray, " pair"]


def fits(model: Model, pairs: Sequence[TokenPair]) -> bool:
    """Whether the states that predict these pairs' answers may be stored."""
    size = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs) * model.d_model
    return size * (8 if model.dtype == torch.float64 else 4) <= STORED_BYTES


def head_scores(
    model: Model, pairs: Sequence[TokenPair], *, batch_tokens: int | None = None, stored: Sequence[AnswerStates] | None = None
) -> HeadScores:
    """Total and influence of each pair with respect to the unembedding, from forward passes; their sums over the pairs are equal.

    Args:
        stored: the states of all pairs, where they are known.

    Three matrices of the size of the unembedding are in memory, and two more for each part that is worked on beside another.

    Raises `UserError` as `answer_states`, whose `batch_tokens` this is.
    """
    check_pairs(model, pairs)
    scores = np.zeros((2, len(pairs)))
    if not pairs:
        return HeadScores(*scores)
    hf = measured_model(model)
    if stored is None and fits(model, pairs):
        stored = list(states_by(hf, model, pairs, batch_tokens=batch_tokens))

    count = 1 if stored is None else workers(model)
    # Pairs of similar length follow one another, so that every so many-th makes parts of equal work.
    parts: list[Sequence[AnswerStates] | None] = [None] if stored is None else [stored[first::count] for first in range(count)]

    def batches(part: Sequence[AnswerStates] | None) -> Iterator[_Batch]:
        return _batches(hf, states_by(hf, model, pairs, batch_tokens=batch_tokens) if part is None else part, pairs)

    @torch.no_grad()
    def sums(part: Sequence[AnswerStates] | None) -> tuple[Tensor, Tensor]:
        weight = model.unembedding
        both = tuple(torch.zeros(weight.shape, dtype=hf.dtype, device=weight.device) for _ in range(2))
        for batch in batches(part):
            for matrix, side in zip(both, (batch.chosen, batch.rejected), strict=True):
                matrix.addmm_(batch.errors[side].T, batch.states[side])
        return both[0], both[1]

    found = list(side_by_side(sums, parts, count))
    chosen_sum, rejected_sum = (torch.stack([one[side] for one in found]).sum(dim=0) for side in (0, 1))
    total = chosen_sum - rejected_sum

    @torch.no_grad()
    def shares(part: Sequence[AnswerStates] | None) -> None:
        # Parts share no pair, so that no two threads write to one place.
        for batch in batches(part):
            chosen, rejected = batch.chosen, batch.rejected
            influence = np.concatenate([batch.product(chosen, chosen_sum), -batch.product(rejected, chosen_sum)])
            np.add.at(scores[0], batch.owners[chosen], batch.product(chosen, total))
            np.add.at(scores[1], batch.owners, influence)

    list(side_by_side(shares, parts, count))
    return HeadScores(*scores)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Tokens of several pairs, first those of the chosen answers: the states that predict them, `R`, and each token's pair."""

    states: Float[Tensor, "token d_model"]
    errors: Float[Tensor, "token vocab"]
    owners: np.ndarray
    count: int

    @property
    def chosen(self) -> slice:
        """The tokens of the chosen answers."""
        return slice(self.count)

    @property
    def rejected(self) -> slice:
        """The tokens of the rejected answers."""
        return slice(self.count, len(self.owners))

    def product(self, tokens: slice, matrix: Float[Tensor, "vocab d_model"]) -> np.ndarray:
        """Each token's share of <Rᵀ H, matrix>, summed over the vocabulary."""
        return (self.errors[tokens] * (self.states[tokens] @ matrix.T)).sum(dim=1).double().cpu().numpy()


def _batches(hf: PreTrainedModel, states: Iterable[AnswerStates], pairs: Sequence[TokenPair]) -> Iterator[_Batch]:
    """The states of pairs, in batches of so many tokens as `LOGITS` allows."""
    room = max(1, LOGITS // hf.get_output_embeddings().weight.shape[0])
    group: list[AnswerStates] = []
    size = 0
    for each in states:
        count = len(each.chosen) + len(each.rejected)
        if group and size + count > room:
            yield _batch(hf, group, pairs)
            group, size = [], 0
        group.append(each)
        size += count
    if group:
        yield _batch(hf, group, pairs)


def _batch(hf: PreTrainedModel, group: Sequence[AnswerStates], pairs: Sequence[TokenPair]) -> _Batch:
    both = torch.cat([*(each.chosen for each in group), *(each.rejected for each in group)])
    answers = [pairs[each.number].chosen for each in group] + [pairs[each.number].rejected for each in group]
    owners = np.repeat([each.number for each in group] * 2, list(map(len, answers)))
    errors = _errors(hf, both, [token for answer in answers for token in answer])
    return _Batch(both, errors, owners, sum(map(len, answers[: len(group)])))


def _errors(hf: PreTrainedModel, states: Float[Tensor, "token d_model"], answer: Sequence[int]) -> Float[Tensor, "token vocab"]:
    logits = head_logits(hf, states)
    targets = torch.tensor(list(answer), device=logits.device)
    return prediction_errors(hf, logits, targets)
