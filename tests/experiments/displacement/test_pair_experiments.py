"""B-E2, B-E4 and B-E5 on a record whose verdicts are known: what they say, and what they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from interp import Model, ModelPair, UserError
from interp.experiments.displacement.b_e2_ranking import CHES
from interp.experiments.displacement.b_e4_filters import GAIN, LEAD
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.displacement.pair_rules import displacers
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.runs.logs import BUNDLED_LOGS
from tests.experiments.displacement.test_pair_rules import SOURCES, filter_rows, loss_rows, rank_rows


def context_of(model: Model, folder: Path, **rows: Any) -> DisplacementContext:
    head = {
        "base": model.digest,
        "settings": {"trained": 64},
        "sources": [],
        "base_model": {"toxicity": 0.45, "distinct_2": 0.3, "kl": 0.0},
    }
    write_json(folder / "preference_pairs.json", head | {"ranks": [], "filters": [], "losses": []} | rows)
    return DisplacementContext(ModelPair(model, model), folder)


@pytest.fixture
def context(gpt2: Model, tmp_path: Path) -> DisplacementContext:
    ranks = rank_rows({"ches": 0.6})
    return context_of(gpt2, tmp_path, ranks=ranks, filters=filter_rows(), losses=loss_rows(-0.03, 0.02))


@pytest.mark.parametrize(
    ("id", "words"),
    [
        ("B-E2", ("0.6", "edit similarity")),
        ("B-E4", ("ended higher than after a random half", "more than by the best other filter")),
        ("B-E5", ("fell (change -0.03", "ended higher by 0.05")),
    ],
)
def test_an_experiment_gives_its_verdict_with_a_null_and_an_interval_for_each_number(
    context: DisplacementContext, id: str, words: tuple[str, ...]
) -> None:
    result = run_experiment(EXPERIMENTS[id], context)
    assert result.verdict == "holds"
    assert result.statistic.keys() == result.null.keys() == result.interval.keys()
    assert all(low < result.statistic[name] < high for name, (low, high) in result.interval.items())
    assert all(word in result.sentence for word in words), result.sentence
    assert result.figures
    assert not any(table.empty for table in result.tables.values())


def test_rows_that_were_not_measured_are_asked_for(gpt2: Model, tmp_path: Path) -> None:
    context = context_of(gpt2, tmp_path, filters=filter_rows())
    with pytest.raises(UserError, match="has no losses") as error:
        EXPERIMENTS["B-E5"].run(context)
    assert "pairs --kinds losses" in error.value.fix
    assert run_experiment(EXPERIMENTS["B-E4"], context).verdict == "holds"


def test_scores_that_need_gradients_come_from_the_filters_where_these_were_measured(
    gpt2: Model, context: DisplacementContext, tmp_path: Path
) -> None:
    table = run_experiment(EXPERIMENTS["B-E2"], context).tables["ranks"].set_index("score")
    assert table.loc["CHES", "fall in the epoch"] == pytest.approx(0.6)
    assert table.loc["total", "fall in the epoch"] == pytest.approx(0.8)
    alone = run_experiment(EXPERIMENTS["B-E2"], context_of(gpt2, tmp_path, ranks=rank_rows({"ches": 0.6})))
    assert alone.verdict == "holds"
    assert set(table.index) - set(alone.tables["ranks"]["score"]) == {"own", "own (sign)", "total", "total (sign)"}


def test_losses_that_a_study_does_not_have_are_left_out(gpt2: Model, tmp_path: Path) -> None:
    rows = [row | {"losses": [item for item in row["losses"] if item["loss"] in ("dpo", "dpo+sft")]} for row in loss_rows(-0.03, 0.02)]
    result = run_experiment(EXPERIMENTS["B-E5"], context_of(gpt2, tmp_path, losses=rows))
    assert result.verdict == "holds"
    assert result.tables["losses"]["loss"].tolist() == ["DPO", "DPO with an SFT term"]
    assert "IPO" not in result.summary


def test_a_study_of_another_base_is_not_read(gpt2: Model, context: DisplacementContext, tmp_path: Path) -> None:
    write_json(tmp_path / "preference_pairs.json", {"base": "another"})
    with pytest.raises(UserError, match="no study of preference pairs of this base model") as error:
        EXPERIMENTS["B-E4"].run(context)
    assert "displacement pairs" in error.value.fix


def test_a_result_depends_on_the_record(context: DisplacementContext, tmp_path: Path) -> None:
    before = context.optional_data()["preference-pairs"]()
    write_json(tmp_path / "preference_pairs.json", {"base": "another"})
    assert context.optional_data()["preference-pairs"]() != before


def test_the_filter_table_has_the_difference_from_random_halves(context: DisplacementContext) -> None:
    tables = run_experiment(EXPERIMENTS["B-E4"], context).tables
    rows = tables["filters"].set_index("trained on")
    assert rows.loc["highest influence", "chosen minus random, per token"] == pytest.approx(0.03, abs=1e-9)
    assert rows.loc["random half", "chosen minus random, per token"] == 0
    behaviour = tables["behaviour"].set_index("trained on")
    assert behaviour.loc["highest influence", "toxicity of continuations"] == pytest.approx(0.4)
    assert behaviour.loc["highest influence", "toxicity of continuations, minus random"].startswith("-0.02 [")


def test_the_study_that_ships_is_of_the_base_that_ships_and_gives_the_verdicts_of_the_findings() -> None:
    pair = ModelPair.bundled()
    record = json.loads((BUNDLED_LOGS / "preference_pairs.json").read_text(encoding="utf-8"))
    assert record["base"] == pair.base.digest
    for kind in ("ranks", "filters"):
        assert {(row["source"], row["seed"]) for row in record[kind]} == {(source, seed) for source in SOURCES for seed in range(3)}
    context = DisplacementContext(pair, logs=BUNDLED_LOGS)
    results = {id: EXPERIMENTS[id].run(context) for id in ("B-E2", "B-E4")}
    assert {id: result.verdict for id, result in results.items()} == {"B-E2": "inconclusive", "B-E4": "inconclusive"}
    assert {id: result.earlier for id, result in results.items()} == {"B-E2": {1: "inconclusive"}, "B-E4": {1: "holds"}}
    findings = " ".join((Path(__file__).parents[3] / "docs" / "findings.md").read_text(encoding="utf-8").split())
    for id, key, digits in (("B-E2", CHES, 2), ("B-E4", GAIN, 3), ("B-E4", LEAD, 3)):
        low, high = (f"{end:.{digits}f}".replace("-", "\u2212") for end in results[id].interval[key])
        assert f"{results[id].statistic[key]:.{digits}f} ({low} to {high})" in findings
    assert "(B-E2) | inconclusive" in findings
    assert "(B-E4) | inconclusive" in findings
    gain = displacers(record["filters"]).gain.over_sources
    assert f"{gain.value:.3f} (\u2212{-gain.low:.3f} to {gain.high:.3f})" in findings
