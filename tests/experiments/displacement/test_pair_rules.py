"""The rules of B-E2, B-E4 and B-E5 on numbers whose verdict is known, in both directions and at their bounds."""

from __future__ import annotations

from typing import Any

import pytest

from interp.experiments.displacement.pair_rules import (
    B_E2,
    B_E4,
    B_E5,
    cured,
    displacers,
    held_out,
    rank_of,
    ranked,
    verdict_of,
)

SOURCES = ("own", "hh", "paradetox")
# By how much the three runs of a source differ.
NOISE = (-0.003, 0.0, 0.003)
SCORES = (
    "ches", "ln_ches", "alpha_ches", "edit_similarity", "last_hidden", "length_difference", "minus_length", "logp_chosen", "own",
    "own_sign", "total", "total_sign",
)  # fmt: skip
ARMS = {"all": -0.01, "influence": 0.03, "worst": -0.04, "ches": 0.0, "ln_ches": 0.0, "length": 0.0, "edit": 0.0}
SHARES = {"own_negative": 0.0, "total_negative": 0.4, "influence_negative": 0.5, "largest_entanglement": 0.9, "conservation_error": 1e-7,
          "fell_in_epoch": 0.4, "fell_alone": 0.0}  # fmt: skip


def changed(value: float) -> dict[str, float]:
    return {"chosen": 20 * value, "chosen_per_token": value, "rejected": -1.0, "margin": 1 + value, "fell": 0.3, "accuracy": 0.9}


def ranks_of(known: dict[str, float | None], partial: float, noise: float) -> dict[str, Any]:
    """The rank correlations of a run; a score without one has the same value for all pairs."""
    plain = {name: known.get(name, 0.0) for name in SCORES}
    return {
        name: {"plain": None if value is None else value + noise * (1 + place), "given_length": partial + noise}
        for place, (name, value) in enumerate(plain.items())
    }


def arm(name: str, change: float, toxicity: float | None) -> dict[str, Any]:
    behaviour = {} if toxicity is None else {"toxicity": toxicity, "distinct_2": 0.3, "kl": 0.01}
    return {"arm": name, "pairs": 32, "steps": 4, "held_out": changed(change), "like": {"n_chosen": 9.0}} | behaviour


def filter_rows(
    ranks: dict[str, float | None] | None = None, partial: float = 0.5, arms: dict[str, float] | None = None, **of_source: float
) -> list[dict[str, Any]]:
    """Nine runs; `ranks` by score, `arms` by name above random halves (at -0.02), which `of_source` scales in one source."""
    rows = []
    for source in SOURCES:
        for seed, noise in enumerate(NOISE):
            correlations = ranks_of({"own": 0.2, "total": 0.8, **(ranks or {})}, partial, noise)
            effects, scale = {**ARMS, **(arms or {})}, of_source.get(source, 1.0)
            drawn = [
                arm(name, -0.02 + effect * scale + noise * (place + 1) / 2, 0.4 + noise)
                for place, (name, effect) in enumerate(effects.items())
            ]
            drawn += [arm("random", -0.024, 0.42), arm("random", -0.016, None)]
            head = {"source": source, "seed": seed, "rate": 1e-5, "shares": SHARES}
            rows.append(head | {"correlations": {"epoch": correlations, "alone": correlations}, "arms": drawn})
    return rows


def rank_rows(ranks: dict[str, float | None], partial: float = 0.5) -> list[dict[str, Any]]:
    """Nine runs with rank correlations of the scores that need no gradient."""
    rows = []
    for row in filter_rows(ranks, partial):
        known = {name: value for name, value in row["correlations"]["epoch"].items() if not name.startswith(("own", "total"))}
        head = {"source": row["source"], "seed": row["seed"], "rate": row["rate"]}
        rows.append(head | {"correlations": {"epoch": known}, "trained": changed(-0.01), "like": {"n_chosen": 9.0}})
    return rows


def loss_rows(dpo: float, sft: float, **of_source: float) -> list[dict[str, Any]]:
    """Nine runs that end at these changes of held-out chosen answers; `of_source` scales them in one source."""
    ends = {"dpo": dpo, "dpo+sft": sft, "ipo": dpo, "dpop": 0.0, "cal-dpo": 0.0, "dpo-shift": dpo / 2}
    return [
        {"source": source, "seed": seed, "rate": 1e-5, "losses": [
            {"loss": name, "toxicity": 0.4, "distinct_2": 0.3, "kl": 0.01, "course": [
                {"step": step, "loss_before": 0.7, **changed(share * (end * of_source.get(source, 1.0) + noise * (place + 1) / 2))}
                for step, share in ((4, 0.5), (8, 1.0))
            ]} for place, (name, end) in enumerate(ends.items())
        ]}
        for source in SOURCES for seed, noise in enumerate(NOISE)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ranks", "partial", "verdict", "answers"),
    [
        ({"ches": 0.6}, 0.5, "holds", ("yes", "yes", "yes")),
        # A random order.
        ({"ches": 0.0}, 0.0, "fails", ("no", "no", "open")),
        # By the lengths alone, which do as well.
        ({"ches": 0.6, "length_difference": 0.7}, 0.5, "fails", ("yes", "yes", "no")),
        ({"ches": 0.6}, 0.05, "fails", ("yes", "no", "yes")),
        # Just above the bound, with runs that differ by as little as its distance.
        ({"ches": 0.2}, 0.5, "inconclusive", ("open", "yes", "yes")),
        # A score that is the same for all pairs of a source ranks nothing.
        ({"ches": 0.6, "length_difference": None}, 0.5, "holds", ("yes", "yes", "yes")),
    ],
)
def test_a_ranking_is_judged_against_chance_lengths_and_rivals(
    ranks: dict[str, float | None], partial: float, verdict: str, answers: tuple[str, ...]
) -> None:
    rows = rank_rows(ranks, partial)
    measured = ranked(rows)
    assert tuple(part.answer for part in measured.parts) == answers
    assert verdict_of(measured.parts, rows, B_E2) == verdict


