"""Theorems 4 to 9 on likelihood displacement (Razin et al. 2025), each with both of its sides computed.

They hold for unconstrained features: the unembedding `W` and the state `h` of every context are free parameters, and the mean of
ℓ(log π(y+|x) - log π(y-|x)) over pairs is lowered by gradient flow. A state belongs to its whole context, so that answers share
the states of the prefixes that they share. `rates` are -ℓ' of each pair, positive; at the start of DPO they are β/2.

The derivative by time is computed from the definition alone: the gradient by automatic differentiation, and the derivative of log π
along it in forward mode. The other side is the sum that the theorem states. In a real model states are not free, so that there the
theorems describe what a step would do if they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.models.model import Model
from interp.preferences.pairs import TokenPair
from interp.preferences.states import answer_states

Context = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Features:
    """The parameters of an unconstrained-feature model, in double precision: the unembedding, and a state for each context."""

    unembedding: Float[Tensor, "vocab d_model"]
    states: Mapping[Context, Float[Tensor, " d_model"]]

    def probabilities(self, context: Context) -> Float[Tensor, " vocab"]:
        """The next-token probabilities after a context."""
        return (self.unembedding @ self.state(context)).softmax(dim=0)

    def state(self, context: Context) -> Float[Tensor, " d_model"]:
        """The state of a context; raises `UserError` where there is none."""
        if context not in self.states:
            raise UserError(f"there is no state of the context {context}", "give the pair or the answer that it belongs to to features_of")
        return self.states[context]

    def path(self, prompt: Context, answer: Context) -> list[Context]:
        """The contexts in which the tokens of an answer are predicted."""
        return [prompt + answer[:place] for place in range(len(answer))]


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The derivative by time of a log-probability, in nats, and the terms whose sum it is by a theorem."""

    derivative: float
    terms: dict[str, float]

    @property
    def predicted(self) -> float:
        """The sum of the terms."""
        return sum(self.terms.values())


@dataclass(frozen=True, eq=False)
class TokenRates:
    """The derivative by time of the log-probability of every token after a prompt, and the theorem's terms.

    The sum of the terms, `predicted`, holds for tokens that are neither the chosen nor the rejected one.

    Attributes:
        alignment: the rate times <W_z, W_chosen - W_rejected>.
        pull: what other prompts add to the tokens that they prefer or reject; zero for one prompt.
        constant: the same for every token.
    """

    derivative: Float[Tensor, " vocab"]
    alignment: Float[Tensor, " vocab"]
    pull: Float[Tensor, " vocab"]
    constant: float

    @property
    def predicted(self) -> Float[Tensor, " vocab"]:
        """The sum of the terms."""
        return self.alignment + self.pull + self.constant


def features_of(model: Model, pairs: Sequence[TokenPair]) -> Features:
    """A model's unembedding and its states at the contexts of these pairs, taken as free parameters. Raises as `answer_states`."""
    states: dict[Context, Tensor] = {}
    for each in answer_states(model, pairs):
        pair = pairs[each.number]
        for answer, hidden in ((pair.rejected, each.rejected), (pair.chosen, each.chosen)):
            states |= {pair.prompt + answer[:place]: state.double() for place, state in enumerate(hidden)}
    return Features(model.unembedding.double(), states)


def derivative(
    features: Features, prompt: Context, answer: Context, pairs: Sequence[TokenPair], rates: Sequence[float] | None = None
) -> float:
    """The derivative by time of log π(answer | prompt) under gradient flow on these pairs, from the definition.

    Args:
        rates: -ℓ' of each pair; 1 by default.
    """
    path = features.path(prompt, answer)
    logits, moved = _flow(features, path, pairs, rates)
    change = torch.func.jvp(lambda values: values.log_softmax(dim=1), (logits,), (moved,))[1]
    return float(change[range(len(answer)), list(answer)].sum())


def single_token(features: Features, pair: TokenPair, rate: float = 1.0) -> Decomposition:
    """Theorem 4: the derivative of log π(chosen) for one pair of single tokens."""
    _check_single([pair])
    return Decomposition(
        derivative(features, pair.prompt, pair.chosen, [pair], [rate]),
        {name: rate * value for name, value in _own_terms(features, pair).items()},
    )


def other_tokens(features: Features, pair: TokenPair, rate: float = 1.0) -> TokenRates:
    """Theorem 5: the derivative of log π(z) for every other token z, for one pair of single tokens."""
    return other_tokens_of_several(features, [pair], 0, [rate])


