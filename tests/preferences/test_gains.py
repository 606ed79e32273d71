"""The order of the first step's gains where it is known: planted by the unembedding, by the probability before, or by an unrelated pair."""

from __future__ import annotations

import pytest
import torch

from interp.errors import UserError
from interp.preferences.gains import gains_of_step

GENERATOR = torch.Generator().manual_seed(0)
UNEMBEDDING = torch.randn(400, 24, generator=GENERATOR)
STATE = 0.3 * torch.randn(24, generator=GENERATOR)
LOGITS = UNEMBEDDING @ STATE
BEFORE = LOGITS.log_softmax(-1)
DIFFERENCE = UNEMBEDDING[5] - UNEMBEDDING[9]


def after(change: torch.Tensor) -> torch.Tensor:
    return (LOGITS + 0.01 * change).log_softmax(-1)


def test_a_step_of_the_hidden_state_along_the_difference_gains_in_theorem_5s_order() -> None:
    gains = gains_of_step(BEFORE, after(UNEMBEDDING @ DIFFERENCE), UNEMBEDDING, 5, 9)
    assert gains.order == pytest.approx(1.0)
    assert 0 < gains.order_random < 0.9
    assert abs(gains.order_squeezing) < 0.5
    assert gains.share_chance == pytest.approx(20 / 398)


def test_a_step_that_sharpens_the_distribution_gains_in_the_order_of_probability() -> None:
    gains = gains_of_step(BEFORE, after(LOGITS), UNEMBEDDING, 5, 9)
    assert gains.order_squeezing == pytest.approx(1.0)
    assert gains.share_squeezing == pytest.approx(1.0)
    assert gains.argmax_first
    assert gains.order < 0.9


def test_a_step_for_another_pair_is_within_what_random_pairs_reach() -> None:
    gains = gains_of_step(BEFORE, after(UNEMBEDDING @ (UNEMBEDDING[100] - UNEMBEDDING[200])), UNEMBEDDING, 5, 9, draws=200)
    assert gains.order < gains.order_random + 0.2
    assert gains.order < 0.6


def test_no_step_is_refused() -> None:
    with pytest.raises(UserError, match="changed no other token"):
        gains_of_step(BEFORE, BEFORE, UNEMBEDDING, 5, 9)
