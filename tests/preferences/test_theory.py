"""Theorems 4 to 9: the derivative from the definition against the sum of the terms, in random unconstrained-feature models."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from interp import Model, UserError
from interp.preferences import theory
from interp.preferences.pairs import TokenPair
from interp.preferences.similarity import similarity
from interp.preferences.theory import Features

VOCABULARY, WIDTH, DRAWS = 11, 5, 20
PROMPT = (0,)


def draw_features(seed: int, sequences: Iterable[tuple[int, ...]]) -> Features:
    noise = torch.Generator().manual_seed(seed)
    contexts = dict.fromkeys(row[:length] for row in sequences for length in range(1, len(row)))
    states = {context: torch.randn(WIDTH, generator=noise, dtype=torch.float64) for context in contexts}
    return Features(torch.randn(VOCABULARY, WIDTH, generator=noise, dtype=torch.float64), states)


def tokens(noise: torch.Generator, *, first: int | None = None, length: int = 1) -> tuple[int, ...]:
    row = torch.randint(1, VOCABULARY, (length,), generator=noise).tolist()
    return (row[0] if first is None else first, *row[1:])


@pytest.mark.oracle
def test_the_derivative_is_that_of_small_steps() -> None:
    pair = TokenPair(PROMPT, (3, 1), (4, 2, 2))
    features = draw_features(1, [PROMPT + pair.chosen, PROMPT + pair.rejected])

    def log_prob(w: torch.Tensor, states: dict, answer: tuple[int, ...]) -> torch.Tensor:
        path = [PROMPT + answer[:place] for place in range(len(answer))]
        return sum((w @ states[context]).log_softmax(dim=0)[token] for context, token in zip(path, answer, strict=True))

    leaves = [features.unembedding.clone().requires_grad_(), *(s.clone().requires_grad_() for s in features.states.values())]
    named = dict(zip(features.states, leaves[1:], strict=True))
    gain = 0.3 * (log_prob(leaves[0], named, pair.chosen) - log_prob(leaves[0], named, pair.rejected))
    slopes = torch.autograd.grad(gain, leaves)
    ends = []
    with torch.no_grad():
        for step in (1e-5, -1e-5):
            moved = [leaf + step * slope for leaf, slope in zip(leaves, slopes, strict=True)]
            ends.append(float(log_prob(moved[0], dict(zip(named, moved[1:], strict=True)), pair.chosen)))
    assert theory.derivative(features, PROMPT, pair.chosen, [pair], [0.3]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.oracle
def test_single_tokens() -> None:
    for seed in range(DRAWS):
        noise = torch.Generator().manual_seed(seed)
        first, second = (torch.randperm(VOCABULARY - 1, generator=noise)[:2] + 1).tolist()
        pair = TokenPair(PROMPT, (first,), (second,))
        features = draw_features(seed, [PROMPT + pair.chosen])
        fourth = theory.single_token(features, pair, 0.7)
        assert fourth.predicted == pytest.approx(fourth.derivative, abs=1e-10)
        assert fourth.terms["norms"] >= 0
        fifth = theory.other_tokens(features, pair, 0.7)
        others = [token for token in range(VOCABULARY) if token not in (first, second)]
        torch.testing.assert_close(fifth.predicted[others], fifth.derivative[others], atol=1e-10, rtol=0)
        assert fifth.derivative[first].item() == pytest.approx(fourth.derivative, abs=1e-12)
        # The ranking of the others is that by alignment alone.
        assert fifth.derivative[others].argsort().tolist() == fifth.alignment[others].argsort().tolist()
        assert not fifth.pull.any()


@pytest.mark.oracle
def test_answers_of_several_tokens() -> None:
    for seed in range(DRAWS):
        noise = torch.Generator().manual_seed(seed)
        pair = TokenPair(PROMPT, tokens(noise, first=3, length=4), tokens(noise, first=5, length=3))
        # An answer of its own, and one that begins as the chosen one does and then leaves it.
        apart, shared = tokens(noise, first=7, length=3), (*pair.chosen[:2], *tokens(noise, length=2))
        features = draw_features(seed, [PROMPT + answer for answer in (pair.chosen, pair.rejected, apart, shared)])
        sixth = theory.many_tokens(features, pair, 0.7)
        assert sixth.predicted == pytest.approx(sixth.derivative, abs=1e-10)
        for answer in (apart, shared, pair.chosen, pair.rejected):
            seventh = theory.any_answer(features, pair, answer, 0.7)
            assert seventh.predicted == pytest.approx(seventh.derivative, abs=1e-10)
            assert (seventh.terms["shared_prefix"] == 0) == (answer == apart)
        assert theory.any_answer(features, pair, pair.chosen, 0.7).predicted == pytest.approx(sixth.predicted, abs=1e-10)


@pytest.mark.oracle
def test_several_prompts() -> None:
    for seed in range(DRAWS):
        noise = torch.Generator().manual_seed(seed)
        pairs = []
        for prompt in range(4):
            first, second = (torch.randperm(VOCABULARY - 1, generator=noise)[:2] + 1).tolist()
            pairs.append(TokenPair((prompt,), (first,), (second,)))
        features = draw_features(seed, [pair.prompt + pair.chosen for pair in pairs])
        rates = torch.rand(4, generator=noise).tolist()
        for number, pair in enumerate(pairs):
            eighth = theory.several_prompts(features, pairs, number, rates)
            assert eighth.predicted == pytest.approx(eighth.derivative, abs=1e-10)
            ninth = theory.other_tokens_of_several(features, pairs, number, rates)
            others = [token for token in range(VOCABULARY) if token not in (pair.chosen[0], pair.rejected[0])]
            torch.testing.assert_close(ninth.predicted[others], ninth.derivative[others], atol=1e-10, rtol=0)
    # A pair that contradicts another lowers its chosen answer where their states are alike.
    pairs = [TokenPair((0,), (3,), (4,)), TokenPair((1,), (4,), (3,))]
    features = draw_features(0, [(0, 3), (1, 3)])
    alike = Features(features.unembedding, {(0,): features.states[(0,)], (1,): features.states[(0,)]})
    assert theory.several_prompts(alike, pairs, 0).terms["other_prompts"] < 0


@pytest.mark.oracle
def test_in_a_model_the_states_terms_are_alpha_ches(gpt2: Model) -> None:
    pair = TokenPair((9, 8), (3, 1, 7), (4, 2))
    terms = theory.many_tokens(theory.features_of(gpt2, [pair]), pair).terms
    alpha = similarity(gpt2, [pair]).alpha_ches[0]
    assert terms["rejected_states"] + terms["chosen_states"] == pytest.approx(-alpha, rel=1e-4)


def test_what_the_theorems_are_not_about_is_an_error() -> None:
    features = draw_features(0, [(0, 3, 4), (0, 3, 5)])
    with pytest.raises(UserError, match="answers of one token"):
        theory.single_token(features, TokenPair(PROMPT, (3, 4), (5,)))
    with pytest.raises(UserError, match="same prompt"):
        theory.several_prompts(features, [TokenPair(PROMPT, (3,), (4,)), TokenPair(PROMPT, (5,), (4,))], 0)
    with pytest.raises(UserError, match="begin with the same token"):
        theory.many_tokens(features, TokenPair(PROMPT, (3, 4), (3, 5)))
    with pytest.raises(UserError, match="no state of the context"):
        theory.single_token(features, TokenPair((9,), (3,), (4,)))
    with pytest.raises(UserError, match="2 rates"):
        theory.derivative(features, PROMPT, (3,), [TokenPair(PROMPT, (3,), (4,))], [1.0, 2.0])
