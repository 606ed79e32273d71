"""B-E1 and B-E1b on records whose verdict is known, and what the report and the command make of paper B."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from interp import Model, ModelPair, UserError
from interp.bundled import BUNDLED
from interp.cli import app
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.fingerprint import fingerprint
from interp.experiments.registry import EXPERIMENTS, find_experiments
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.runs.logs import BUNDLED_LOGS
from tests.answers import answering_folder, answering_model
from tests.experiments.displacement.test_single_token_rules import NOISE, first_steps, runs

MASS = {"preferred": [0.8, 0.3], "dispreferred": [0.05, 0.0], "similar": [0.05, 0.05], "opposite": [0.05, 0.6], "rest": [0.05, 0.05]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return answering_model(Path(tmp_path_factory.mktemp("answering")), seed=3)


def record_of(model: Model, **numbers: tuple[float, float, float, float]) -> dict[str, Any]:
    """A record of the study in which runs have the numbers given (`fall`, `change`, `opposite`, `control` under `paper`)."""
    tokens = {word: model.tokenizer.encode(f" {word}")[0] for word in ("Yes", "No", "Never", "Maybe")}
    answers = [
        {"role": role, "preferred": one, "dispreferred": other, "tokens": [tokens[one], tokens[other]], "sets": {}}
        for role, one, other in (("similar", "No", "Never"), ("opposite", "Yes", "No"), ("control", "No", "Maybe"))
    ]
    row = {
        "steps": [0, 100], "mass": MASS, "integral": {"opposite": 0.3}, "argmax": {"token": " I", "mass": [0.1, 0.2]},
        "entanglement": {"0": 0.5, "100": 1.5}, "gaining": {"5": [["f**k", 0.2], [" yes", 0.1]]},
    }  # fmt: skip
    preferred = {"start": 0.8, "end": 0.3, "change": -0.5, "drawdown": 0.5}
    every = [
        run | row | {"preferred": preferred | run["preferred"], "rise": {"similar": 0.0} | run["rise"]} for run in runs(*numbers["paper"])
    ]
    steps = [
        step | {"order_orthogonal": 0.4, "order_squeezing": 0.1, "share_chance": 0.05, "argmax_first": True, "entanglement": 0.3}
        for step in first_steps(0.5, 0.6, 0.2)
    ]
    return {
        "base": model.digest, "model": "tiny", "settings": {"steps": 100}, "answers": answers, "learning_rates": {"sft": 1e-5}, "sft": [],
        "runs": every, "first_steps": steps, "missing": {"runs/x": "no rate"},
    }  # fmt: skip


def context_of(model: Model, record: dict[str, Any], folder: Path) -> DisplacementContext:
    folder.mkdir(exist_ok=True)
    write_json(folder / "single_token.json", record)
    return DisplacementContext(ModelPair(model, model), folder)


@pytest.fixture
def similar(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The similar pair's cosine is well above the control's, whatever the random model has."""
    monkeypatch.setattr("interp.experiments.displacement.b_e1_single_token.cosine_gap", lambda context, record: 0.2)


@pytest.mark.usefixtures("similar")
def test_planted_displacement_holds_and_its_absence_fails(model: Model, tmp_path: Path) -> None:
    displaced = run_experiment(EXPERIMENTS["B-E1"], context_of(model, record_of(model, paper=(0.5, -1.0, 0.4, 0.1)), tmp_path))
    assert displaced.verdict == "holds"
    assert "ended below its start" in displaced.sentence
    assert displaced.statistic["largest fall of the preferred answer"] == pytest.approx(0.5)
    assert displaced.null["rise of the opposite meaning"] == pytest.approx(0.1)
    assert set(displaced.tables) == {"cells", "curves", "tokens that gain", "learning rates", "not run"}
    risen = run_experiment(EXPERIMENTS["B-E1"], context_of(model, record_of(model, paper=(0.5, 1.0, 0.4, 0.1)), tmp_path))
    assert risen.verdict == "fails"
    assert "ended above its start" in risen.sentence


@pytest.mark.usefixtures("similar")
def test_tables_are_means_over_the_runs_whose_loss_falls(model: Model, tmp_path: Path) -> None:
    record = record_of(model, paper=(0.5, -1.0, 0.4, 0.1))
    record["runs"][0]["falls"] = False
    tables = run_experiment(EXPERIMENTS["B-E1"], context_of(model, record, tmp_path)).tables
    cells = tables["cells"].set_index("role")
    assert (cells.loc["similar", "runs"], cells.loc["similar", "left out"], cells.loc["control", "left out"]) == (5, 1, 0)
    assert cells.loc["similar", "fell by"] == pytest.approx(0.5 + sum(NOISE[1:]) / 5)
    curves = tables["curves"].set_index(["role", "set", "step"])
    assert curves.loc[("similar", "opposite", 100), "probability"] == pytest.approx(0.6)
    gaining = tables["tokens that gain"].set_index(["role", "token"])
    assert gaining.loc[("control", "f**k"), "runs"] == 6


