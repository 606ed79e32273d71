"""Probability mass by set, Definition 1 beside drawdown, the argmax: all against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.preferences.mass import SETS, TokenSets, argmax_mass, displacement, largest_gains, mass_by_set

# A softmax of the logarithms of 1 to 8, whose sum is 36, and one in which the first two exchanged their places.
LOGITS = torch.log(torch.arange(1.0, 9.0, dtype=torch.float64))
START = LOGITS.log_softmax(-1)
SWAPPED = LOGITS[[1, 0, *range(2, 8)]].log_softmax(-1)
PAIR = TokenSets(preferred=(0,), dispreferred=(1,), similar=(2, 3), opposite=(4, 6))


def test_masses_of_sets_are_sums_of_a_hand_made_softmax() -> None:
    masses = mass_by_set(torch.stack([START, SWAPPED]), PAIR)
    assert tuple(masses) == SETS
    expected = {"preferred": (1, 2), "dispreferred": (2, 1), "similar": (7, 7), "opposite": (12, 12), "rest": (14, 14)}
    for name, (before, after) in expected.items():
        assert masses[name].tolist() == pytest.approx([before / 36, after / 36], abs=1e-12)


def test_masses_of_a_real_softmax_add_up_to_one_in_every_shape() -> None:
    log_probs = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    total = sum(mass_by_set(log_probs, PAIR).values())
    torch.testing.assert_close(total, torch.ones(3, 4, dtype=torch.float64), atol=1e-6, rtol=0)
    none = mass_by_set(log_probs, TokenSets((0,), (1,)))
    assert (none["similar"] == 0).all()
    assert none["similar"].shape == (3, 4)


def test_sets_that_overlap_or_lack_an_answer_are_refused() -> None:
    with pytest.raises(UserError, match="the tokens 0 stand in more than one"):
        TokenSets((0,), (0,))
    with pytest.raises(UserError, match="the tokens 3 stand in more than one"):
        TokenSets((0,), (1,), opposite=(3, 3))
    with pytest.raises(UserError, match="needs a preferred"):
        TokenSets((), (1,))


def test_a_token_beyond_the_vocabulary_is_refused_and_not_read_from_the_end() -> None:
    for token in (8, -1):
        with pytest.raises(UserError, match="not in the vocabulary of 8"):
            mass_by_set(START, TokenSets((token,), (1,)))


@pytest.mark.parametrize(
    ("curve", "change", "drawdown", "decrease"),
    [
        # The paper's tables: from a peak, although the run ends above its start.
        ([0.1, 0.9, 0.3, 0.5], 0.4, 0.4, 0.6),
        ([0.5, 0.4, 0.2], -0.3, 0.3, 0.3),
        ([0.1, 0.2, 0.3], 0.2, 0.0, 0.0),
        # It falls, and recovers to more than before.
        ([0.5, 0.1, 0.6], 0.1, 0.0, 0.4),
    ],
)
def test_definition_1_and_the_falls_within_a_run(curve: list[float], change: float, drawdown: float, decrease: float) -> None:
    moved = displacement(np.array(curve))
    assert (moved.start, moved.end) == (curve[0], curve[-1])
    assert (moved.change, moved.drawdown, moved.decrease) == pytest.approx((change, drawdown, decrease))


def test_a_curve_of_one_value_or_with_a_gap_is_refused() -> None:
    for curve in ([0.1], [0.1, math.nan]):
        with pytest.raises(UserError, match="cannot be read as a run"):
            displacement(np.array(curve))


def test_the_argmax_is_that_of_the_start_and_is_followed_whatever_overtakes_it() -> None:
    course = torch.stack([START, LOGITS.flip(0).log_softmax(-1)])
    first = argmax_mass(course)
    assert (first.token, first.masses) == (7, pytest.approx((8 / 36, 1 / 36)))
    assert argmax_mass(course, without=(7,)).token == 6


def test_gains_are_differences_of_probability_largest_first_without_the_pair() -> None:
    gains = largest_gains(START, LOGITS.flip(0).log_softmax(-1), 3, without=(0,))
    assert [token for token, _ in gains] == [1, 2, 3]
    assert [gain for _, gain in gains] == pytest.approx([5 / 36, 3 / 36, 1 / 36])
    assert len(largest_gains(START, SWAPPED, 50, without=(0, 1))) == 6
