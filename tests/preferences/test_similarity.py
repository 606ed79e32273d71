"""CHES and its relatives: known digits, the gradient of the unembedding as referee, invariances, and wrong variants."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from interp import Model, UserError
from interp.models.tokens import pad
from interp.models.unembed import head_logits
from interp.preferences.logprobs import log_probs
from interp.preferences.pairs import TokenPair
from interp.preferences.similarity import Similarity, ches, ches_scores, ln_ches, similarity
from interp.preferences.states import answer_states
from tests.models.families import Family
from tests.preferences.reference import FIRST, SECOND, known_model, plain_states, random_pairs

WITHOUT_END = TokenPair(FIRST.prompt, FIRST.chosen[:-1], FIRST.rejected[:-1])
PAIRS = random_pairs(300, 12)


@pytest.fixture(scope="module")
def known(tokenizer: PreTrainedTokenizerBase) -> Model:
    return known_model(tokenizer)


def head_gradient(model: Model, states: torch.Tensor, answer: tuple[int, ...]) -> torch.Tensor:
    """The gradient of log π(answer) by the unembedding alone, at fixed states."""
    weight = model.hf.get_output_embeddings().weight.detach().clone().requires_grad_(True)
    logits = states @ weight.T
    cap = getattr(model.hf.config, "final_logit_softcapping", None)
    logits = cap * torch.tanh(logits / cap) if cap else logits
    logits.log_softmax(dim=-1)[range(len(answer)), list(answer)].sum().backward()
    return weight.grad


@pytest.mark.oracle
def test_integers() -> None:
    chosen, rejected = torch.tensor([[1.0, 0, 2], [0, 1, 1], [2, 1, 0]]), torch.tensor([[1.0, 0, 2], [1, 1, 1]])
    assert ches(chosen, rejected) == -5.0
    assert ln_ches(chosen, rejected) == pytest.approx(7 / 18, abs=1e-15)
    assert ches(chosen[:1], rejected[:1]) == ln_ches(chosen[:1], rejected[:1]) == 0.0


@pytest.mark.oracle
def test_the_known_model_is_the_known_one(known: Model) -> None:
    parameters = list(known.hf.parameters())
    assert len(parameters) == 28
    assert parameters[0].flatten()[:4].tolist() == [-0.375, -0.125, 0.25, -0.0625]
    assert parameters[26].tolist()[:4] == [0.8125, 0.9375, 1.125, 0.96875]
    (states,) = answer_states(known, [TokenPair((1, 4, 2), (5,), (7,))])
    expected = [-1.496359753229, -0.510205932612, 0.231427384939, 0.582614652965, 1.725095918864, 0.581540827732, 0.263224939100,
                0.258878534175]  # fmt: skip
    np.testing.assert_allclose(states.chosen[0], expected, atol=1e-11)
    logits = [-0.048637552081, 0.137798793371, -0.089316609004, -0.538441976520, -0.088993294045, -0.736833995527, -0.037216915923,
              0.780030596220, -0.559741086905, 0.308316897821, -1.016299856251]  # fmt: skip
    np.testing.assert_allclose(head_logits(known.hf, states.chosen)[0].detach(), logits, atol=1e-11)


@pytest.mark.oracle
def test_known_digits(known: Model) -> None:
    measured = similarity(known, [FIRST, SECOND, WITHOUT_END])
    np.testing.assert_allclose(measured.ches, [-61.70140208422, 10.419911598763, -48.502922856192], atol=1e-8)
    np.testing.assert_allclose(measured.ln_ches, [-0.001994131831, -0.553475886584, 0.039978814727], atol=1e-8)
    np.testing.assert_allclose(measured.alpha_ches[[0, 2]], [-30.961752840139, -30.981103334239], atol=1e-8)
    np.testing.assert_allclose(measured.log_probs.chosen[:2], [-13.433889592738, -7.051958331718], atol=1e-8)
    states = next(iter(answer_states(known, [FIRST])))
    total = [-7.811298581882, -1.888433617969, 0.329437779625, 2.570539730175, 8.191278631037, 2.992185364420, 1.956251089119,
             1.732863888774]  # fmt: skip
    np.testing.assert_allclose(states.chosen.sum(dim=0), total, atol=1e-8)
    assert measured.not_applicable == ("", "", "")


def test_wrong_states_give_the_wrong_digits(known: Model) -> None:
    """Each known mistake has a known result of its own, so that none of them can pass for the right one."""
    hf, score = known.hf, similarity(known, [FIRST]).ches[0]
    residuals = []
    hook = hf.transformer.ln_f.register_forward_pre_hook(lambda module, args: residuals.append(args[0][0]))
    try:
        for answer in (FIRST.chosen, FIRST.rejected):
            plain_states(hf, FIRST.prompt, answer)
    finally:
        hook.remove()
    before_norm = ches(residuals[0][2:-1], residuals[1][2:-1])
    assert before_norm == pytest.approx(-909.941358752830, abs=1e-8)
    # Left-padded without position ids.
    ids = torch.tensor([[*FIRST.prompt, *FIRST.chosen], [0, 0, *FIRST.prompt, *FIRST.rejected]])
    mask = torch.tensor([[1] * 8, [0, 0, *[1] * 6]])
    with torch.no_grad():
        states = hf.transformer(input_ids=ids, attention_mask=mask, position_ids=torch.arange(8)[None]).last_hidden_state
    assert ches(states[0, 2:-1], states[1, 4:-1]) == pytest.approx(-61.250962426068, abs=1e-8)
    # Padding summed in.
    tokens = pad([[*FIRST.prompt, *FIRST.chosen], [*FIRST.prompt, *FIRST.rejected]], 0, "right")
    with torch.no_grad():
        states = hf.transformer(**tokens.inputs()).last_hidden_state
    for wrong in (before_norm, -61.250962426068, ches(states[0, 2:-1], states[1, 2:-1])):
        assert abs(score - wrong) > 0.1


@pytest.mark.oracle
@torch.no_grad()
def test_a_cached_prompt_gives_the_same(known: Model) -> None:
    first = known.hf.transformer(torch.tensor([FIRST.prompt]), use_cache=True)
    parts = []
    for answer in (FIRST.chosen, FIRST.rejected):
        past = copy.deepcopy(first.past_key_values)
        rest = known.hf.transformer(torch.tensor([answer[:-1]]), past_key_values=past, use_cache=True).last_hidden_state
        parts.append(torch.cat([first.last_hidden_state[0, -1:], rest[0]]))
    assert ches(*parts) == pytest.approx(similarity(known, [FIRST]).ches[0], abs=1e-10)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_alpha_ches_is_the_gradient_of_the_unembedding(families: Callable[[str], Family], name: str) -> None:
    single = families(name).model
    model = Model(single.plain_copy().double(), single.tokenizer, "double")
    measured = similarity(model, PAIRS)
    for states in answer_states(model, PAIRS):
        number, pair = states.number, PAIRS[states.number]
        chosen, rejected = head_gradient(model, states.chosen, pair.chosen), head_gradient(model, states.rejected, pair.rejected)
        expected = float((chosen * rejected).sum() - (chosen * chosen).sum())
        assert measured.alpha_ches[number] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        term = float((chosen * rejected).sum())
        assert measured.chosen_negative[number].sum() == pytest.approx(term, rel=1e-9, abs=1e-9)
        assert measured.rejected_negative[number].sum() == pytest.approx(term, rel=1e-9, abs=1e-9)
        assert len(measured.chosen_negative[number]) == len(pair.chosen)
        assert len(measured.rejected_negative[number]) == len(pair.rejected)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_packed_is_plain(families: Callable[[str], Family], name: str) -> None:
    model = families(name).model
    measured = ches_scores(model, PAIRS, batch_tokens=50)
    for number, pair in enumerate(PAIRS):
        chosen, rejected = (plain_states(model.hf, pair.prompt, side) for side in (pair.chosen, pair.rejected))
        if measured.not_applicable[number]:
            continue
        assert measured.ches[number] == pytest.approx(ches(chosen, rejected), rel=1e-5, abs=1e-4)
        assert measured.ln_ches[number] == pytest.approx(ln_ches(chosen, rejected), rel=1e-5, abs=1e-4)
        assert measured.last_hidden[number] == pytest.approx(float(chosen[-1] @ rejected[-1]), rel=1e-5, abs=1e-4)


def test_a_batch_gives_what_each_pair_gives_alone_and_ches_what_similarity_gives(gpt2: Model) -> None:
    together, alone = similarity(gpt2, PAIRS), [similarity(gpt2, [pair]) for pair in PAIRS]
    scores = ches_scores(gpt2, PAIRS)
    for field in ("ches", "ln_ches", "last_hidden", "alpha_ches", "share_alpha_positive", "share_hidden_positive"):
        values = getattr(together, field)
        np.testing.assert_allclose(values, np.concatenate([getattr(each, field) for each in alone]), rtol=1e-4, atol=1e-4)
        if hasattr(scores, field):
            np.testing.assert_array_equal(getattr(scores, field), values)
    np.testing.assert_allclose(together.log_probs.chosen, log_probs(gpt2, PAIRS).chosen, atol=1e-9)
    np.testing.assert_allclose(together.log_probs.rejected_tokens[3], log_probs(gpt2, PAIRS).rejected_tokens[3], atol=1e-9)


def test_sides_swapped_change_the_own_term_alone(known: Model) -> None:
    swapped = TokenPair(FIRST.prompt, FIRST.rejected, FIRST.chosen)
    states = next(iter(answer_states(known, [FIRST])))
    chosen, rejected = states.chosen.sum(dim=0), states.rejected.sum(dim=0)
    assert similarity(known, [swapped]).ches[0] == pytest.approx(float(chosen @ rejected - rejected @ rejected), abs=1e-10)
    # Bilinear: three times the rejected states.
    assert ches(states.chosen, states.rejected.repeat(3, 1)) == pytest.approx(float(3 * chosen @ rejected - chosen @ chosen), abs=1e-9)


@pytest.mark.parametrize("pair", [TokenPair((1, 2), (5,), (7,)), TokenPair((1, 2), (5, 6), (5, 7)), TokenPair((1,), (5, 6), (5, 6))])
def test_where_both_answers_are_read_off_the_same_states_ches_is_not_applicable(gpt2: Model, pair: TokenPair) -> None:
    measured = similarity(gpt2, [pair, PAIRS[0]])
    assert np.isnan([measured.ches[0], measured.ln_ches[0], measured.last_hidden[0]]).all()
    assert "same states" in measured.not_applicable[0]
    assert np.isfinite([measured.ches[1], measured.ln_ches[1], *measured.alpha_ches, *measured.share_alpha_positive]).all()
    assert measured.not_applicable[1] == ""
    assert np.isnan(ches_scores(gpt2, [pair]).ches[0])


def test_one_long_answer_beside_a_single_token_has_a_score(gpt2: Model) -> None:
    measured = similarity(gpt2, [TokenPair((1, 2), (5,), (7, 8, 9))])
    assert np.isfinite(measured.ches[0])
    assert measured.not_applicable == ("",)


def test_alpha_ches_of_single_tokens_is_the_closed_form(known: Model) -> None:
    pair = TokenPair((1, 4, 2), (5,), (7,))
    measured = similarity(known, [pair])
    state = plain_states(known.hf, pair.prompt, pair.chosen)[0]
    chances = head_logits(known.hf, state[None])[0].softmax(dim=-1).detach()
    expected = -(1 - chances[5] + chances[7]) * (state @ state)
    assert measured.alpha_ches[0] == pytest.approx(float(expected), abs=1e-10)


def test_shares_are_those_of_chosen_with_rejected_tokens(known: Model) -> None:
    measured: Similarity = similarity(known, [FIRST])
    states = next(iter(answer_states(known, [FIRST])))
    products = states.chosen @ states.rejected.T
    assert measured.share_hidden_positive[0] == pytest.approx(float((products > 0).double().mean()))
    errors = []
    for part, targets in ((states.chosen, FIRST.chosen), (states.rejected, FIRST.rejected)):
        error = -head_logits(known.hf, part).softmax(dim=-1).detach()
        error[range(len(targets)), list(targets)] += 1
        errors.append(error)
    alpha = errors[0] @ errors[1].T
    assert measured.share_alpha_positive[0] == pytest.approx(float((alpha > 0).double().mean()))
    assert 0 < measured.share_alpha_positive[0] < 1


def test_an_unreadable_pair_is_an_error(gpt2: Model) -> None:
    with pytest.raises(UserError, match="pair 0"):
        similarity(gpt2, [TokenPair((1,), (2,), (gpt2.d_vocab,))])
    assert similarity(gpt2, []).ches.shape == (0,)
