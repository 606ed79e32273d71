"""How alike the hidden states of a pair's answers are: CHES, ln-CHES, and α-CHES, which is CHES with its true coefficients.

Razin et al. 2025 (likelihood displacement) score a pair by its centered hidden embedding similarity. With `H` the states that predict
the tokens of an answer, one row per token (`interp.preferences.states`), and `S` the sum of its rows:

    CHES    = <S+, S- - S+>
    ln-CHES = <S+, S-> / (n+ n-) - |S+|² / n+²
    α-CHES  = sum of A- ∘ (H+ H-ᵀ) - sum of A+ ∘ (H+ H+ᵀ)

`A- = R+ R-ᵀ` and `A+ = R+ R+ᵀ`, where a row of `R` is the derivative of log π(token) by the logits, the token's indicator minus the
model's probabilities. CHES sets every coefficient to one. With `G = Rᵀ H`, the gradient of log π(answer) by the unembedding,
α-CHES = <G+, G-> - |G+|². A high score means that a step that raises chosen and lowers rejected is expected to lower chosen.

An end token counts where the pair has one. Where a model caps its logits, `H` is still the input of the unembedding, and `R` the
derivative by the logits before the cap.
"""

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
from interp.preferences.logprobs import LogProbs, log_normaliser, summed
from interp.preferences.pairs import TokenPair
from interp.preferences.states import AnswerStates, answer_states, check_pairs, measured_model, states_by

# Columns of the vocabulary over which products are summed in single precision before they are added in double.
COLUMNS = 8192
SAME_STATES = "the answers differ in no token but their last, so that both are read off the same states"


@dataclass(frozen=True, eq=False)
class Ches:
    """Similarity of hidden states, a value per pair.

    Attributes:
        ches, ln_ches: NaN where not applicable.
        last_hidden: the inner product of the states that predict the last tokens of the two answers; NaN where not applicable.
        not_applicable: why the three are not defined for a pair, such as one of two single tokens; empty where they are.
    """

    ches: Float[np.ndarray, " pair"]
    ln_ches: Float[np.ndarray, " pair"]
    last_hidden: Float[np.ndarray, " pair"]
    not_applicable: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Similarity(Ches):
    """`Ches`, and what needs the logits.

    Attributes:
        log_probs: from the same forward.
        alpha_ches: defined for every pair.
        share_alpha_positive: the share of the coefficients in A- above zero.
        share_hidden_positive: the share of the inner products in H+ H-ᵀ, of chosen with rejected states, above zero.
        chosen_negative, rejected_negative: by token of the answer, its part of the negative term, the sum of A- ∘ (H+ H-ᵀ): the sums
            of rows, and the sums of columns. Either adds up to the term.
    """

    log_probs: LogProbs
    alpha_ches: Float[np.ndarray, " pair"]
    share_alpha_positive: Float[np.ndarray, " pair"]
    share_hidden_positive: Float[np.ndarray, " pair"]
    chosen_negative: tuple[Float[np.ndarray, " _"], ...]
    rejected_negative: tuple[Float[np.ndarray, " _"], ...]


def ches_scores(model: Model, pairs: Sequence[TokenPair], *, batch_tokens: int | None = None) -> Ches:
    """CHES, ln-CHES and the inner product of last states of each pair, by a forward without unembedding.

    Raises `UserError` as `answer_states`, whose `batch_tokens` this is.
    """
    scores = np.full((3, len(pairs)), np.nan)
    reasons = tuple(map(reason_not_applicable, pairs))
    for states in answer_states(model, pairs, batch_tokens=batch_tokens):
        if not reasons[states.number]:
            scores[:, states.number] = _scores(states)
    return Ches(scores[0], scores[1], scores[2], reasons)


def similarity(
    model: Model, pairs: Sequence[TokenPair], *, batch_tokens: int | None = None, keep: list[AnswerStates] | None = None
) -> Similarity:
    """Every measure of similarity that a forward gives, with the log-probabilities of both answers.

    Args:
        keep: a list to which the states of each pair are added.

    The forward is in single precision, or in double for a model in double; sums are in double. Raises `UserError` as `answer_states`.
    """
    check_pairs(model, pairs)
    scores, reasons = np.full((6, len(pairs)), np.nan), tuple(map(reason_not_applicable, pairs))
    tokens, negative = ([(np.empty(0), np.empty(0))] * len(pairs) for _ in range(2))
    if pairs:
        hf = measured_model(model)
        for states in states_by(hf, model, pairs, batch_tokens=batch_tokens):
            number, pair = states.number, pairs[states.number]
            if keep is not None:
                keep.append(states)
            if not reasons[number]:
                scores[:3, number] = _scores(states)
            alpha = token_alpha(hf, states, pair)
            products = hidden_products(states)
            scores[3, number] = alpha_ches(alpha, products)
            scores[4, number] = float((alpha.negative > 0).double().mean())
            scores[5, number] = float((products[0] > 0).double().mean())
            terms = alpha.negative * products[0]
            tokens[number] = alpha.chosen, alpha.rejected
            negative[number] = terms.sum(dim=1).numpy(), terms.sum(dim=0).numpy()
    chosen, rejected = (tuple(pair[side] for pair in negative) for side in (0, 1))
    return Similarity(scores[0], scores[1], scores[2], reasons, summed(tokens), scores[3], scores[4], scores[5], chosen, rejected)