def many_tokens(features: Features, pair: TokenPair, rate: float = 1.0) -> Decomposition:
    """Theorem 6: the derivative of log π(chosen) for one pair of answers that differ in their first token."""
    _check_first(pair)
    w, prompt, chosen, rejected = features.unembedding, pair.prompt, pair.chosen, pair.rejected
    probabilities = features.probabilities(prompt)
    first, second = chosen[0], rejected[0]
    later = [w[token] - features.probabilities(context) @ w for context, token in list(_steps(features, prompt, chosen))[1:]]
    push = (1 - probabilities[first]) * w[first].square().sum() + probabilities[second] * w[second].square().sum()
    terms = {
        "norms": float(push + sum(row.square().sum() for row in later)),
        **_first_token(features, pair),
        "rejected_states": -float(_coefficients(features, prompt, chosen, rejected).sum()),
        "chosen_states": float(_coefficients(features, prompt, chosen, chosen).sum()),
    }
    return Decomposition(derivative(features, prompt, chosen, [pair], [rate]), {name: rate * value for name, value in terms.items()})


def any_answer(features: Features, pair: TokenPair, answer: Context, rate: float = 1.0) -> Decomposition:
    """Theorem 7: the derivative of log π(answer) of any answer to the prompt, for one pair that differs in its first token.

    `shared_prefix` is zero unless the answer begins with the first token of one of the two: states of contexts that they share.
    """
    _check_first(pair)
    w, prompt = features.unembedding, pair.prompt
    difference = w[pair.chosen[0]] - w[pair.rejected[0]]
    shared = [0.0]
    for sign, side in ((1, pair.chosen), (-1, pair.rejected)):
        steps = zip(_steps(features, prompt, answer), _steps(features, prompt, side), strict=False)
        for (context, token), (other, its_token) in list(steps)[1:]:
            if context == other:
                mean = features.probabilities(context) @ w
                shared.append(sign * float((w[token] - mean) @ (w[its_token] - mean)))
    terms = {
        "first_token": float(w[answer[0]] @ difference),
        "constant": -float(features.probabilities(prompt) @ w @ difference),
        "rejected_states": -float(_coefficients(features, prompt, answer, pair.rejected).sum()),
        "chosen_states": float(_coefficients(features, prompt, answer, pair.chosen).sum()),
        "shared_prefix": sum(shared),
    }
    return Decomposition(derivative(features, prompt, answer, [pair], [rate]), {name: rate * value for name, value in terms.items()})


def several_prompts(features: Features, pairs: Sequence[TokenPair], number: int, rates: Sequence[float] | None = None) -> Decomposition:
    """Theorem 8: the derivative of one pair's log π(chosen) where several pairs of single tokens with distinct prompts are trained.

    `other_prompts` is the sum of the rate, the coefficient and <h, h'> over the other prompts; the rest is theorem 4, over their number.
    """
    _check_single(pairs)
    each = _rates(pairs, rates)
    pair, state = pairs[number], features.state(pairs[number].prompt)
    probabilities = features.probabilities(pair.prompt)
    others = []
    for rate, other in zip(each, pairs, strict=True):
        if other is not pair:
            plus, minus = other.chosen[0], other.rejected[0]
            alpha = (pair.chosen[0] == plus) - float(pair.chosen[0] == minus) + probabilities[minus] - probabilities[plus]
            others.append(rate / len(pairs) * float(alpha * (state @ features.state(other.prompt))))
    own = {name: each[number] / len(pairs) * value for name, value in _own_terms(features, pair).items()}
    return Decomposition(derivative(features, pair.prompt, pair.chosen, pairs, each), {**own, "other_prompts": sum(others)})


def other_tokens_of_several(
    features: Features, pairs: Sequence[TokenPair], number: int, rates: Sequence[float] | None = None
) -> TokenRates:
    """Theorem 9: the derivative of log π(z) after one pair's prompt where several pairs of single tokens are trained."""
    _check_single(pairs)
    each = _rates(pairs, rates)
    w, pair = features.unembedding, pairs[number]
    state, probabilities = features.state(pair.prompt), features.probabilities(pair.prompt)
    aligned = each[number] / len(pairs) * (w @ (w[pair.chosen[0]] - w[pair.rejected[0]]))
    pull, constants = torch.zeros_like(aligned), [-float(probabilities @ aligned)]
    for rate, other in zip(each, pairs, strict=True):
        plus, minus = other.chosen[0], other.rejected[0]
        product = rate / len(pairs) * float(state @ features.state(other.prompt))
        constants.append(product * float(probabilities[minus] - probabilities[plus]))
        if other is not pair:
            pull[plus] = pull[plus] + product
            pull[minus] = pull[minus] - product
    logits, moved = _flow(features, [pair.prompt], pairs, each)
    change = torch.func.jvp(lambda values: values.log_softmax(dim=1), (logits,), (moved,))[1]
    return TokenRates(change[0], aligned, pull, sum(constants))


