"""The rules of B-E6 and B-E7 on draws whose numbers are known, and the experiments on a record of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interp import Model, ModelPair, UserError
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.displacement.filtered_rules import (
    MATCHED,
    NAMED,
    NONE,
    TOXICITY,
    beside_random,
    carried,
    filtered,
    judge_carried,
    judge_filtered,
)
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.runs.logs import BUNDLED_LOGS, read_filtered_tuning
from tests import ROOT

# By how much the values of five draws differ.
NOISE = (-0.004, -0.002, 0.0, 0.002, 0.004)


def record_of(
    *, toxicity: float = 0.0, back: float = 0.0, keys: float = 0.0, kl: float = -0.01, start: float = 0.5, after: float = 0.3,
    named: float = 0.5, matched: float = 0.1, change: float = -2.0, draws: int = 5,
) -> dict[str, Any]:  # fmt: skip
    """Draws in which the influence filter ends by these amounts above two random halves, of which the first alone is attacked.

    The toxic neurons carry `named` of the fall of rejected answers, equally active ones `matched`.
    """
    rows = []
    for seed, noise in enumerate(NOISE[:draws]):
        held_out = {"chosen": 0.1, "margin": 0.5}
        attacked = {"after toxic": {"toxicity": 0.4, "kl": 0.06}, "after neutral": {"toxicity": 0.35, "kl": 0.05}}
        common = {"steps": 27, "toxicity": after + noise, "unaligned": 0.4, "kl": 0.05, "held_out": held_out}
        whole, other = {name: value for name, value in common.items() if name != "steps"}, common | attacked
        kept = {"toxicity": after + toxicity + noise, "unaligned": 0.4 + keys + noise, "kl": 0.05 + kl + noise / 4}
        arms = [
            {"arm": "all", "steps": 54} | whole,
            {"arm": "influence"} | other | kept | {"after toxic": {"toxicity": 0.4 + back + noise, "kl": 0.06}},
            {"arm": "worst"} | other, {"arm": "ches"} | other,
            {"arm": "random"} | other | {"toxicity": after - 0.05}, {"arm": "random"} | common | {"toxicity": after + 0.05},
        ]  # fmt: skip
        left = {NAMED: named + 5 * noise, f"{MATCHED} 0": matched + 0.1, f"{MATCHED} 1": matched - 0.1, "all neurons": 0.7}
        neurons = {name: {"rejected": change * (1 - share), "chosen": 0.5 * (1 - share)} for name, share in ({NONE: 0.0} | left).items()}
        rows.append({"seed": seed, "shares": {}, "arms": arms, "neurons": neurons})
    return {"rows": rows, "settings": {"neurons": 128}, "source": {}, "base_model": {"toxicity": start, "unaligned": 0.55}}


@pytest.mark.parametrize(
    ("study", "verdict"),
    [
        (record_of(), "holds"),
        (record_of(toxicity=0.06), "fails"),
        (record_of(back=0.06), "fails"),
        (record_of(keys=0.06), "fails"),
        (record_of(kl=0.01), "fails"),
        (record_of(toxicity=0.03), "inconclusive"),
        (record_of(kl=0.0), "inconclusive"),
        (record_of(toxicity=-0.1), "holds"),
        (record_of(toxicity=0.06, start=0.35), "inconclusive"),
        (record_of(draws=4), "inconclusive"),
    ],
)
def test_the_filter_must_detoxify_as_well_and_move_the_model_less(study: dict[str, Any], verdict: str) -> None:
    assert judge_filtered(filtered(study)) == verdict


@pytest.mark.parametrize(
    ("study", "verdict"),
    [
        (record_of(), "holds"),
        (record_of(named=0.1), "fails"),
        (record_of(matched=0.7), "fails"),
        (record_of(named=0.2), "inconclusive"),
        (record_of(matched=0.5), "inconclusive"),
        (record_of(change=2.0), "inconclusive"),
        (record_of(draws=4), "inconclusive"),
    ],
)
def test_named_neurons_must_carry_a_fifth_and_more_than_equally_active_ones(study: dict[str, Any], verdict: str) -> None:
    assert judge_carried(carried(study)) == verdict


def test_random_halves_are_compared_as_far_as_they_were_measured() -> None:
    numbers = filtered(record_of(toxicity=0.02, back=0.01))
    # Of toxicity the mean of both halves counts, after the attack the first half alone.
    assert numbers.toxicity.value == pytest.approx(0.02)
    assert numbers.back.value == pytest.approx(0.01)
    assert numbers.removed.value == pytest.approx(0.4)
    assert carried(record_of()).lead.value == pytest.approx(0.4)
    with pytest.raises(UserError, match="no draw that is whole"):
        filtered(record_of() | {"rows": []})


def test_the_experiments_say_what_the_draws_say(gpt2: Model, tmp_path: Path) -> None:
    write_json(tmp_path / "filtered_tuning.json", record_of() | {"base": gpt2.digest})
    context = DisplacementContext(ModelPair(gpt2, gpt2), tmp_path)
    result = run_experiment(EXPERIMENTS["B-E6"], context)
    assert result.verdict == "holds"
    assert "moved less from its base (KL -0.01" in result.sentence
    assert "were neither clearly less nor more toxic (difference " in result.sentence
    assert next(iter(result.statistic)) == "toxicity, minus random halves"
    table = result.tables["arms"].set_index("trained on")
    assert table.loc["random half", "toxicity"] == pytest.approx(0.3)
    assert table.loc["nothing (base)", "with toxic keys enlarged"] == 0.55
    other = run_experiment(EXPERIMENTS["B-E7"], context)
    assert other.verdict == "holds"
    assert "When the 128 neurons nearest to the probe keep the base's activations, 50% (48% to 52%) of the fall" in other.sentence
    assert other.null["share that toxic neurons carry"] == pytest.approx(0.1)
    assert "more than with equally active neurons" in other.sentence
    groups = other.tables["groups"]
    assert groups.loc[groups["answers"] == "rejected", "share"].round(6).tolist() == [0.5, 0.1, 0.7]
    # Of a change within chance there is no share.
    unsure = record_of()
    for place, row in enumerate(unsure["rows"]):
        for values in row["neurons"].values():
            values["chosen"] *= (-1) ** place
    write_json(tmp_path / "filtered_tuning.json", unsure | {"base": gpt2.digest})
    other = run_experiment(EXPERIMENTS["B-E7"], context)
    assert other.tables["groups"]["share"].isna().tolist() == [False] * 3 + [True] * 3
    assert "nats, which is within chance" in other.summary
    write_json(tmp_path / "filtered_tuning.json", record_of(kl=0.01) | {"base": gpt2.digest})
    # What is refuted leads.
    assert next(iter(run_experiment(EXPERIMENTS["B-E6"], context).statistic)) == "KL to the base, minus random halves"
    write_json(tmp_path / "filtered_tuning.json", record_of() | {"base": "another"})
    with pytest.raises(UserError, match="filtered_tuning makes it"):
        EXPERIMENTS["B-E7"].run(context)


def test_the_study_that_ships_gives_the_verdicts_and_the_numbers_of_the_findings() -> None:
    record = read_filtered_tuning(BUNDLED_LOGS, ModelPair.bundled().base)
    numbers, of_neurons = filtered(record), carried(record)
    assert (judge_filtered(numbers), judge_carried(of_neurons)) == ("fails", "fails")
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    worst = beside_random(record["rows"], "worst", TOXICITY)
    low, back, kl = numbers.toxicity, numbers.back, numbers.kl
    for words in (
        f"KL {kl.value:.3f} ({kl.low:.3f} to {kl.high:.3f}) nats above", f"cleaner by {-low.value:.3f} ({-low.high:.3f} to {-low.low:.3f})",
        f"it is {back.value:.3f} ({back.low:.3f} to {back.high:.3f}) more toxic",
        f"detoxifies less, by {worst.value:.3f} ({worst.low:.3f} to {worst.high:.3f})",
        f"{100 * of_neurons.share.value:.0f} % ({100 * of_neurons.share.low:.0f} to {100 * of_neurons.share.high:.0f}) of the fall is gone",
    ):  # fmt: skip
        assert words in page, words
