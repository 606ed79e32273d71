"""Rates of verdicts in simulated studies, and the bound on wrong ones for every rule of paper A."""

from __future__ import annotations

import pytest

from interp.experiments.power import AT_MOST, Simulation, rates, wrong
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.toxicity.simulations import simulations


def test_rates_count_verdicts_and_a_seed_repeats_them() -> None:
    coin = Simulation("X", "a coin", "false", lambda generator: "holds" if generator.random() < 0.25 else "inconclusive")
    sure = Simulation("X", "sure", "true", lambda generator: "fails")
    table = rates([coin, sure], draws=2000, seed=1)
    assert abs(table["holds"][0] - 0.25) < 0.03
    assert table["fails"][1] == 1.0
    assert wrong(table.iloc[0]) == table["holds"][0]
    assert wrong(table.iloc[1]) == 1.0
    assert rates([coin], draws=2000, seed=1).equals(table.iloc[:1])


def test_a_world_between_has_no_wrong_verdict() -> None:
    table = rates([Simulation("X", "half", "between", lambda generator: "holds")], draws=10)
    assert wrong(table.iloc[0]) == 0.0


@pytest.mark.parametrize("item", simulations(), ids=lambda item: f"{item.id}: {item.world}")
def test_a_rule_is_seldom_wrong(item: Simulation) -> None:
    assert item.id in EXPERIMENTS
    assert wrong(rates([item], draws=200).iloc[0]) <= AT_MOST
