"""The check of a filter by training, on a tiny model: what is trained on, what is measured, and what stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.models.model import Model
from interp.preferences.audit import Audit, Settings, audit
from interp.preferences.logprobs import log_probs
from tests.preferences.invented_pairs import rows
from tests.preferences.test_formats import data_of
from training.filters import BATCH, Training, train, verify
from training.single_token import BETA


@pytest.fixture(scope="module")
def result(gpt2: Model) -> Audit:
    return audit(data_of(rows(53)), gpt2, Settings(max_length=32, by="alpha_ches", keep=0.5))


def test_the_arms_of_a_filter_take_equal_steps_and_none_sees_the_held_out_pairs(
    result: Audit, gpt2: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, set[tuple[int, ...]]] = {}

    def watched(model: Model, pairs: list[object], training: Training, **options: object) -> object:
        seen[len(seen)] = {pair.chosen + pair.rejected for pair in pairs}  # type: ignore[attr-defined]
        return train(model, pairs, training, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("training.filters.train", watched)
    before = {name: value.clone() for name, value in gpt2.hf.state_dict().items()}
    checked = verify(result, gpt2, Training(1e-3, "sgd"))
    arms = {arm["trained_on"]: arm for arm in checked["arms"]}
    assert [(arm["pairs"], arm["steps"]) for arm in checked["arms"]] == [(45, 6), (22, 3), (22, 3)]
    held_out = {result.tokens[row].chosen + result.tokens[row].rejected for row in checked["held_out"]}
    assert (len(held_out), any(held_out & part for part in seen.values())) == (5, False)
    assert seen[1] < seen[0]
    assert seen[2] < seen[0]
    difference = arms["kept"]["change_chosen"]["value"] - arms["random"]["change_chosen"]["value"]
    assert checked["kept_minus_random"]["value"] == pytest.approx(difference, abs=1e-9)
    assert all(torch.equal(before[name], value) for name, value in gpt2.hf.state_dict().items())


@pytest.mark.oracle
def test_a_step_of_training_is_that_of_dpo(result: Audit, gpt2: Model) -> None:
    pairs = [result.tokens[index].token_pair() for index in range(BATCH)]
    rate = 1e-5
    stepped = Model(train(gpt2, pairs, Training(rate, "sgd")), gpt2.tokenizer, "stepped")
    change = log_probs(stepped, pairs).margin - log_probs(gpt2, pairs).margin
    # At the start every pair has the weight beta/2, so that the mean margin moves by the rate times the squared gradient of the loss.
    copy = gpt2.plain_copy().requires_grad_(True)
    loss = torch.zeros(())
    for pair in pairs:
        sides = []
        for side in (pair.chosen, pair.rejected):
            ids = torch.tensor([[*pair.prompt, *side]])
            logps = copy(ids).logits[0, :-1].log_softmax(dim=1).gather(1, ids[0, 1:, None])[:, 0]
            sides.append(logps[len(pair.prompt) - 1 :].sum())
        loss = loss - torch.nn.functional.logsigmoid(BETA * (sides[0] - sides[1] - (sides[0] - sides[1]).detach())) / len(pairs)
    loss.backward()
    squares = sum(float(parameter.grad.square().sum()) for parameter in copy.parameters() if parameter.grad is not None)
    assert np.mean(change) * BETA / 2 == pytest.approx(rate * squares, rel=0.02)


def test_an_epoch_of_larger_steps_reads_every_pair_in_fewer_of_them(result: Audit, gpt2: Model) -> None:
    pairs = [result.tokens[index].token_pair() for index in range(20)]
    steps: list[int] = []
    whole = train(gpt2, pairs, Training(1e-4, "sgd"), batch=20, after_step=lambda step, policy, loss: steps.append(step))
    assert steps == [1]
    train(gpt2, pairs, Training(1e-4, "sgd"), batch=12, after_step=lambda step, policy, loss: steps.append(step))
    assert steps == [1, 1, 2]
    # One step on all pairs is the same in whatever order they are read.
    other = train(gpt2, pairs, Training(1e-4, "sgd", seed=5), batch=20)
    for one, two in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-7)


def test_what_cannot_be_verified_is_refused(gpt2: Model) -> None:
    few = audit(data_of(rows()), gpt2, Settings(max_length=32, by="alpha_ches", keep=0.5))
    with pytest.raises(UserError, match="a tenth of 21 scored pairs is too few"):
        verify(few, gpt2, Training())
    with pytest.raises(UserError, match="no filter to verify"):
        verify(audit(data_of(rows()), gpt2, Settings(level="text", max_length=32)), gpt2, Training())
    with pytest.raises(UserError, match="no optimizer 'lion'"):
        Training(optimizer="lion")
