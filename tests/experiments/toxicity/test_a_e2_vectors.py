"""The rule of A-E2 asks for vectors that are readable as toxic, and its second null draws whole sets near random directions."""

from __future__ import annotations

import numpy as np
import pytest

from interp.experiments.registry import EXPERIMENTS
from interp.experiments.toxicity.a_e2_vectors import MATCHED, NEAREST, judge, judge_1
from tests.experiments.planted import PlantedPair, planted_context, planted_pair

LOW = np.linspace(0, 0.03, 400).tolist()
HIGH = np.linspace(0, 0.9, 400).tolist()


@pytest.mark.parametrize(
    ("share", "nulls", "expected"),
    [
        (0.7, {MATCHED: LOW, NEAREST: LOW}, "holds"),
        # Six tokens of a hundred, as on the pair that ships: more than every draw of both nulls, and not readable.
        (0.06, {MATCHED: LOW, NEAREST: LOW}, "fails"),
        (0.4, {MATCHED: LOW, NEAREST: LOW}, "inconclusive"),
        # Neurons near any direction promote as many.
        (0.7, {MATCHED: LOW, NEAREST: HIGH}, "fails"),
        (0.7, {MATCHED: HIGH, NEAREST: LOW}, "fails"),
    ],
)
def test_vectors_have_to_be_mostly_toxic_words(share: float, nulls: dict[str, list[float]], expected: str) -> None:
    assert judge(share, nulls) == expected


def test_the_first_version_held_at_six_percent() -> None:
    assert judge_1(0.005) == "holds"


@pytest.fixture(scope="module")
def planted() -> PlantedPair:
    return planted_pair()


@pytest.mark.oracle
def test_both_nulls_are_shown_and_no_interval_over_vectors(planted: PlantedPair) -> None:
    ran = EXPERIMENTS["A-E2"].run(planted_context(planted, count=8, quick=True))
    assert ran.verdict == "holds"
    assert {"p_matched", "p_nearest_to_random"} <= ran.settings.keys()
    assert ran.interval == {}
    assert f"{ran.statistic['majority']:.0f} of 10 have a majority" in ran.sentence