def test_the_order_of_gains_is_judged_with_the_geometry_beside_it(model: Model, tmp_path: Path) -> None:
    result = run_experiment(EXPERIMENTS["B-E1b"], context_of(model, record_of(model, paper=(0.5, -1.0, 0.4, 0.1)), tmp_path))
    assert result.verdict == "holds"
    geometry = result.tables["geometry"]
    lengths = (geometry["along"] ** 2 + geometry["orthogonal"] ** 2) ** 0.5
    rows = model.unembedding.double()
    for length, (one, other) in zip(lengths, (("No", "Never"), ("Yes", "No"), ("No", "Maybe")), strict=True):
        tokens = [model.tokenizer.encode(f" {word}")[0] for word in (one, other)]
        assert length == pytest.approx((rows[tokens[0]] - rows[tokens[1]]).norm().item())


def test_runs_of_another_base_are_not_read_and_other_runs_make_another_result(model: Model, tmp_path: Path) -> None:
    record = record_of(model, paper=(0.5, -1.0, 0.4, 0.1))
    context = context_of(model, record, tmp_path)
    before = fingerprint(EXPERIMENTS["B-E1"], context)
    assert before == fingerprint(EXPERIMENTS["B-E1"], context_of(model, record, tmp_path))
    record["runs"][0]["log_change"] = -3.0
    assert fingerprint(EXPERIMENTS["B-E1"], context_of(model, record, tmp_path)) != before
    with pytest.raises(UserError, match="no study of one-token answers of this base model"):
        run_experiment(EXPERIMENTS["B-E1"], context_of(model, record | {"base": "another"}, tmp_path))


def test_a_report_is_of_paper_a_unless_another_is_asked_for() -> None:
    of_b = [item.id for item in find_experiments(None, ["b"])]
    assert of_b[:2] == ["B-E1", "B-E1b"]
    assert {item.paper for item in find_experiments(None)} == {"A"}
    assert {item.id[0] for item in find_experiments(None)} == {"A", "X", "W", "Y"}
    both = [item.id for item in find_experiments(None, ["A", "B"])]
    assert sorted(both) == sorted([*of_b, *(item.id for item in find_experiments(None))])
    assert both.index("A-E14") < both.index("B-E1") < both.index("B-E1b") < both.index("X-C1")
    assert [item.id for item in find_experiments(["b-c1", "A-E8"])] == ["A-E8", "B-E1", "B-E5"]
    assert [item.id for item in find_experiments(["B-C1", "A-E8"], ["A"])] == ["A-E8"]
    with pytest.raises(UserError, match="B-E1 is not of paper A"):
        find_experiments(["B-E1"], ["A"])
    with pytest.raises(UserError, match="there is no paper D"):
        find_experiments(None, ["D"])


def test_the_command_reports_paper_b_with_its_verdicts_and_says_how_to_repeat_it(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = record_of(model, paper=(0.5, 1.0, 0.4, 0.1))
    folders = [str(answering_folder(tmp_path / f"model-{seed}", seed)) for seed in (3, 4)]
    (tmp_path / "logs").mkdir()
    write_json(tmp_path / "logs" / "single_token.json", record)
    words = ["report", "--paper", "B", "--pair", *folders, "--logs", "logs", "--scorer", "lexicon", "--second-scorer", "none", "--out", "r"]
    ran = CliRunner().invoke(app, [*words, "--json"])
    assert ran.exit_code == 0, ran.output
    shown = json.loads(ran.stdout)
    assert [item["id"] for item in shown["experiments"]][:2] == ["B-E1", "B-E1b"]
    assert all(item["id"].startswith("B-") for item in shown["experiments"])
    page = (tmp_path / "r" / "index.html").read_text(encoding="utf-8")
    assert "--paper B" in page
    assert "--logs logs" in page
    (tmp_path / "empty").mkdir()
    without = CliRunner().invoke(app, [*words[:-1], "s", "--only", "B-E1", "--logs", "empty"])
    assert without.exit_code == 2
    assert "python -m training.studies.displacement single-token" in without.stderr


def test_the_study_that_ships_is_of_the_base_that_ships_and_gives_the_verdicts_of_the_findings() -> None:
    pair = ModelPair.bundled()
    record = json.loads((BUNDLED / "log" / "single_token.json").read_text(encoding="utf-8"))
    assert record["base"] == pair.base.digest
    # Runs that diverged, in a cell on which no verdict rests.
    assert all(",sgd,opposite," in name for name in record["missing"])
    context = DisplacementContext(pair, logs=BUNDLED_LOGS)
    results = {id: EXPERIMENTS[id].run(context) for id in ("B-E1", "B-E1b")}
    assert {id: result.verdict for id, result in results.items()} == {"B-E1": "fails", "B-E1b": "inconclusive"}
    findings = (Path(__file__).parents[3] / "docs" / "findings.md").read_text(encoding="utf-8")
    fall = results["B-E1"].statistic["largest fall of the preferred answer"]
    assert f"largest fall within a run {fall:.3f}" in findings
    low, high = (f"{end:.3f}".replace("-", "\u2212") for end in results["B-E1"].interval["largest fall of the preferred answer"])
    assert f"({low} to {high})" in findings
