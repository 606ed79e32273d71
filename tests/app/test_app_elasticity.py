"""The page Elasticity: what it draws is what `bypass undo` measured, and a visitor's run is the visitor's own, can be ended and goes on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

from app import settings
from app.answers import elasticity
from app.answers import elasticity_runs as runs
from app.jobs import Job, Runner
from app.settings import parse_pair
from interp import ModelPair, UserError
from interp.elasticity.undo import UndoRecord
from interp.elasticity.undo_cells import cells_of, dose_frame
from interp.elasticity.undo_page import LIMITS, curve_figures, render, shown_cells, write_undo
from interp.elasticity.undo_verdict import judge
from interp.results.result import plain
from interp.workbench import Sides
from tests.app.app_pages import html_of, open_page
from tests.app.test_app_jobs import eventually, over
from tests.elasticity.records import ATTACK, arms, record, run


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for own in list(runs._runs.values()):
        runs.forget(own)


def texts(content: bytes = b"the stone sings\nthe stone sings\na river\n", **changes: Any) -> runs.Question:
    pair = os.environ.get("BYPASS_PAIR")
    defaults: dict[str, Any] = {"arms": ("opposite", "neutral"), "steps": (1, 5, 10), "rates": (1e-4,), "prompts": 50}
    return runs.Question(parse_pair(pair) if pair else None, "your texts.txt", content, **{**defaults, **changes})


def measured() -> UndoRecord:
    return record(*arms([0.3, 0.8, 1.0], [0.1, 0.4, 0.6], [0.0, 0.0, -0.1], kl_neutral=0.03, kl_opposite=0.2))


def fill(own: runs.OwnRun, example: UndoRecord, minutes: float = 3.0) -> None:
    """Write what a run of the command leaves in its folder while it goes on."""
    place = own.out / "runs" / "key"
    (place / "runs").mkdir(parents=True)
    for name, side in (("base", example.base), ("tuned", example.tuned)):
        (place / f"{name}.json").write_text(json.dumps({"measurement": plain(side.to_json()), "seconds": 1.0}))
    (place / "plan.json").write_text(json.dumps({"lines": ["arm opposite: the *shit* texts", "2 runs"], "minutes": minutes}))
    for one in plain(example.to_json())["runs"]:
        (place / "runs" / f"{one['arm']}-{one['seed']}.json").write_text(json.dumps(one))


def lines_in(spec: dict[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    return {line["name"]: (list(line["x"]), list(line["y"])) for line in spec["data"]}


def test_the_run_that_ships_is_of_the_pair_that_ships_and_holds_no_text() -> None:
    result = elasticity.shipped()
    assert result is not None
    assert elasticity.is_of(result, Sides(None).both())
    assert set(result.curves.attacks) == {"all weights at rate 1e-05", "all weights at rate 0.0001"}
    assert set(result.curves.doses["arm"]) == {"opposite", "neutral", "same"}
    assert set(result.curves.doses["seeds"]) == {1}
    assert "one order of the texts (one seed)" in elasticity.scope(result)
    assert result.limits == LIMITS
    # The attack that is shown first is the one that the verdict speaks of.
    assert f"with {elasticity.strongest(result.curves)}, the strongest of 2 attacks tried" in " ".join(result.sentences)
    texts_of = json.loads(elasticity.SHIPPED.read_text("utf-8"))["about"]["texts"]
    assert all(value is None or len(value) == 24 for value in texts_of.values())


def test_a_run_of_other_models_is_not_taken_for_one_of_this_pair(pair: ModelPair) -> None:
    result = elasticity.shipped()
    assert result is not None
    assert not elasticity.is_of(result, pair)


def test_a_summary_has_the_curves_of_the_record_that_it_was_written_from(tmp_path: Path) -> None:
    example = measured()
    verdict = judge(example, "x.txt", "toxicity")
    write_undo(example, verdict, tmp_path, render(example, verdict, file="x.txt", behaviour="toxicity", command="bypass undo"))
    result, live = elasticity.outcome_in(tmp_path / "undo.json"), elasticity.curves_of(example, "toxicity")
    assert result.sentences == verdict.sentences
    expected = dose_frame(cells_of(example))
    for name in ("score", "share undone", "share low", "share high", "KL to base", "steps"):
        assert np.allclose(result.curves.doses[name].astype(float), expected[name].astype(float))
    drawn = curve_figures(example, cells_of(example), "toxicity")
    for curves in (result.curves, live):
        assert elasticity.strongest(curves) == ATTACK.name == shown_cells(cells_of(example))[0].attack.name
        for figure, page_figure in zip(elasticity.figures_of(curves, ATTACK.name), drawn, strict=False):
            ours, theirs = lines_in(figure.spec), lines_in(page_figure.spec)
            assert ours.keys() == theirs.keys() == {"opposite", "neutral", "same", "base", "tuned"}
            for name, (x, y) in ours.items():
                assert np.allclose(x, theirs[name][0])
                assert np.allclose(y, theirs[name][1])
    behaviour = lines_in(elasticity.figures_of(live, ATTACK.name)[0].spec)
    assert np.allclose(behaviour["base"][1], example.base.score.mean())
    assert np.allclose(behaviour["tuned"][1], example.tuned.score.mean())
    with pytest.raises(UserError, match="no runs with"):
        elasticity.figures_of(live, "<b>")


def test_a_summary_of_an_earlier_version_is_refused_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "undo.json").write_text('{"doses": [], "sides": []}')
    with pytest.raises(UserError, match="bypass undo"):
        elasticity.outcome_in(tmp_path / "undo.json")


def test_each_visitor_has_a_folder_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "KEPT", 2)
    first, second = runs.begin(texts()), runs.begin(texts())
    assert first.token != second.token
    assert first.folder != second.folder
    assert first.texts == 2
    assert [file.name for file in first.folder.iterdir()] == ["your texts.txt"]
    third = runs.begin(texts())
    assert [runs.find(one.token) for one in (first, second, third)] == [None, second, third]
    assert not first.folder.exists()
    runs.forget(third)
    assert not third.folder.exists()
    assert runs.find("../../etc") is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"content": b"x" * 2_000_001}, "up to 2,000,000 are read here"), ({"steps": ()}, "no dose"), ({"rates": ()}, "no learning rate"),
        ({"arms": ("opposite", "pretraining")}, "not among those"), ({"steps": (10_000,)}, "not among those"),
        ({"content": b"\n"}, "your texts.txt"), ({"name": "your texts.json", "content": b"{"}, "your texts.json"),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_asked_is_an_error_without_a_path_of_this_machine(changes: dict[str, Any], said: str) -> None:
    question = texts()
    with pytest.raises(UserError) as raised:
        runs.begin(runs.Question(**{**question.__dict__, **changes}))
    assert said in str(raised.value)
    assert raised.value.fix
    assert "bypass-undo-" not in str(raised.value)
    assert not runs._runs


def test_only_the_ending_of_a_name_is_used_and_visitors_may_give_less(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs.uploaded("../../etc/mine.JSONL", b"x") == ("your texts.jsonl", b"x")
    with pytest.raises(UserError, match="kind of file"):
        runs.uploaded("texts.pkl", b"x")
    monkeypatch.setenv(settings.DEMO, "1")
    assert settings.limits().undo_minutes < settings.ALONE.undo_minutes
    with pytest.raises(UserError, match="200,000"):
        runs.begin(texts(b"x" * 200_001))


def test_the_command_asks_what_the_visitor_asked(served: Path) -> None:
    own = runs.begin(texts(rates=(1e-5, 1e-4)))
    words = runs.command(own, ["--plan"])
    assert words[1:4] == ["-m", "interp.cli", "undo"]
    source = own.question.source
    assert source is not None
    assert words[4:7] == ["--pair", *source]
    options = dict(zip(words[7:-1:2], words[8:-1:2], strict=True))
    assert (options["--arms"], options["--doses"], options["--lr"]) == ("opposite,neutral", "8,40,80", "1e-05,0.0001")
    assert (options["--limit"], options["--seeds"], options["--out"], words[-1]) == ("50", "1", str(own.out), "--plan")
    assert Path(options["--texts"]).read_bytes() == own.question.content


def started(own: runs.OwnRun, monkeypatch: pytest.MonkeyPatch, script: str, work: Callable[..., bool] = runs.train) -> tuple[Runner, Job]:
    """A job of a run whose command is this script."""
    monkeypatch.setattr(runs, "command", lambda run, options=(): [sys.executable, "-c", script])
    line = Runner()
    monkeypatch.setattr(runs, "line", line)
    return line, line.start(runs.train_key(own), "a run", lambda step: work(own, step))


def test_cancelling_ends_the_process_and_keeps_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    own = runs.begin(texts())
    fill(own, record(run("opposite", [0.2], [0.1])))
    begun = own.folder / "begun"
    line, job = started(own, monkeypatch, f"import time; open({str(begun)!r}, 'w').close(); time.sleep(600)")
    eventually(begun.exists)
    (process,) = runs._processes
    line.cancel(job.key)
    assert over(job).state == "cancelled"
    assert process.returncode is not None
    assert not runs._processes
    assert runs.measured(own) == 1
    assert runs.find(own.token) is own


def test_forgetting_ends_the_process_and_removes_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    own = runs.begin(texts())
    begun = own.folder / "begun"
    _, job = started(own, monkeypatch, f"import time; open({str(begun)!r}, 'w').close(); time.sleep(600)")
    eventually(begun.exists)
    runs.forget(own)
    over(job)
    assert not own.folder.exists()


def test_an_error_of_the_command_is_its_sentence_and_a_fault_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    own = runs.begin(texts())
    file = str(own.folder / "your texts.txt")
    said = f"bypass: {file} has no text. Fix: write one."
    _, job = started(own, monkeypatch, f"import sys; print('bypass: a note'); print({said!r}, file=sys.stderr); sys.exit(2)")
    assert over(job).state == "failed"
    assert job.problem is not None
    assert (job.problem.problem, job.problem.fix) == ("your texts.txt has no text", "write one")
    _, job = started(own, monkeypatch, "raise ValueError('secret')")
    assert over(job).problem is not None
    assert "secret" not in str(job.problem)


def planned(own: runs.OwnRun) -> None:
    """The plan of a run, as if the command had made it."""
    job = runs.line.start(runs.plan_key(own), "a plan", lambda step: True)
    assert over(job).state == "done"


def test_the_page_draws_the_run_that_ships_and_offers_a_form(served: Path) -> None:
    at = open_page("elasticity")
    assert not at.exception
    assert not at.error
    result = elasticity.shipped()
    assert result is not None
    figures = [json.loads(element.proto.spec) for element in at.get("plotly_chart")]
    expected = elasticity.figures_of(result.curves, elasticity.strongest(result.curves))
    assert [lines_in(figure) for figure in figures] == [lines_in(figure.spec) for figure in expected]
    assert any("other models than the pair" in info.value for info in at.info)
    assert [button.label for button in at.button if button.label == "Make the plan"]
    assert "Fragile" in at.markdown[0].value


def test_a_run_that_was_cancelled_shows_its_curves_and_goes_on(served: Path) -> None:
    own = runs.begin(texts())
    fill(own, record(run("opposite", [0.3, 0.6], [0.1, 0.12]), run("neutral", [0.1], [0.09])))
    planned(own)
    at = open_page("elasticity", undo=own.token)
    assert not at.exception
    assert not at.error
    labels = [button.label for button in at.button]
    assert "Go on: about 90 s left" in labels
    said = "\n".join(element.value for element in at.markdown)
    assert "sh\\*t" in said
    assert "opposite: undone at step 5" in html_of(at)
    assert len(at.get("plotly_chart")) == 4
    at.button(key="another").click().run()
    assert runs.find(own.token) is None
    assert "Make the plan" in [button.label for button in at.button]


def test_a_plan_that_costs_too_much_is_not_offered(served: Path) -> None:
    own = runs.begin(texts())
    fill(own, record(), minutes=1 + settings.limits().undo_minutes)
    planned(own)
    at = open_page("elasticity", undo=own.token)
    assert not at.exception
    assert "fewer doses" in at.warning[0].value
    assert not [button.label for button in at.button if button.label.startswith("Train")]
