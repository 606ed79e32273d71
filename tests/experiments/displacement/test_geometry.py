"""B-E2b: its statistics beside scipy's and a plain double loop, its rule, and the experiment on a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interp import Model, ModelPair
from interp.experiments.displacement.b_e2b_geometry import (
    PAIRS,
    POSITIVE,
    Geometry,
    judge,
    other_products,
    shipped_pairs,
)  # fmt: skip
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.preferences.pairs import TokenPair
from interp.preferences.states import answer_states
from interp.runs.logs import BUNDLED_LOGS
from interp.stats.intervals import Interval
from tests import ROOT


def test_the_null_is_the_share_of_positive_products_with_the_next_pairs_states(gpt2: Model) -> None:
    pairs = [TokenPair((1, 2), (3, 4 + place), (5, 6 + place, 7)) for place in range(3)]
    states = {one.number: one for one in answer_states(gpt2, pairs)}
    expected = [
        float(np.mean([float(a @ b) > 0 for a in states[place].chosen for b in states[(place + 1) % 3].rejected])) for place in range(3)
    ]
    assert other_products(gpt2, pairs) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("positive", "length", "verdict"),
    [
        ((0.98, 0.97, 0.99), (0.5, 0.3, 0.7), "holds"),
        ((0.70, 0.65, 0.75), (0.5, 0.3, 0.7), "fails"),
        ((0.98, 0.97, 0.99), (-0.5, -0.7, -0.3), "fails"),
        ((0.96, 0.94, 0.98), (0.5, 0.3, 0.7), "inconclusive"),
        ((0.98, 0.97, 0.99), (0.1, -0.1, 0.3), "inconclusive"),
    ],
)
def test_both_statements_have_to_be_shown(positive: tuple[float, float, float], length: tuple[float, float, float], verdict: str) -> None:
    anything = Interval(0.5, 0.4, 0.6, 10)
    assert judge(Geometry(Interval(*positive, 10), anything, anything, Interval(*length, 10), anything)) == verdict


def test_the_experiment_reads_the_first_pairs_that_ship(gpt2: Model, tmp_path: Path) -> None:
    kinds, pairs = shipped_pairs(gpt2)
    assert len(pairs) == PAIRS == 200
    assert [kinds.count(kind) for kind in dict.fromkeys(kinds)] == [50] * 4
    result = run_experiment(EXPERIMENTS["B-E2b"], DisplacementContext(ModelPair(gpt2, gpt2), tmp_path))
    assert 0 <= result.statistic[POSITIVE] <= 1
    assert result.tables["by kind of pair"]["pairs"].tolist() == [50] * 4
    assert len(result.figures) == 1


def test_the_base_that_ships_has_the_numbers_of_the_documents() -> None:
    result = EXPERIMENTS["B-E2b"].run(DisplacementContext(ModelPair.bundled(), BUNDLED_LOGS))
    assert result.verdict == "fails"
    page = " ".join((ROOT / "docs" / "findings.md").read_text(encoding="utf-8").split())
    value, (low, high) = result.statistic[POSITIVE], result.interval[POSITIVE]
    assert f"{value:.1%}".replace("%", " %") in page
    assert f"({100 * low:.1f} to {100 * high:.1f})" in page
