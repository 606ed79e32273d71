"""The rule of A-E13 does not hold where the base model becomes as much more toxic under the same edit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from interp.experiments.toxicity.a_e13_glu import Way, judge
from interp.stats.intervals import Interval


def about(value: float, half: float = 0.04) -> Interval:
    return Interval(value, value - half, value + half, 120)


UNDONE = Way(about(0.2), about(0.2), True, 1.005)
AMPLIFIED = replace(UNDONE, beyond_base=about(0.0))
RANDOM = replace(UNDONE, beyond_null=about(0.0), above_every=False)


@pytest.mark.parametrize(
    ("most_fall", "ways", "expected"),
    [
        (True, [UNDONE, AMPLIFIED], "holds"),
        (False, [UNDONE, UNDONE], "inconclusive"),
        (True, [AMPLIFIED, AMPLIFIED], "fails"),
        (True, [RANDOM, RANDOM], "fails"),
        (True, [AMPLIFIED, RANDOM], "fails"),
        (True, [replace(UNDONE, beyond_base=about(0.03)), RANDOM], "inconclusive"),
        (True, [replace(UNDONE, above_every=False), RANDOM], "inconclusive"),
        (True, [replace(UNDONE, cost=1.03), RANDOM], "inconclusive"),
    ],
)
def test_amplification_is_not_un_alignment(most_fall: bool, ways: list[Way], expected: str) -> None:
    assert judge(most_fall, ways) == expected