def test_a_score_of_one_value_ranks_nothing() -> None:
    row = filter_rows({"length_difference": None, "ches": 0.6})[1]
    assert rank_of(row, "length_difference") == 0
    assert rank_of(row, "ches") == 0.6


@pytest.mark.parametrize(
    ("ranks", "arms", "verdict", "answers"),
    [
        ({}, {}, "holds", ("yes", "yes", "yes", "yes")),
        ({"own": 0.9}, {}, "fails", ("no", "yes", "yes", "yes")),
        ({}, {"influence": 0.0}, "fails", ("yes", "no", "yes", "open")),
        ({}, {"influence": -0.02}, "fails", ("yes", "no", "yes", "no")),
        ({}, {"worst": 0.0}, "fails", ("yes", "yes", "no", "yes")),
        # A filter that needs no model is better.
        ({}, {"length": 0.06}, "fails", ("yes", "yes", "yes", "no")),
        ({}, {"length": 0.03}, "inconclusive", ("yes", "yes", "yes", "open")),
    ],
)
def test_who_displaces_whom_is_judged_by_four_parts(
    ranks: dict[str, float | None], arms: dict[str, float], verdict: str, answers: tuple[str, ...]
) -> None:
    rows = filter_rows(ranks, arms=arms)
    measured = displacers(rows)
    assert tuple(part.answer for part in measured.parts) == answers
    assert verdict_of(measured.parts, rows, B_E4) == verdict


def test_one_source_of_the_opposite_sign_keeps_a_claim_open() -> None:
    rows = filter_rows(arms={"influence": 0.06}, hh=-0.05)
    measured = displacers(rows)
    assert measured.gain.by_source["hh"] < 0 < measured.gain.by_source["own"]
    assert measured.gain.answer == "open"
    assert verdict_of(measured.parts, rows, B_E4) == "inconclusive"


def test_runs_of_sources_that_differ_are_no_independent_evidence() -> None:
    # In each source the filter does something for certain, by very different amounts.
    rows = filter_rows(arms={"influence": 0.06}, own=0.05, hh=1.0, paradetox=1.2)
    measured = displacers(rows)
    assert [part.answer_1 for part in measured.parts] == ["yes", "yes", "yes", "yes"]
    assert verdict_of(measured.parts, rows, B_E4, version=1) == "holds"
    assert measured.gain.over_sources.n == 3
    assert measured.gain.over_sources.low < 0 < measured.gain.mean.low
    assert measured.gain.answer == "open"
    assert verdict_of(measured.parts, rows, B_E4) == "inconclusive"


def test_a_filter_that_is_not_possible_keeps_pairs_at_random() -> None:
    row = filter_rows()[0]
    row["arms"] = [item for item in row["arms"] if item["arm"] != "length"]
    assert held_out(row, "length") == held_out(row, "random") == pytest.approx(-0.02)


@pytest.mark.parametrize(
    ("dpo", "sft", "verdict", "answers"),
    [
        (-0.03, 0.02, "holds", ("yes", "yes")),
        (0.03, 0.06, "fails", ("no", "yes")),
        (-0.03, -0.03, "fails", ("yes", "no")),
        (0.0, 0.05, "inconclusive", ("open", "yes")),
    ],
)
def test_losses_are_judged_by_the_fall_and_by_the_cure(dpo: float, sft: float, verdict: str, answers: tuple[str, ...]) -> None:
    rows = loss_rows(dpo, sft)
    measured = cured(rows)
    assert tuple(part.answer for part in measured.parts) == answers
    assert verdict_of(measured.parts, rows, B_E5) == verdict
    assert measured.fall.mean.value == pytest.approx(-dpo, abs=1e-9)


def test_too_few_runs_and_too_few_sources_are_inconclusive() -> None:
    rows = filter_rows()
    assert verdict_of(displacers(rows[:8]).parts, rows[:8], B_E4) == "inconclusive"
    two = [row for row in rows if row["source"] != "hh"] * 2
    assert verdict_of(displacers(two).parts, two, B_E4) == "inconclusive"
    assert verdict_of(ranked([]).parts, [], B_E2) == "inconclusive"
    assert verdict_of(cured([]).parts, [], B_E5) == "inconclusive"
