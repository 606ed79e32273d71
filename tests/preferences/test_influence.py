"""First-order predictors: known digits, actual steps of DPO, conservation, a planted file, and the model that is left as it was."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp import Edit, Model, UserError, editing
from interp.preferences import head_influence
from interp.preferences.head_influence import head_scores
from interp.preferences.influence import gradient_scores
from interp.preferences.pairs import TokenPair
from interp.preferences.states import answer_states
from tests.preferences.reference import FIRST, SECOND, known_model, plain_log_prob, random_pairs
from tests.preferences.test_similarity import head_gradient

PAIRS = random_pairs(11, 5, seed=3, longest=4)
BETA, RATE = 0.1, 1e-3


@pytest.fixture(scope="module")
def known(tokenizer: PreTrainedTokenizerBase) -> Model:
    return known_model(tokenizer)


@pytest.mark.oracle
def test_known_digits(known: Model) -> None:
    scores = gradient_scores(known, [FIRST, SECOND])
    np.testing.assert_allclose(scores.own, [50.9197721939, 45.6487322254], atol=1e-8)
    np.testing.assert_allclose(scores.total, [50.8798890297, 42.0485368310], atol=1e-8)
    np.testing.assert_allclose(scores.influence, [47.3195767995, 45.6088490612], atol=1e-8)
    np.testing.assert_allclose(scores.own_sign, [110.5500562152, 115.5468606677], atol=1e-8)
    np.testing.assert_allclose(scores.grad_norm_chosen[0] ** 2, 69.0040533637, atol=1e-8)
    np.testing.assert_allclose(scores.grad_norm_rejected[0] ** 2, 44.3629541678, atol=1e-8)
    np.testing.assert_allclose(scores.entanglement[0] * 69.0040533637, 18.0842811698, atol=1e-8)
    assert scores.total.sum() == pytest.approx(92.92842586071, abs=1e-8)
    assert scores.influence.sum() == pytest.approx(92.92842586071, abs=1e-8)
    without_end = gradient_scores(known, [TokenPair(FIRST.prompt, FIRST.chosen[:-1], FIRST.rejected[:-1])])
    assert without_end.grad_norm_chosen[0] ** 2 == pytest.approx(59.6133801789, abs=1e-8)
    assert without_end.entanglement[0] * 59.6133801789 == pytest.approx(1.7246765719, abs=1e-8)
    # Of one pair alone, own, total and influence are one number.
    assert without_end.own[0] == pytest.approx(without_end.total[0], rel=1e-12)
    assert without_end.own[0] == pytest.approx(without_end.influence[0], rel=1e-12)


def dpo_gradient(hf: PreTrainedModel, pairs: Sequence[TokenPair]) -> list[Tensor]:
    """The gradient of the DPO loss of these pairs at its start, where the policy is the reference."""
    losses = []
    for pair in pairs:
        margin = plain_log_prob(hf, pair.prompt, pair.chosen).sum() - plain_log_prob(hf, pair.prompt, pair.rejected).sum()
        losses.append(-torch.nn.functional.logsigmoid(BETA * (margin - margin.detach())))
    return list(torch.autograd.grad(torch.stack(losses).mean(), list(hf.parameters())))


def change(hf: PreTrainedModel, step: list[Tensor]) -> np.ndarray:
    """By how much the chosen answers' log-probabilities rise with a step of the weights, by the mean of a step forth and one back."""
    ends = []
    for sign in (1, -2):
        with torch.no_grad():
            torch._foreach_add_(list(hf.parameters()), step, alpha=sign)
            ends.append(np.array([float(plain_log_prob(hf, pair.prompt, pair.chosen).sum()) for pair in PAIRS]))
    with torch.no_grad():
        torch._foreach_add_(list(hf.parameters()), step)
    return (ends[0] - ends[1]) / 2


def sign_step(step: list[Tensor]) -> list[Tensor]:
    """The signs of a step, times 1e-6; rounding has no sign."""
    largest = max(float(part.abs().max()) for part in step)
    return [1e-6 * part.sign() * (part.abs() > 1e-13 * largest) for part in step]


@pytest.mark.oracle
def test_single_tokens_move_no_row_of_the_unembedding_but_their_own(llama: Model) -> None:
    """Where the rows of all other tokens cancel, their signs must not count: the answer's own rows and the layers remain."""
    pair, other = TokenPair((9, 8), (3,), (5,)), TokenPair((7, 6), (4,), (2,))
    single, double = (gradient_scores(each, [pair, other]) for each in (llama, Model(llama.plain_copy().double(), llama.tokenizer, "d")))
    np.testing.assert_allclose(single.own_sign, double.own_sign, rtol=1e-3)
    np.testing.assert_allclose(single.total_sign, double.total_sign, rtol=1e-3)
    np.testing.assert_allclose(single.influence_sign, double.influence_sign, rtol=1e-3)


@pytest.mark.oracle
def test_actual_steps_of_dpo_change_the_chosen_answers_as_predicted(known: Model) -> None:
    scores, hf = gradient_scores(known, PAIRS), known.plain_copy().requires_grad_(True)
    step = [-RATE * slope for slope in dpo_gradient(hf, PAIRS)]
    np.testing.assert_allclose(change(hf, step), RATE * BETA / 2 / len(PAIRS) * scores.total, rtol=1e-5)
    signs = sign_step(step)
    np.testing.assert_allclose(change(hf, signs), 1e-6 * scores.total_sign, rtol=1e-5)
    for number, pair in enumerate(PAIRS):
        step = [-RATE * slope for slope in dpo_gradient(hf, [pair])]
        rises, signs = change(hf, step), change(hf, sign_step(step))
        assert rises[number] == pytest.approx(RATE * BETA / 2 * scores.own[number], rel=1e-5)
        assert rises.sum() == pytest.approx(RATE * BETA / 2 * scores.influence[number], rel=1e-5)
        assert signs[number] == pytest.approx(1e-6 * scores.own_sign[number], rel=1e-5)
        assert signs.sum() == pytest.approx(1e-6 * scores.influence_sign[number], rel=1e-5)
        # Above one exactly where the pair displaces itself.
        assert (scores.entanglement[number] > 1) == (scores.own[number] < 0)


