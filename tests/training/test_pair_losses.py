"""Losses of preference pairs against their formulas written out, and the packed gradient against one answer at a time."""

from __future__ import annotations

import math

import pytest
import torch

from interp import Model, UserError
from interp.preferences.influence import answer_log_prob, trainable_copy
from interp.preferences.pairs import TokenPair
from training.pair_batches import answer_log_probs, backward
from training.pair_losses import DPOP_WEIGHT, LOSSES, SHIFT, pair_loss
from training.single_token import BETA, SFT_WEIGHT, TAU

PAIRS = [TokenPair((5, 9, 2), (7, 1, 4, 0), (8, 0)), TokenPair((3,), (6, 0), (6, 2, 2, 9, 0)), TokenPair((1, 4), (2,), (3,))]


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def expected(name: str, chosen: float, gain: float, loss: float) -> float:
    """Each loss by its formula in plain numbers, with -log σ(x) = log(1 + exp(-x))."""
    return {
        "dpo": softplus(-BETA * (gain - loss)),
        "ipo": (gain - loss - 1 / (2 * TAU)) ** 2,
        "dpo+sft": softplus(-BETA * (gain - loss)) - SFT_WEIGHT * chosen,
        "dpop": softplus(-BETA * (gain - loss - DPOP_WEIGHT * max(0.0, -gain))),
        "cal-dpo": softplus(-(gain - loss)) + 0.5 * ((gain - 1 / (2 * BETA)) ** 2 + (loss + 1 / (2 * BETA)) ** 2),
        "dpo-shift": softplus(-BETA * (gain - SHIFT * loss)),
    }[name]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.0), (1.5, -2.0), (-0.3, -2.0), (-0.3, 1.0)])
def test_each_loss_is_its_formula(name: str, gain: float, loss: float) -> None:
    reference = (-20.0, -25.0)
    chosen, rejected = (torch.tensor(start + moved, dtype=torch.float64) for start, moved in zip(reference, (gain, loss), strict=True))
    value = pair_loss(name, chosen, rejected, reference)
    assert float(value) == pytest.approx(expected(name, float(chosen), gain, loss), rel=1e-12)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(UserError, match="no loss 'kto'"):
        pair_loss("kto", torch.tensor(0.0), torch.tensor(0.0), (0.0, 0.0))


def test_packed_log_probabilities_and_their_gradient_are_those_of_one_answer_at_a_time(gpt2: Model) -> None:
    hf, other = trainable_copy(gpt2), trainable_copy(gpt2)
    values = answer_log_probs(hf, PAIRS)
    sides = [[answer_log_prob(other, pair.prompt, side) for side in (pair.chosen, pair.rejected)] for pair in PAIRS]
    apart = torch.stack([torch.stack(both) for both in sides])
    torch.testing.assert_close(values, apart, rtol=1e-5, atol=1e-5)
    reference = [(float(one) - 0.5, float(two) + 0.5) for one, two in apart.detach()]
    loss = backward(hf, PAIRS, lambda place, chosen, rejected: pair_loss("dpo", chosen, rejected, reference[place]))
    by_hand = sum(pair_loss("dpo", *apart[place], reference[place]) for place in range(len(PAIRS))) / len(PAIRS)
    assert isinstance(by_hand, torch.Tensor)
    by_hand.backward()
    assert loss == pytest.approx(float(by_hand.detach()), rel=1e-6)
    for mine, theirs in zip(hf.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-7)
