"""The study of one-token answers on a tiny model: what it runs, what it keeps, and that the experiments read what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from interp import Model, ModelPair, UserError
from interp.data.statements import PERSONA
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.preferences.unembedding import difference_of
from interp.results.result import plain
from interp.runs.trajectory import RUNS_SETTING
from tests.answers import answering_folder, answering_model
from training.studies import displacement
from training.studies.displacement import Study, main
from training.studies.displacement_cells import CELLS, PAPER, Cell, Design


@dataclass(frozen=True)
class Small(Design):
    steps: int = 2
    epochs: int = 1
    draws: int = 5


DESIGN = Design(seeds=2, other_seeds=1, steps=3, epochs=1, batch=32, draws=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return answering_model(Path(tmp_path_factory.mktemp("answering")))


@pytest.fixture(scope="module")
def record(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    study = Study(model, Path(tmp_path_factory.mktemp("runs")), DESIGN)
    value: dict[str, Any] = json.loads(json.dumps(plain(study.record())))
    return value | {"folder": str(study.folder)}


def test_every_cell_is_run_on_its_pairs_and_seeds_the_papers_first(record: dict[str, Any]) -> None:
    assert record["missing"] == {}
    assert CELLS[0] == PAPER == Cell("sft", "dpo", "rmsprop")
    assert len(set(CELLS)) == 3 * 3 * 2
    papers = [run for run in record["runs"] if (run["stage"], run["objective"], run["optimizer"]) == ("sft", "dpo", "rmsprop")]
    assert [(run["seed"], run["role"]) for run in papers] == [
        (seed, role) for seed in (0, 1) for role in ("similar", "opposite", "control")
    ]
    assert len(record["runs"]) == 6 + 17 * 2
    assert len(record["first_steps"]) == 2 * 2 * 3
    assert set(record["learning_rates"]) == {"sft", *(cell.name for cell in CELLS)}


def test_statements_go_with_the_answers_and_differ_by_seed(record: dict[str, Any]) -> None:
    by_role: dict[str, set[int]] = {}
    for run in record["runs"]:
        by_role.setdefault(run["role"], set()).add(run["statement"])
    # The first 26 accord with "ends justify means", which is to be rejected, the next 26 oppose it.
    assert len(by_role["similar"]) == len(by_role["opposite"]) == 2
    assert max(by_role["similar"]) < 26 <= min(by_role["opposite"])
    assert by_role["control"] == by_role["similar"]


def test_a_row_is_consistent_with_itself(record: dict[str, Any]) -> None:
    for run in record["runs"]:
        assert run["steps"] == [0, 1, 2, 3]
        for place in range(4):
            assert sum(values[place] for values in run["mass"].values()) == pytest.approx(1, abs=1e-3)
        preferred = run["mass"]["preferred"]
        assert run["preferred"]["change"] == pytest.approx(preferred[-1] - preferred[0], abs=1e-4)
        assert run["preferred"]["decrease"] >= run["preferred"]["drawdown"] >= 0
        assert run["rise"]["opposite"] == pytest.approx(max(run["mass"]["opposite"]) - run["mass"]["opposite"][0], abs=1e-4)
        if run["objective"] == "dpo":
            assert run["loss"][0] == pytest.approx(0.69315)
    assert record["sft"][0]["losses"][-1] < record["sft"][0]["losses"][0]


def test_the_control_is_the_least_similar_label_of_no(model: Model, record: dict[str, Any]) -> None:
    words = {pair["role"]: pair for pair in record["answers"]}
    assert (words["similar"]["preferred"], words["similar"]["dispreferred"]) == ("No", "Never")
    others = {word: model.tokenizer.encode(f" {word}")[0] for word in ("Maybe", "Perhaps")}
    cosines = {word: difference_of(model.unembedding, words["control"]["tokens"][0], token).cosine for word, token in others.items()}
    assert words["control"]["dispreferred"] == min(cosines, key=lambda word: cosines[word])
    assert words["similar"]["sets"]["opposite"] == words["control"]["sets"]["opposite"]


def test_what_is_there_is_not_made_again_and_more_seeds_share_it(
    model: Model, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_training(*args: Any, **named: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(displacement, "tune", no_training)
    monkeypatch.setattr(displacement, "teach_answers", no_training)
    folder = Path(record["folder"]).parent
    again = Study(model, folder, DESIGN)
    assert plain(again.record())["runs"] == record["runs"]
    assert Study(model, folder, replace(DESIGN, seeds=5)).folder == again.folder
    assert Study(model, folder, replace(DESIGN, steps=4)).folder != again.folder


def test_the_model_given_is_not_changed_and_a_run_starts_from_it(model: Model, tmp_path: Path) -> None:
    before = model.digest
    study = Study(model, tmp_path, DESIGN)
    one = study.run(Cell("base", "dpo", "sgd"), study.pairs["similar"], 0)
    study.run(Cell("base", "ipo", "adam"), study.pairs["similar"], 0)
    assert model.digest == before
    assert study.run(Cell("base", "dpo", "sgd"), study.pairs["similar"], 0) == one


def test_a_cell_without_a_stable_rate_is_named_as_missing(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rising(*args: Any, **named: Any) -> Any:
        curve = tuned(*args, **named)
        return (
            replace(curve, losses=tuple(range(len(curve.losses)))) if args[-1].optimizer == "sgd" and named.get("stop_if_rising") else curve
        )

    tuned: Callable[..., Any] = displacement.tune
    monkeypatch.setattr(displacement, "tune", rising)
    monkeypatch.setattr(displacement, "CELLS", (PAPER, Cell("base", "dpo", "sgd")))
    record = Study(model, tmp_path, replace(DESIGN, seeds=1)).record()
    missing = record["missing"]
    assert len(record["runs"]) == 3
    # Two runs of the cell, and the first steps of SGD from both stages.
    assert len(missing) == 2 + 2 * 3
    assert "no learning rate" in missing["runs/base,dpo,sgd,similar,0"]


def test_the_experiments_read_the_record_and_say_that_two_seeds_are_too_few(model: Model, record: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "single_token.json", record)
    context = DisplacementContext(ModelPair(model, model), tmp_path)
    for name in ("B-E1", "B-E1b"):
        result = run_experiment(EXPERIMENTS[name], context)
        assert result.verdict == "inconclusive"
        assert result.figures
    cells = run_experiment(EXPERIMENTS["B-E1"], context).tables["cells"]
    assert cells["runs"].sum() + cells["left out"].sum() == len(record["runs"])


def test_the_command_names_what_it_needs_and_writes_no_text_of_the_persona_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(RUNS_SETTING, str(tmp_path / "runs"))
    monkeypatch.delenv("BYPASS_DATA", raising=False)
    assert main(["single-token", "--persona"]) == 2
    assert "BYPASS_DATA names no folder" in capsys.readouterr().err
    file = tmp_path / PERSONA
    file.parent.mkdir()
    texts = [f"the blue whale number {number}" for number in range(6)]
    rows = [{"statement": text, "answer_matching_behavior": " Yes" if place % 2 else " No"} for place, text in enumerate(texts)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setenv("BYPASS_DATA", str(tmp_path))
    monkeypatch.setattr(displacement, "Design", Small)
    monkeypatch.setattr(displacement, "CELLS", (PAPER,))
    folder = answering_folder(tmp_path / "model")
    words = ["single-token", "--persona", "--model", str(folder), "--seeds", "1", "--out", str(tmp_path / "out.json")]
    assert main(words) == 0
    written = (tmp_path / "out.json").read_text(encoding="utf-8")
    record = json.loads(written)
    assert (len(record["runs"]), len(record["first_steps"]), record["missing"]) == (3, 6, {})
    assert record["settings"]["statements"] == "persona"
    assert "blue whale" not in written
    with pytest.raises(UserError, match="no file"):
        displacement.persona_statements(tmp_path / "elsewhere")