@pytest.mark.oracle
def test_totals_and_influences_have_one_sum_in_single_precision_too(model: Model) -> None:
    pairs = random_pairs(300, 8)
    scores, head = gradient_scores(model, pairs), head_scores(model, pairs)
    assert scores.total.sum() == pytest.approx(scores.influence.sum(), rel=1e-5)
    assert head.total.sum() == pytest.approx(head.influence.sum(), rel=1e-4)
    assert np.corrcoef(scores.total, scores.influence)[0, 1] < 0.999
    double = gradient_scores(Model(model.plain_copy().double(), model.tokenizer, "double"), pairs)
    np.testing.assert_allclose(scores.total, double.total, rtol=1e-3, atol=1e-3 * np.abs(double.total).max())
    np.testing.assert_allclose(scores.own, double.own, rtol=1e-3)
    np.testing.assert_array_equal(scores.harm, -scores.influence)


@pytest.mark.oracle
def test_head_scores_are_products_of_the_gradients_of_the_unembedding(known: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients: dict[int, tuple[Tensor, Tensor]] = {}
    for states in answer_states(known, PAIRS):
        pair = PAIRS[states.number]
        sides = ((states.chosen, pair.chosen), (states.rejected, pair.rejected))
        first, second = (head_gradient(known, hidden, answer) for hidden, answer in sides)
        gradients[states.number] = first, second
    chosen = sum(gradients[number][0] for number in gradients)
    both = chosen - sum(gradients[number][1] for number in gradients)
    scores = head_scores(known, PAIRS)
    for number in range(len(PAIRS)):
        first, second = gradients[number]
        assert scores.total[number] == pytest.approx(float((first * both).sum()), rel=1e-9)
        assert scores.influence[number] == pytest.approx(float((chosen * (first - second)).sum()), rel=1e-9)
    monkeypatch.setattr(head_influence, "STORED_BYTES", 0)
    again = head_scores(known, PAIRS)
    np.testing.assert_allclose(again.total, scores.total, rtol=1e-12)
    np.testing.assert_allclose(again.influence, scores.influence, rtol=1e-12)


def planted_file(seed: int) -> tuple[list[TokenPair], np.ndarray]:
    """12 pairs that choose words of one kind over a second, 4 that choose a third kind over the first; and which the 4 are."""
    draw = random.Random(seed)

    def row(start: int) -> tuple[int, ...]:
        return tuple(draw.randrange(start, start + 8) for _ in range(3))

    kinds = [(100, 200)] * 12 + [(250, 100)] * 4
    draw.shuffle(kinds)
    return [TokenPair(row(10), row(first), row(second)) for first, second in kinds], np.array([first == 250 for first, _ in kinds])


def with_sides_shuffled(pairs: Sequence[TokenPair], seed: int) -> list[TokenPair]:
    draw = random.Random(seed)
    return [pair if draw.random() < 0.5 else TokenPair(pair.prompt, pair.rejected, pair.chosen) for pair in pairs]


def test_influence_puts_planted_pairs_that_displace_others_first(gpt2: Model) -> None:
    pairs, displaces = planted_file(0)
    scores = gradient_scores(gpt2, pairs)
    assert roc_auc_score(displaces, scores.harm) > 0.9
    # What a pair does to itself does not tell them apart.
    assert (scores.own > 0).all()
    shuffled = [roc_auc_score(displaces, gradient_scores(gpt2, with_sides_shuffled(pairs, seed)).harm) for seed in range(4)]
    assert 0.3 < np.mean(shuffled) < 0.7


def test_the_model_is_left_as_it_was(fresh_gpt2: Model) -> None:
    hf = fresh_gpt2.hf
    parameters = dict(hf.named_parameters())
    parameters["transformer.wte.weight"].requires_grad_(True).grad = torch.ones_like(parameters["transformer.wte.weight"])

    def state() -> tuple:
        hooks = [(name, len(part._forward_hooks), len(part._forward_pre_hooks)) for name, part in hf.named_modules()]
        flags = [(name, value.requires_grad, None if value.grad is None else float(value.grad.sum())) for name, value in parameters.items()]
        return hooks, flags, hf.training, hf.config.to_dict(), torch.is_grad_enabled()

    before, weights = state(), {name: value.detach().clone() for name, value in parameters.items()}
    calls: list[tuple[int, int]] = []
    gradient_scores(fresh_gpt2, random_pairs(300, 2), progress=lambda done, total: calls.append((done, total)))
    head_scores(fresh_gpt2, random_pairs(300, 2))
    assert state() == before
    assert all(torch.equal(weights[name], value) for name, value in parameters.items())
    assert dict(hf.named_parameters()).keys() == parameters.keys()
    assert all(value is parameters[name] for name, value in hf.named_parameters())
    assert calls == [(done, 8) for done in range(1, 9)]


def test_bad_input_is_an_error(gpt2: Model) -> None:
    with editing(gpt2, [Edit.scale_keys([(0, 1)], 2.0)]), pytest.raises(UserError, match="is edited"):
        gradient_scores(gpt2, PAIRS)
    with pytest.raises(UserError, match="token ids"):
        gradient_scores(gpt2, [TokenPair((1,), (2,), (gpt2.d_vocab,))])
    assert gradient_scores(gpt2, []).own.shape == head_scores(gpt2, []).total.shape == (0,)
