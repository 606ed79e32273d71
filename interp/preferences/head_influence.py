"""Total and influence with respect to the unembedding alone, by forwards: no gradient of the whole model is needed.

The gradient of log π(answer) by the unembedding, the input embedding held apart, is `Rᵀ H` (see `interp.preferences.similarity`), so
that the predictors of `interp.preferences.influence` are sums of products of `R` and `H` and of two matrices of the unembedding's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.models.model import Model
from interp.models.unembed import head_logits
from interp.preferences.logprobs import log_normaliser
from interp.preferences.pairs import TokenPair
from interp.preferences.similarity import prediction_errors
from interp.preferences.states import AnswerStates, check_pairs, measured_model, states_by

# Bytes of states that are stored between the two passes; more are computed again.
STORED_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class HeadScores:
    """`total` and `influence` of each pair with respect to the unembedding alone and to the pairs that were given together."""

    total: Float[np.ndarray, " pair"]
    influence: Float[np.ndarray, " pair"]


@torch.no_grad()
def head_scores(model: Model, pairs: Sequence[TokenPair], *, batch_tokens: int | None = None) -> HeadScores:
    """Total and influence of each pair with respect to the unembedding, from forward passes; their sums over the pairs are equal.

    Three matrices of the size of the unembedding are in memory. Raises `UserError` as `answer_states`, whose `batch_tokens` this is.
    """
    check_pairs(model, pairs)
    scores = np.zeros((2, len(pairs)))
    if not pairs:
        return HeadScores(*scores)
    hf = measured_model(model)
    size = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs) * model.d_model * (8 if hf.dtype == torch.float64 else 4)
    stored = list(states_by(hf, model, pairs, batch_tokens=batch_tokens)) if size <= STORED_BYTES else None

    def states() -> Iterable[AnswerStates]:
        return states_by(hf, model, pairs, batch_tokens=batch_tokens) if stored is None else stored

    weight = model.unembedding
    chosen_sum, rejected_sum = (torch.zeros(weight.shape, dtype=hf.dtype, device=weight.device) for _ in range(2))
    for each in states():
        pair = pairs[each.number]
        for matrix, hidden, answer in ((chosen_sum, each.chosen, pair.chosen), (rejected_sum, each.rejected, pair.rejected)):
            matrix.addmm_(_errors(hf, hidden, answer).T, hidden)
    total = chosen_sum - rejected_sum
    for each in states():
        number, pair = each.number, pairs[each.number]
        chosen, rejected = _errors(hf, each.chosen, pair.chosen), _errors(hf, each.rejected, pair.rejected)
        scores[0, number] = _product(chosen, each.chosen, total)
        scores[1, number] = _product(chosen, each.chosen, chosen_sum) - _product(rejected, each.rejected, chosen_sum)
    return HeadScores(*scores)


def _errors(hf: PreTrainedModel, states: Float[Tensor, "token d_model"], answer: Sequence[int]) -> Float[Tensor, "token vocab"]:
    logits = head_logits(hf, states)
    targets = torch.tensor(list(answer), device=logits.device)
    return prediction_errors(hf, logits, log_normaliser(logits), targets, columns=logits.shape[1])


def _product(errors: Float[Tensor, "token vocab"], states: Float[Tensor, "token d_model"], matrix: Float[Tensor, "vocab d_model"]) -> float:
    """<Rᵀ H, matrix>, summed over positions and vocabulary in double precision."""
    return float((errors * (states @ matrix.T)).sum(dim=1).double().sum())
