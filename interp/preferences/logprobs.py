"""Log-probabilities of preference pairs: of every token of both answers, given the prompt and the tokens before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.models.model import Model
from interp.models.unembed import head_logits
from interp.preferences.pairs import TokenPair
from interp.preferences.states import check_pairs, measured_model, states_by

# Positions whose logits exist at a time.
PIECE = 64


@dataclass(frozen=True, eq=False)
class LogProbs:
    """Log-probabilities in nats of the answers of preference pairs, in the order of the pairs.

    Attributes:
        chosen, rejected: of whole answers, sums over their tokens.
        chosen_tokens, rejected_tokens: of each token; one array a pair.
    """

    chosen: Float[np.ndarray, " pair"]
    rejected: Float[np.ndarray, " pair"]
    chosen_tokens: tuple[Float[np.ndarray, " _"], ...]
    rejected_tokens: tuple[Float[np.ndarray, " _"], ...]

    @property
    def margin(self) -> Float[np.ndarray, " pair"]:
        """log π(chosen) - log π(rejected) of each pair."""
        return self.chosen - self.rejected

    def at(self, places: Sequence[int]) -> LogProbs:
        """Those of the pairs at these places, in this order."""
        chosen, rejected = (tuple(side[place] for place in places) for side in (self.chosen_tokens, self.rejected_tokens))
        return LogProbs(self.chosen[list(places)], self.rejected[list(places)], chosen, rejected)


def log_probs(model: Model, pairs: Sequence[TokenPair], *, batch_tokens: int | None = None) -> LogProbs:
    """The log-probabilities of both answers of each pair under a model, by token and in sum.

    The forward is in single precision, or in double for a model in double; logarithms and sums are in double. Edits that are active
    (`editing`) act. Raises `UserError` as `answer_states`, whose `batch_tokens` this is.
    """
    check_pairs(model, pairs)
    tokens: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0), np.empty(0))] * len(pairs)
    if pairs:
        hf = measured_model(model)
        for states in states_by(hf, model, pairs, batch_tokens=batch_tokens):
            pair = pairs[states.number]
            both = token_log_probs(hf, torch.cat([states.chosen, states.rejected]), [*pair.chosen, *pair.rejected]).cpu().numpy()
            tokens[states.number] = both[: len(pair.chosen)], both[len(pair.chosen) :]
    return summed(tokens)


def summed(tokens: Sequence[tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]]) -> LogProbs:
    """The log-probabilities of pairs from those of each pair's tokens: of the chosen answer, and of the rejected one."""
    chosen, rejected = (np.array([float(pair[side].sum()) for pair in tokens]) for side in (0, 1))
    return LogProbs(chosen, rejected, tuple(pair[0] for pair in tokens), tuple(pair[1] for pair in tokens))


@torch.no_grad()
def token_log_probs(hf: PreTrainedModel, states: Float[Tensor, "token d_model"], targets: Sequence[int]) -> Float[Tensor, " token"]:
    """The log-probability, in nats and in double precision, of one target token for each state after the final norm."""
    parts = []
    ids = torch.tensor(list(targets), device=states.device)
    for piece, target in zip(states.split(PIECE), ids.split(PIECE), strict=True):
        logits = head_logits(hf, piece)
        target = target.to(logits.device)
        parts.append(logits.gather(1, target[:, None])[:, 0].double() - log_normaliser(logits))
    return torch.cat(parts)


def log_normaliser(logits: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    """The logarithm of the sum of exp(logit) over the vocabulary, summed in double precision."""
    top = logits.amax(dim=1, keepdim=True)
    return (logits - top).exp_().sum(dim=1, dtype=torch.float64).log_() + top[:, 0].double()