def reason_not_applicable(pair: TokenPair) -> str:
    """Why CHES says nothing about a pair: its answers are read off the same states, so that it is zero by definition. Empty otherwise.

    So it is for two answers of one token each, for answers that differ in their last token alone, and for equal ones.
    """
    return SAME_STATES if pair.chosen[:-1] == pair.rejected[:-1] else ""


def ches(chosen: Float[Tensor, "chosen d_model"], rejected: Float[Tensor, "rejected d_model"]) -> float:
    """<S+, S- - S+> of the states of two answers, where S is the sum of an answer's states; summed in double precision."""
    first, second = chosen.double().sum(dim=0), rejected.double().sum(dim=0)
    return float(first @ (second - first))


def ln_ches(chosen: Float[Tensor, "chosen d_model"], rejected: Float[Tensor, "rejected d_model"]) -> float:
    """Length-normalised CHES: <M+, M- - M+> with M the mean of an answer's states."""
    first, second = chosen.double().mean(dim=0), rejected.double().mean(dim=0)
    return float(first @ (second - first))


def _scores(states: AnswerStates) -> tuple[float, float, float]:
    last = states.chosen[-1].double() @ states.rejected[-1].double()
    return ches(states.chosen, states.rejected), ln_ches(states.chosen, states.rejected), float(last)


@dataclass(frozen=True, eq=False)
class TokenAlpha:
    """The coefficients between the tokens of two answers, in double precision on the CPU, and the tokens' log-probabilities.

    Attributes:
        negative: A-, between chosen and rejected tokens.
        positive: A+, among chosen tokens.
        chosen, rejected: log-probabilities in nats.
    """

    negative: Float[Tensor, "chosen rejected"]
    positive: Float[Tensor, "chosen chosen"]
    chosen: Float[np.ndarray, " chosen"]
    rejected: Float[np.ndarray, " rejected"]


@torch.no_grad()
def token_alpha(hf: PreTrainedModel, states: AnswerStates, pair: TokenPair) -> TokenAlpha:
    """The coefficients of a pair's tokens, from the states that predict them."""
    logits = head_logits(hf, torch.cat([states.chosen, states.rejected]))
    targets = torch.tensor([*pair.chosen, *pair.rejected], device=logits.device)
    normaliser, count = log_normaliser(logits), len(pair.chosen)
    values = logits.gather(1, targets[:, None])[:, 0].double() - normaliser
    products = torch.zeros((count, len(targets)), dtype=torch.float64, device=logits.device)
    errors = prediction_errors(hf, logits, targets)
    for part in errors.split(COLUMNS, dim=1):
        products += (part[:count] @ part.T).double()
    products, values = products.cpu(), values.cpu()
    chosen, rejected = values[:count].numpy(), values[count:].numpy()
    return TokenAlpha(products[:, count:], products[:, :count], chosen, rejected)


def prediction_errors(hf: PreTrainedModel, logits: Float[Tensor, "token vocab"], targets: Tensor) -> Float[Tensor, "token vocab"]:
    """`R`: the derivative of each target's log-probability by the logits (before a soft cap)."""
    errors = logits.softmax(dim=1).neg_()
    errors[torch.arange(len(targets), device=errors.device), targets] += 1
    cap = getattr(hf.config, "final_logit_softcapping", None)
    return errors * (1 - (logits / cap).square()) if cap else errors


def hidden_products(states: AnswerStates) -> tuple[Float[Tensor, "chosen rejected"], Float[Tensor, "chosen chosen"]]:
    """The inner products of states, in double precision on the CPU: of chosen with rejected ones, and of chosen ones among themselves."""
    chosen, rejected = states.chosen.cpu().double(), states.rejected.cpu().double()
    return chosen @ rejected.T, chosen @ chosen.T


def alpha_ches(alpha: TokenAlpha, products: tuple[Float[Tensor, "chosen rejected"], Float[Tensor, "chosen chosen"]]) -> float:
    """The sum of A- ∘ (H+ H-ᵀ) less that of A+ ∘ (H+ H+ᵀ)."""
    return float((alpha.negative * products[0]).sum() - (alpha.positive * products[1]).sum())
