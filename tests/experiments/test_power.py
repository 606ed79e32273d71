"""Rates of verdicts in simulated studies, and the bound on wrong ones for every rule."""

from __future__ import annotations

import pytest

from interp.experiments.displacement.simulations import simulations as of_paper_b
from interp.experiments.elasticity.simulations import simulations as of_paper_c
from interp.experiments.power import AT_MOST, Simulation, rates, wrong
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.toxicity.simulations import simulations as of_paper_a
from interp.experiments.verdicts_page import HEAD, PAGE, line_of


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


def test_simulations_are_listed_by_the_paper_of_their_experiment() -> None:
    assert {EXPERIMENTS[item.id].paper for item in of_paper_a()} == {"A"}
    assert {EXPERIMENTS[item.id].paper for item in of_paper_b()} == {"B"}
    assert {EXPERIMENTS[item.id].paper for item in of_paper_c()} == {"C"}


def test_the_page_of_verdicts_begins_as_it_is_written_and_names_every_world() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written.startswith(HEAD)
    for item in (*of_paper_a(), *of_paper_b(), *of_paper_c()):
        assert f"| {item.id} | {item.world} | {item.truth} |" in written
    row = {"experiment": "X", "world": "a coin", "claim is": "true", "holds": 0.9, "fails": 0.02, "inconclusive": 0.08}
    assert line_of(row) == "| X | a coin | true | 90.0% | 2.0% | 8.0% | 2.0% |"


@pytest.mark.parametrize("item", [*of_paper_a(), *of_paper_b(), *of_paper_c()], ids=lambda item: f"{item.id}: {item.world}")
def test_a_rule_is_seldom_wrong(item: Simulation) -> None:
    assert item.id in EXPERIMENTS
    assert wrong(rates([item], draws=200).iloc[0]) <= AT_MOST
