"""The loop on one-token pairs: exact losses, and models in which the unembedding decides whether the preferred answer is displaced."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from interp import UserError
from interp.preferences.mass import TokenSets, displacement, mass_by_set
from tests.answers import answering_config, answering_model, answering_tokenizer
from tests.conftest import make_hf
from training.single_token import (
    BETA,
    SFT_WEIGHT,
    TAU,
    Answered,
    Curve,
    Setting,
    entanglement_of,
    largest_stable_rate,
    loss_of,
    next_log_probs,
    state_of,
    teach_answers,
    tune,
)
from training.studies.displacement_rows import row_of

PLUS, MINUS, OTHER = 10, 11, 12
PROMPT = [1, 4, 2]


def planted(plus: list[float], minus: list[float], other: list[float]) -> PreTrainedModel:
    """A model whose final state is the bias of its last norm, with the unembeddings of three tokens as given and small others.

    The state can move freely (the bias), so the theory of free hidden states holds; the norm's gain keeps the blocks out.
    """
    config = answering_config()
    config.tie_word_embeddings = False
    hf = make_hf(config, answering_tokenizer()).requires_grad_(True)
    with torch.no_grad():
        head = hf.get_output_embeddings().weight
        head.mul_(0.001)
        for token, values in ((PLUS, plus), (MINUS, minus), (OTHER, other)):
            head[token] = torch.tensor(values + [0.0] * (head.shape[1] - len(values)))
        hf.transformer.ln_f.weight.fill_(1e-4)
        hf.transformer.ln_f.bias.fill_(0.0)
        hf.transformer.ln_f.bias[0] = 0.8
    return hf


@pytest.mark.parametrize("objective", ["dpo", "ipo"])
def test_aligned_unembeddings_displace_the_preferred_answer_to_what_is_aligned_with_their_difference(objective: str) -> None:
    # The first coordinate is shared, the second tells the two apart, and a third token lies far along it.
    hf = planted([6.0, 1.0], [6.0, -1.0], [5.5, 12.0])
    rate = 1e-2 if objective == "dpo" else 1e-5
    curve = tune(hf, PROMPT, PLUS, MINUS, Setting(objective, "sgd", rate, 60), entangled_at=(0,))  # type: ignore[arg-type]
    masses = mass_by_set(curve.log_probs, TokenSets((PLUS,), (MINUS,), opposite=(OTHER,)))
    assert curve.falls
    assert displacement(masses["preferred"].numpy()).change < 0
    assert masses["opposite"][-1] > masses["opposite"][0]
    assert curve.entanglement[0] > 1
    margin = curve.log_probs[:, PLUS] - curve.log_probs[:, MINUS]
    assert (margin.diff() > 0).all()


def test_orthogonal_unembeddings_raise_the_preferred_answer() -> None:
    hf = planted([0.0, 4.0], [0.0, 0.0, 4.0], [4.0])
    curve = tune(hf, PROMPT, PLUS, MINUS, Setting("dpo", "sgd", 1e-2, 60), entangled_at=(0,))
    masses = mass_by_set(curve.log_probs, TokenSets((PLUS,), (MINUS,), opposite=(OTHER,)))
    assert curve.falls
    assert displacement(masses["preferred"].numpy()).change > 0
    assert curve.entanglement[0] < 0.5


def test_an_sft_term_raises_what_dpo_alone_displaces() -> None:
    ends = {}
    for objective in ("dpo", "dpo+sft"):
        curve = tune(planted([6.0, 1.0], [6.0, -1.0], [5.5, 12.0]), PROMPT, PLUS, MINUS, Setting(objective, "sgd", 1e-2, 60))  # type: ignore[arg-type]
        ends[objective] = float(curve.log_probs[-1, PLUS] - curve.log_probs[0, PLUS])
    assert ends["dpo"] < 0 < ends["dpo+sft"]


def test_losses_are_those_of_their_definitions() -> None:
    log_probs = torch.log(torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64))
    gained = math.log(0.5 / 0.2) - 0.4
    dpo = math.log1p(math.exp(-BETA * gained))
    assert float(loss_of("dpo", log_probs, 0, 1, 0.4)) == pytest.approx(dpo)
    assert float(loss_of("dpo+sft", log_probs, 0, 1, 0.4)) == pytest.approx(dpo - SFT_WEIGHT * math.log(0.5))
    assert float(loss_of("ipo", log_probs, 0, 1, 0.4)) == pytest.approx((gained - 1 / (2 * TAU)) ** 2)
    assert float(loss_of("dpo", log_probs, 0, 1, math.log(2.5))) == pytest.approx(math.log(2))


def test_the_first_step_of_rmsprop_moves_every_weight_by_ten_rates_and_adams_by_one() -> None:
    for optimizer, factor in (("rmsprop", 10.0), ("adam", 1.0)):
        hf = planted([6.0, 1.0], [6.0, -1.0], [5.5, 12.0])
        before = hf.transformer.ln_f.bias[1].detach().clone()
        tune(hf, PROMPT, PLUS, MINUS, Setting("dpo", optimizer, 1e-4, 1))
        moved = hf.transformer.ln_f.bias[1].detach() - before
        assert moved.item() == pytest.approx(factor * 1e-4, rel=1e-2)


def test_a_loss_that_rises_or_is_not_finite_is_no_falling_one_and_can_stop_the_run() -> None:
    course = torch.zeros(3, 2)
    assert Curve(course, (1.0, 0.5, 0.5), {}).falls
    assert not Curve(course, (1.0, 0.5, 0.6), {}).falls
    assert not Curve(course, (1.0, math.nan, 0.5), {}).falls
    hf = planted([6.0, 1.0], [6.0, -1.0], [5.5, 12.0])
    curve = tune(hf, PROMPT, PLUS, MINUS, Setting("ipo", "sgd", 10.0, 50), stop_if_rising=True)
    assert not curve.falls
    assert len(curve.losses) < 51


def test_the_largest_stable_rate_is_taken_and_none_is_an_error() -> None:
    tried: list[float] = []

    def stable(rate: float) -> bool:
        tried.append(rate)
        return rate < 0.2

    assert largest_stable_rate((0.01, 0.1, 1.0), stable, "this") == 0.1
    assert tried == [1.0, 0.1]
    with pytest.raises(UserError, match=r"no learning rate from 0\.5 to 1 is stable for this"):
        largest_stable_rate((0.5, 1.0), stable, "this")
    with pytest.raises(UserError, match="no setting dpo with muon"):
        Setting("dpo", "muon", 0.1, 1)


def test_padded_rows_are_read_as_single_ones(tmp_path: Path) -> None:
    hf = answering_model(tmp_path).plain_copy()
    rows = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    together = next_log_probs(hf, rows)
    for row, log_probs in zip(rows, together, strict=True):
        expected = hf(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=1e-5)


def test_taught_answers_are_raised_and_a_seed_repeats_them(tmp_path: Path) -> None:
    hf = answering_model(tmp_path).plain_copy().requires_grad_(True)
    start = state_of(hf)
    examples = [Answered((5, 6, place), (20, 21)) for place in range(8)]
    before = next_log_probs(hf, [examples[0].prompt])[0, [20, 21]]
    losses = teach_answers(hf, examples, rate=1e-3, epochs=3, batch=4, seed=0)
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.5
    assert (next_log_probs(hf, [examples[0].prompt])[0, [20, 21]] > before + 0.5).all()
    hf.load_state_dict(start)
    assert teach_answers(hf, examples, rate=1e-3, epochs=3, batch=4, seed=0) == losses


def test_entanglement_is_not_known_where_the_preferred_token_has_all_of_the_probability() -> None:
    logits = torch.zeros(5, requires_grad=True)
    sure = (logits + torch.tensor([1e4, 0.0, 0.0, 0.0, 0.0])).log_softmax(0)
    assert math.isnan(entanglement_of(sure, 0, 1, [logits]))
    unsure = (logits + torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])).log_softmax(0)
    assert math.isfinite(entanglement_of(unsure, 0, 1, [logits]))


def test_a_probability_that_has_fallen_to_zero_still_has_a_logarithm() -> None:
    logits = torch.zeros(3, 20)
    logits[1:, 3] = -1000.0
    curve = Curve(logits.log_softmax(-1), (0.7, 0.5, 0.4), {})
    row = row_of(curve, TokenSets((3,), (4,)), answering_tokenizer())
    assert row["preferred"]["end"] == 0
    assert row["log_change"] == pytest.approx(-1000, abs=0.1)