def _flow(features: Features, path: Sequence[Context], pairs: Sequence[TokenPair], rates: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """The logits at these contexts and their derivatives by time under gradient flow on the pairs."""
    sides = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    contexts = list(dict.fromkeys([*path, *(context for prompt, answer in sides for context in features.path(prompt, answer))]))
    place = {context: index for index, context in enumerate(contexts)}
    w = features.unembedding.detach().clone().requires_grad_(True)
    states = torch.stack([features.state(context) for context in contexts]).detach().clone().requires_grad_(True)
    log_probs = (states @ w.T).log_softmax(dim=1)
    gain = torch.zeros((), dtype=w.dtype, device=w.device)
    for rate, pair in zip(_rates(pairs, rates), pairs, strict=True):
        for sign, answer in ((1, pair.chosen), (-1, pair.rejected)):
            rows = [place[context] for context in features.path(pair.prompt, answer)]
            gain = gain + sign * rate / len(pairs) * log_probs[rows, list(answer)].sum()
    w_step, states_step = torch.autograd.grad(gain, (w, states))
    rows = [place[context] for context in path]
    start = (w.detach(), states.detach()[rows])
    moving = torch.func.jvp(lambda weight, hidden: hidden @ weight.T, start, (w_step, states_step[rows]))
    return moving[0], moving[1]


def _own_terms(features: Features, pair: TokenPair) -> dict[str, float]:
    """The terms of theorem 4 at rate one."""
    w, probabilities, state = features.unembedding, features.probabilities(pair.prompt), features.state(pair.prompt)
    first, second = pair.chosen[0], pair.rejected[0]
    share = 1 - probabilities[first] + probabilities[second]
    norms = (1 - probabilities[first]) * w[first].square().sum() + probabilities[second] * w[second].square().sum()
    return {"norms": float(norms + share * state.square().sum()), **_first_token(features, pair)}


def _first_token(features: Features, pair: TokenPair) -> dict[str, float]:
    """The terms of the unembedding at the prompt: of the two tokens' rows, and of all others under their probabilities."""
    w, probabilities = features.unembedding, features.probabilities(pair.prompt)
    first, second = pair.chosen[0], pair.rejected[0]
    share = 1 - probabilities[first] + probabilities[second]
    rest = probabilities.clone()
    rest[[first, second]] = 0
    return {"rejected_row": -float(share * (w[first] @ w[second])), "other_rows": -float(rest @ w @ (w[first] - w[second]))}


def _steps(features: Features, prompt: Context, answer: Context) -> zip[tuple[Context, int]]:
    """The contexts of an answer's tokens with the tokens."""
    return zip(features.path(prompt, answer), answer, strict=True)


def _coefficients(features: Features, prompt: Context, first: Context, second: Context) -> Float[Tensor, "first second"]:
    """The products of prediction errors and of states between the tokens of two answers."""
    parts = []
    for answer in (first, second):
        path = features.path(prompt, answer)
        errors = torch.stack([-features.probabilities(context) for context in path])
        errors[range(len(answer)), list(answer)] += 1
        parts.append((errors, torch.stack([features.state(context) for context in path])))
    (errors, states), (other_errors, other_states) = parts
    return (errors @ other_errors.T) * (states @ other_states.T)


def _rates(pairs: Sequence[TokenPair], rates: Sequence[float] | None) -> list[float]:
    if rates is not None and len(rates) != len(pairs):
        raise UserError(f"{len(rates)} rates were given for {len(pairs)} pairs", "give one for each pair")
    return [1.0] * len(pairs) if rates is None else list(rates)


def _check_single(pairs: Sequence[TokenPair]) -> None:
    if any(len(pair.chosen) != 1 or len(pair.rejected) != 1 or pair.chosen == pair.rejected for pair in pairs):
        raise UserError("the theorem is about answers of one token that differ", "use many_tokens or any_answer for longer ones")
    if len({pair.prompt for pair in pairs}) < len(pairs):
        raise UserError("two pairs have the same prompt, and the theorem is about distinct ones", "give pairs of distinct prompts")


def _check_first(pair: TokenPair) -> None:
    if pair.chosen[0] == pair.rejected[0]:
        raise UserError("both answers begin with the same token, and the theorem is about answers that do not", "leave the pair out")
