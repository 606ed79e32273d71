"""Losses of preference pairs against their formulas written out, and the packed gradient against one answer at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import KTOTrainer
from trl.experimental.cpo import CPOTrainer

from interp import Model, UserError
from interp.preferences.influence import answer_log_prob, trainable_copy
from interp.preferences.pairs import TokenPair
from training.pair_batches import answer_log_probs, backward
from training.pair_losses import DPOP_WEIGHT, LOSSES, SHIFT, SIMPO_BETA, SIMPO_MARGIN, kto_loss, pair_loss, simpo_loss
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


@pytest.mark.oracle
@pytest.mark.parametrize("divergence", [0.7, -0.4])
def test_kto_is_that_of_trl(divergence: float) -> None:
    """TRL's own loss of two desirable and two undesirable answers, on log-probabilities that are given to it."""
    generator = torch.Generator().manual_seed(3)
    gains = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    reference = torch.tensor([[-20.0, -25.0], [-31.0, -18.0]], dtype=torch.float64)
    now = reference + gains
    labels = torch.tensor([True, True, False, False])
    # One token an answer: TRL sums over the tokens.
    token = torch.cat([now[:, 0], now[:, 1]])[:, None]
    outputs = SimpleNamespace(log_probs=token, entropy=torch.zeros_like(token), mean_logits=torch.zeros_like(token))
    ones = torch.ones(4, 2, dtype=torch.long)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value),
        _compute_kl_logps=lambda model, batch: torch.full((4,), divergence, dtype=torch.float64), precompute_ref_logps=True,
        calculate_KL=True, loss_type="kto", beta=BETA, desirable_weight=1.0, undesirable_weight=1.0, aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {
        "label": labels, "input_ids": ones, "attention_mask": ones, "completion_mask": ones,
        "ref_logps": torch.cat([reference[:, 0], reference[:, 1]]), "ref_KL_logps": torch.zeros(4, dtype=torch.float64),
    }  # fmt: skip
    theirs = KTOTrainer._compute_loss(trainer, lambda **options: outputs, inputs, False)
    ours = [kto_loss(now[pair, 0], now[pair, 1], (float(reference[pair, 0]), float(reference[pair, 1])), divergence) for pair in range(2)]
    assert float(torch.stack(ours).mean()) == pytest.approx(float(theirs), rel=1e-12)


@pytest.mark.oracle
def test_simpo_is_that_of_trl() -> None:
    # TRL divides log-probabilities by lengths before it calls its loss, and multiplies the margin by nothing of its own.
    trainer = SimpleNamespace(
        alpha=0.0,
        accelerator=SimpleNamespace(device="cpu"),
        loss_type="simpo",
        simpo_gamma=SIMPO_MARGIN,
        beta=SIMPO_BETA,
        label_smoothing=0.0,
    )
    chosen, rejected, lengths = torch.tensor(-21.0), torch.tensor(-30.0), (7, 12)
    theirs, *_ = CPOTrainer.cpo_loss(trainer, chosen / lengths[0], rejected / lengths[1])
    assert float(simpo_loss(chosen, rejected, lengths)) == pytest.approx(float(theirs), rel=1e-6)
