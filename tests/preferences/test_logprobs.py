"""Log-probabilities of packed rows against a forward of each sequence alone, in every family."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from interp import Edit, Model, UserError, editing
from interp.models.hooks import Work, working
from interp.preferences import packed
from interp.preferences.logprobs import LogProbs, log_probs
from interp.preferences.packed import packable, packed_row
from interp.preferences.pairs import TokenPair
from interp.preferences.states import answer_states
from tests.models.families import FAMILIES, Family
from tests.preferences.reference import FIRST, SECOND, known_model, plain_log_prob, random_pairs

PAIRS = random_pairs(300, 12)


def by_sequence(model: Model, pairs: list[TokenPair]) -> list[list[np.ndarray]]:
    """The token log-probabilities of both answers of each pair, one whole sequence at a time."""
    with torch.no_grad():
        return [[plain_log_prob(model.hf, pair.prompt, side).numpy() for side in (pair.chosen, pair.rejected)] for pair in pairs]


def check_equal(measured: LogProbs, expected: list[list[np.ndarray]], tolerance: float) -> None:
    for number, (chosen, rejected) in enumerate(expected):
        np.testing.assert_allclose(measured.chosen_tokens[number], chosen, atol=tolerance, rtol=0)
        np.testing.assert_allclose(measured.rejected_tokens[number], rejected, atol=tolerance, rtol=0)
        assert measured.chosen[number] == pytest.approx(chosen.sum(dtype=float), abs=tolerance)
        assert measured.margin[number] == pytest.approx(chosen.sum(dtype=float) - rejected.sum(dtype=float), abs=2 * tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize("name", FAMILIES)
def test_they_are_those_of_each_sequence_alone(families: Callable[[str], Family], name: str) -> None:
    # In single precision several batches; in double one. A window of attention of 4 tokens leaves some pairs packed and some not.
    single = families(name).model
    check_equal(log_probs(single, PAIRS, batch_tokens=40), by_sequence(single, PAIRS), 1e-5)
    double = Model(single.plain_copy().double(), single.tokenizer, "double")
    # Where attention is written out (`eager`), transformers rounds its weights to single precision, also in a model in double.
    tolerance = 1e-6 if double.hf.config._attn_implementation == "eager" else 1e-10
    check_equal(log_probs(double, PAIRS), by_sequence(double, PAIRS), tolerance)


def test_pairs_beyond_a_window_are_read_as_plain_rows(families: Callable[[str], Family]) -> None:
    rows = {name: [packable(families(name).model.hf, [packed_row(pair)]) for pair in PAIRS] for name in ("gemma2", "mistral", "llama")}
    for name in ("gemma2", "mistral"):
        assert 0 < sum(rows[name]) < len(PAIRS)
    assert all(rows["llama"])


@pytest.mark.oracle
def test_they_are_the_known_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    measured = log_probs(known_model(tokenizer), [FIRST, SECOND])
    assert measured.chosen == pytest.approx([-13.433889592738, -7.051958331718], abs=1e-10)
    assert measured.rejected == pytest.approx([-7.027488830215, -11.559729260248], abs=1e-10)


def test_a_batch_gives_what_each_pair_gives_alone(gpt2: Model) -> None:
    together = log_probs(gpt2, PAIRS)
    alone = [log_probs(gpt2, [pair]) for pair in PAIRS]
    np.testing.assert_allclose(together.chosen, [each.chosen[0] for each in alone], atol=1e-5)
    np.testing.assert_allclose(together.rejected, [each.rejected[0] for each in alone], atol=1e-5)
    assert log_probs(gpt2, []).chosen.shape == (0,)


def test_edits_act_as_on_plain_rows(gpt2: Model) -> None:
    vector = torch.linspace(-1, 1, gpt2.d_model)
    for edit in (Edit.scale_keys([(1, 3), (0, 5)], 9.0), Edit.add("resid_mid.1", vector, 3.0, positions="prompt")):
        for pair in PAIRS[:4]:
            expected = []
            for side in (pair.chosen, pair.rejected):
                with editing(gpt2, [edit]), working(gpt2.hf, Work(), torch.tensor([len(pair.prompt)])), torch.no_grad():
                    expected.append(plain_log_prob(gpt2.hf, pair.prompt, side).numpy())
            with editing(gpt2, [edit]):
                check_equal(log_probs(gpt2, [pair]), [expected], 1e-5)
            assert abs(log_probs(gpt2, [pair]).chosen[0] - expected[0].sum()) > 1e-3
    with editing(gpt2, [Edit.scale("logits", 2.0)]), pytest.raises(UserError, match="an edit at logits"):
        log_probs(gpt2, PAIRS)


def test_a_model_in_half_precision_is_measured_in_single(gpt2: Model) -> None:
    half = Model(gpt2.plain_copy().bfloat16(), gpt2.tokenizer, "half")
    wide = Model(half.plain_copy().float(), gpt2.tokenizer, "wide")
    np.testing.assert_allclose(log_probs(half, PAIRS).chosen, log_probs(wide, PAIRS).chosen, atol=1e-6)
    assert half.dtype == torch.bfloat16


def test_half_as_many_tokens_are_read_of_a_long_prompt(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = packed.packed_states
    spy = lambda hf, rows, device: (read.extend(len(row.tokens) for row in rows), plain(hf, rows, device))[1]  # noqa: E731
    monkeypatch.setattr("interp.preferences.states.packed_states", spy)
    pair = TokenPair(tuple(range(1, 41)), (5, 6), (7, 8))
    list(answer_states(gpt2, [pair]))
    assert read == [42]


def test_what_the_model_cannot_read_is_an_error(gpt2: Model) -> None:
    with pytest.raises(UserError, match="pair 1 has 66 tokens with its longer answer, but the model reads at most 64"):
        log_probs(gpt2, [PAIRS[0], TokenPair((1,), (2,), tuple([3] * 65))])
    with pytest.raises(UserError, match=f"pair 0 holds token ids from 1 to {gpt2.d_vocab}"):
        log_probs(gpt2, [TokenPair((1,), (2,), (gpt2.d_vocab,))])
    gpt2.hf.train()
    try:
        with pytest.raises(UserError, match="dropout"):
            log_probs(gpt2, PAIRS)
    finally:
        gpt2.hf.eval()
