"""The rules of B-E1 and B-E1b on numbers whose verdict is known, in both directions and at their bounds."""

from __future__ import annotations

from typing import Any

import pytest

from interp.experiments.displacement.single_token_rules import PAPERS_CELL, answers, displaced, judge_displaced, judge_ordered, ordered

# By how much the runs of six seeds differ.
NOISE = (-0.03, -0.02, -0.01, 0.01, 0.02, 0.03)


def runs(fall: float, change: float, opposite: float, control: float, **more: Any) -> list[dict[str, Any]]:
    return [
        PAPERS_CELL | {"role": role, "seed": seed, "falls": True, "preferred": {"decrease": fall + noise}, "log_change": change + noise,
        "rise": {"opposite": rise + noise / (1 if role == "similar" else 2)}} | more
        for seed, noise in enumerate(NOISE) for role, rise in (("similar", opposite), ("control", control))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "verdict", "parts"),
    [
        ((0.5, -1.0, 0.4, 0.1), "holds", ("yes", "yes", "yes")),
        ((0.02, -1.0, 0.4, 0.1), "fails", ("no", "yes", "yes")),
        # From a peak only: the paper's measure says so, Definition 1 does not.
        ((0.5, 1.0, 0.4, 0.1), "fails", ("yes", "no", "yes")),
        ((0.5, -1.0, 0.1, 0.4), "fails", ("yes", "yes", "no")),
        # The difference of the rises is below what counts.
        ((0.5, -1.0, 0.001, 0.001), "inconclusive", ("yes", "yes", "open")),
        ((0.1, -1.0, 0.4, 0.1), "inconclusive", ("open", "yes", "yes")),
        ((0.5, 0.0, 0.4, 0.1), "inconclusive", ("yes", "open", "yes")),
    ],
)
def test_displacement_is_judged_by_three_parts(numbers: tuple[float, ...], verdict: str, parts: tuple[str, ...]) -> None:
    measured = displaced(runs(*numbers), gap=0.1)
    assert judge_displaced(measured) == verdict
    assert tuple(answers(measured).values()) == parts


def test_runs_of_other_settings_and_runs_whose_loss_rose_do_not_count() -> None:
    good, other = runs(0.5, -1.0, 0.4, 0.1), runs(0.0, 1.0, 0.0, 0.4, optimizer="adam")
    rising = [run | {"seed": run["seed"] + 6} for run in runs(0.0, 1.0, 0.0, 0.4, falls=False)]
    measured = displaced([*good, *other, *rising], gap=0.1)
    assert measured == displaced(good, gap=0.1)
    assert measured.runs == 6


def test_too_few_runs_and_too_like_a_control_are_inconclusive() -> None:
    good = runs(0.5, -1.0, 0.4, 0.1)
    assert judge_displaced(displaced(good, gap=0.049)) == "inconclusive"
    assert judge_displaced(displaced(good[:10], gap=0.1)) == "holds"
    assert judge_displaced(displaced(good[:8], gap=0.1)) == "inconclusive"
    # A similar run without its control does not count for the difference.
    assert judge_displaced(displaced([run for run in good if run["role"] == "similar" or run["seed"] < 4], gap=0.1)) == "inconclusive"


def first_steps(order: float, share: float, squeezing: float) -> list[dict[str, Any]]:
    cells = [(stage, role) for stage in ("sft", "base") for role in ("similar", "opposite", "control")]
    return [
        {"stage": stage, "role": role, "seed": seed, "order": order + noise, "order_random": 0.2}
        | {"share": share + noise, "share_squeezing": squeezing}
        for seed, noise in enumerate(NOISE)
        for stage, role in cells
    ]


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ((0.5, 0.6, 0.2), "holds"),
        ((0.1, 0.6, 0.2), "fails"),
        ((0.5, 0.1, 0.5), "fails"),
        ((0.2, 0.6, 0.2), "inconclusive"),
        ((0.5, 0.2, 0.2), "inconclusive"),
    ],
)
def test_the_order_of_gains_is_judged_against_random_pairs_and_against_squeezing(numbers: tuple[float, ...], verdict: str) -> None:
    assert judge_ordered(ordered(first_steps(*numbers))) == verdict


def test_a_seed_that_lacks_a_cell_and_too_few_seeds_do_not_decide() -> None:
    rows = first_steps(0.5, 0.6, 0.2)
    assert ordered(rows[:-1]).order.n == 5
    assert judge_ordered(ordered([row for row in rows if row["seed"] < 4])) == "inconclusive"
    assert judge_ordered(ordered([])) == "inconclusive"
