"""The strength at which a change costs what is asked for, on losses that are known in closed form."""

from __future__ import annotations

import math

import pytest

from interp.errors import UserError
from interp.steering.strength import effect_of, match_loss


@pytest.mark.oracle
def test_the_strength_solves_a_loss_that_is_known_in_closed_form() -> None:
    for scale in (0.01, 1.0, 300.0):
        found = match_loss(lambda s, scale=scale: 2 + (s / scale) ** 2, 2.05, most=50 * scale, tolerance=1e-5)
        assert found.strength == pytest.approx(scale * math.sqrt(0.05), rel=1e-3)
        assert found.reached
    bent = match_loss(lambda s: 1 + math.expm1(s) - 0.2 * s, 1.5, most=8.0, tolerance=1e-6)
    assert 1 + math.expm1(bent.strength) - 0.2 * bent.strength == pytest.approx(1.5, abs=1e-6)


def test_a_loss_that_jumps_or_is_not_finite_ends_on_the_cheap_side() -> None:
    assert match_loss(lambda s: 1.0 if s < 0.7 else 9.0, 1.1, most=2.0).strength == pytest.approx(0.7, abs=0.01)
    assert match_loss(lambda s: 1.0 if s < 0.7 else 9.0, 1.1, most=2.0).loss == 1.0
    wild = match_loss(lambda s: 1 + s**2 if s < 1 else math.nan, 1.5, most=4.0)
    assert wild.loss == pytest.approx(1.5, abs=1e-3)


def test_a_way_that_stays_cheap_is_given_its_whole_range_and_says_so() -> None:
    found = match_loss(lambda s: 1 + 0.01 * s, 2.0, most=3.0)
    assert (found.strength, found.reached) == (3.0, False)
    with pytest.raises(UserError, match="before anything is changed"):
        match_loss(lambda s: 5.0, 2.0, most=3.0)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (0.0, "switched off (×0)"),
        (0.5, "halved (×0.5)"),
        (0.25, "turned down (×0.25)"),
        (1, "left as they are (×1)"),
        (-3, "inverted (×−3)"),
        (-0.5, "inverted (×−0.5)"),
        (10, "amplified (×10)"),
    ],
)
def test_a_factor_is_named_by_what_it_does(factor: float, words: str) -> None:
    assert effect_of(factor) == words
