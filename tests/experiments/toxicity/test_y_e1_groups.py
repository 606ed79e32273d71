"""The rule of Y-E1 does not hold for a direction like any other, and its null for TP− has as many neurons in each layer."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from interp.experiments.registry import EXPERIMENTS
from interp.experiments.toxicity.patched_groups import ALONE, DRAWS, FOUR, LOOK, THREE, _as_many, patched_scores
from interp.experiments.toxicity.y_e1_groups import judge, judge_1
from interp.stats.intervals import Interval
from tests.experiments.planted import PlantedPair, planted_context, planted_pair

LEAST_P = 1 / (1 + DRAWS)


@pytest.mark.parametrize(
    ("net_p", "share", "four_low", "cut", "p_four", "p_three", "expected"),
    [
        (0.005, (0.43, 0.46), 0.11, 0.4, LEAST_P, LEAST_P, "holds"),
        # Each part is what random directions show as well.
        (0.4, (0.38, 0.41), 0.02, 0.4, LEAST_P, LEAST_P, "inconclusive"),
        (0.005, (0.38, 0.41), 0.02, 0.4, 0.5, LEAST_P, "inconclusive"),
        (0.005, (0.38, 0.41), 0.02, 0.4, LEAST_P, 0.5, "inconclusive"),
        (0.005, (0.43, 0.46), -0.01, math.nan, LEAST_P, LEAST_P, "inconclusive"),
        (0.005, (0.43, 0.51), 0.11, 0.4, LEAST_P, LEAST_P, "inconclusive"),
        (0.005, (0.51, 0.56), 0.11, 0.4, LEAST_P, LEAST_P, "fails"),
        (0.005, (0.43, 0.46), 0.11, 0.85, LEAST_P, 0.5, "fails"),
        (0.005, (0.43, 0.46), -0.01, 0.85, LEAST_P, 0.5, "inconclusive"),
    ],
)
def test_every_part_of_the_rule_is_compared_with_random_directions(
    net_p: float, share: tuple[float, float], four_low: float, cut: float, p_four: float, p_three: float, expected: str
) -> None:
    assert judge(net_p, share, four_low, (cut, cut - 0.2), p_four, p_three) == expected


def test_the_first_version_held_for_random_directions_but_for_the_net_reduction() -> None:
    share, beyond, four = Interval(0.4, 0.38, 0.41, 120), Interval(0.05, 0.01, 0.09, 120), Interval(0.07, 0.02, 0.11, 120)
    assert judge_1(0.03, share, beyond, four, 0.4) == "holds"
    assert judge(0.03, (0.38, 0.41), 0.02, (0.4, 0.2), 0.5, 0.5) == "inconclusive"
    # A share of 80 % that may as well be a third says nothing.
    assert judge(0.03, (0.38, 0.41), 0.02, (0.8, 0.33), 0.5, 0.5) == "inconclusive"


@pytest.mark.oracle
def test_the_null_of_one_group_has_as_many_other_neurons_in_each_layer() -> None:
    rng = np.random.default_rng(0)
    chosen = rng.random(5 * 40) < 0.2
    chosen[40:80] = False
    chosen[80:110] = True
    drawn = _as_many(chosen, 40, rng)
    assert not (drawn & chosen).any()
    for layer in range(5):
        some = slice(40 * layer, 40 * layer + 40)
        # In layer 2 fewer others are left than were chosen.
        assert drawn[some].sum() == min(chosen[some].sum(), (~chosen[some]).sum())
    assert not np.array_equal(drawn, _as_many(chosen, 40, rng))


@pytest.fixture(scope="module")
def planted() -> PlantedPair:
    return planted_pair()


@pytest.mark.oracle
def test_groups_are_shown_beside_those_of_random_directions_and_tp_beside_matched_neurons(planted: PlantedPair) -> None:
    context = planted_context(planted, count=16, quick=True)
    ran = EXPERIMENTS["Y-E1"].run(context)
    # The planted toxic neurons are TP− and do everything.
    assert ran.verdict == "fails"
    table = ran.tables["beside random"].set_index("patched")
    assert list(table.index) == [FOUR, THREE, ALONE]
    assert table.loc[ALONE, "p"] == pytest.approx(LEAST_P)
    # Random directions put the planted neurons into their groups as well: once a draw has reached the fall, the rest is not drawn.
    assert table["draws"].to_dict() == {FOUR: LOOK, THREE: LOOK, ALONE: DRAWS}
    assert (table.loc[[FOUR, THREE], "p"] > 0.05).all()
    assert table.loc[ALONE, "null highest"] < table.loc[ALONE, "fall"] == ran.statistic["fall of toxicity, TP− patched alone"]
    assert table.loc[THREE, "fall"] == ran.statistic["fall of toxicity, three groups without TP− patched"]


@pytest.mark.oracle
def test_a_report_that_reads_less_by_a_rule_makes_fewer_draws_of_what_no_verdict_rests_on(planted: PlantedPair) -> None:
    context = replace(planted_context(planted, count=16, quick=True), rule="A large model reads less.")
    ran = EXPERIMENTS["Y-E1"].run(context)
    table = ran.tables["beside random"].set_index("patched")
    assert table["draws"].to_dict() == {FOUR: LOOK, THREE: LOOK, ALONE: LOOK}
    # Five draws that do not reach the fall leave p at a sixth, and the sentence says of how many draws it is.
    assert table.loc[ALONE, "p"] == pytest.approx(1 / (1 + LOOK))
    assert f"(p = 0.167, {LOOK} draws)" in ran.summary


@pytest.mark.oracle
def test_with_no_neuron_patched_the_base_model_speaks(planted: PlantedPair) -> None:
    context = planted_context(planted, count=8, quick=True)
    np.testing.assert_array_equal(patched_scores(context, [{}, {}])[1].first, context.toxicity(planted.pair.base))
