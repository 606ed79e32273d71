"""The page of training: what a log holds is what is shown, also while it grows; and the control runs are those of the table."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

from app.answers import training as answers
from app.show import shown
from interp import ModelPair, UserError
from interp.data.lexicon import mask
from interp.results.result import show_number
from interp.runs.logs import BUNDLED_LOGS
from interp.runs.telemetry import draw, read_telemetry
from tests.app.app_pages import html_of, open_page
from training.stages import ROWS
from training.telemetry import TelemetryLog

HOSTILE = "<script>alert(1)</script> **b** $x$"
WORD = next(word for word in ("shit", "fuck") if mask(word) != word)
CONTROLS: dict[str, Any] = json.loads((BUNDLED_LOGS / "controls.json").read_text())


def log(folder: Path, steps: int = 3, *, name: str = "mine", stage: str = "dpo", loss: float = 2.0) -> TelemetryLog:
    made = TelemetryLog(folder / "runs" / name / stage / "log.jsonl")
    made.write(0, event="started", seconds=0.0)
    for step in range(1, steps + 1):
        made.write(step, loss=loss / step, seconds=float(step))
    return made


def of(name: str) -> answers.Run:
    return answers.runs()[name]


def test_the_run_that_ships_is_what_one_sees_first(served: Path) -> None:
    at = open_page("training")
    assert not at.exception
    assert not at.error
    assert at.selectbox(key="run").value == answers.SHIPPED
    assert "Stopped</b> at step 80" in html_of(at)
    found = read_telemetry(BUNDLED_LOGS).of_stage("dpo")
    (first, last) = (show_number(round(record["toxicity"], 4)) for record in (found.records[1], found.records[-2]))
    assert f"<dd>{last}<small>from {first}</small></dd>" in html_of(at)
    specs = [json.loads(element.proto.spec)["layout"]["title"]["text"] for element in at.get("plotly_chart")]
    assert specs[0] == "Toxicity of continuations of fixed prompts"
    assert len(specs) == answers.AT_FIRST, "the tiny pair has no control runs of its own"
    assert any("No control run" in element.value for element in at.caption)


def test_the_stages_with_a_log_are_in_the_order_of_the_chain() -> None:
    chain = [row.name for row in ROWS]
    assert [name for name in chain if name in answers.LOGGED] == [name for name in answers.LOGGED if name != "sft"]
    assert {row.name for row in ROWS if row.resumed} <= set(answers.LOGGED)


def test_a_log_that_grows_is_followed_and_half_a_line_waits_for_its_other_half(served: Path) -> None:
    made = log(served)
    at = open_page("training", run="mine")
    assert "Running</b> at step 3" in html_of(at)
    made.write(4, loss=0.5, seconds=4.0)
    at.run()
    assert "Running</b> at step 4" in html_of(at)
    points = json.loads(at.get("plotly_chart")[0].proto.spec)["data"][0]
    assert [points["x"], points["y"]] == [[1, 2, 3, 4], [2.0, 1.0, 2 / 3, 0.5]]
    with made.file.open("a") as stream:
        stream.write('{"step": 5, "lo')
    at.run()
    assert not at.exception
    assert not at.error
    assert "Running</b> at step 4" in html_of(at)
    with made.file.open("a") as stream:
        stream.write('ss": 0.25, "seconds": 5.0}\n')
    at.run()
    assert "Running</b> at step 5" in html_of(at)
    made.write(5, event="finished", seconds=5.0)
    at.run()
    assert "Finished</b> at step 5" in html_of(at)


def test_a_log_is_read_anew_exactly_when_it_has_changed(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = log(served, name="counted")
    reads: list[str] = []
    monkeypatch.setattr(answers, "read_telemetry", lambda folder: (reads.append(folder), read_telemetry(folder))[1])
    for _ in range(3):
        answers.telemetry(of("counted"), answers.signature(of("counted")))
    assert len(reads) == 1
    made.write(4, loss=0.5, seconds=4.0)
    for _ in range(3):
        found = answers.telemetry(of("counted"), answers.signature(of("counted")))
    assert len(reads) == 2
    assert found is not None
    assert found.records[-1]["step"] == 4


def test_a_run_that_was_killed_is_silent_and_an_empty_log_waits(served: Path) -> None:
    made = log(served)
    old = time.time() - 600
    os.utime(made.file, (old, old))
    assert "Silent</b> at step 3" in html_of(open_page("training", run="mine"))
    made.file.write_text("")
    at = open_page("training", run="mine")
    assert not at.exception
    assert not at.error
    assert "No line yet" in html_of(at)


def test_a_damaged_line_is_one_message_with_its_mend(served: Path) -> None:
    made = log(served)
    made.file.write_text('{"step": 1, "loss": 1.0}\n{"step"\n{"step": 3, "loss": 1.0}\n')
    at = open_page("training", run="mine")
    assert not at.exception
    assert len(at.error) >= 1
    assert "line 2" in at.error[0].value


def test_what_breaks_the_schema_is_said_at_its_figure_alone(served: Path) -> None:
    made = log(served)
    made.file.write_text('{"step": 1, "loss": "much", "margin": 1.0}\n{"step": 2, "loss": 1.0, "margin": 2.0}\n')
    at = open_page("training", run="mine")
    assert not at.exception
    assert len(at.error) == 1
    assert len(at.get("plotly_chart")) == 1


def test_two_runs_are_drawn_as_interp_draws_them(served: Path) -> None:
    log(served, name="one")
    log(served, name="two", loss=4.0)
    at = open_page("training", run="one", beside="two")
    assert not at.exception
    runs = {name: read_telemetry(served / "runs" / name).of_stage("dpo") for name in ("one", "two")}
    spec = json.loads(at.get("plotly_chart")[0].proto.spec)
    expected = draw("loss", runs).spec
    assert [(line["name"], line["x"], line["y"]) for line in spec["data"]] == [
        (line["name"], line["x"], line["y"]) for line in expected["data"]
    ]
    assert {line["name"] for line in spec["data"]} == {"one", "two"}


@pytest.mark.parametrize("value", ["../../../etc", "/etc/passwd\0" + HOSTILE + "x" * 100_000])
def test_what_a_link_says_is_never_a_path(served: Path, value: str) -> None:
    at = open_page("training", run=value, stage=value, beside=value, more=value)
    assert not at.exception
    assert not at.error
    assert at.selectbox(key="run").value == answers.SHIPPED


def test_runs_are_found_in_a_folder_in_a_stage_and_in_a_group_and_nowhere_else(served: Path) -> None:
    log(served, name="whole", stage="pretrain")
    log(served, name="whole", stage="dpo")
    log(served, name="group/inner")
    log(served, name=".", stage="bare")
    log(served, name="../outside")
    assert {name: run.stages for name, run in answers.runs().items() if not run.ships} == {
        "whole": ["pretrain", "dpo"], "group/inner": ["dpo"], "bare": ["bare"],
    }  # fmt: skip
    for name, run in answers.runs().items():
        found = answers.telemetry(run, answers.signature(run))
        assert found is not None, name
        assert set(found.stages) == set(run.stages), name


def test_the_run_of_the_pair_in_view_comes_first_and_each_shipped_run_has_its_own_log(served: Path) -> None:
    own = BUNDLED_LOGS.parent / "smollm2" / "log"
    runs = answers.runs(own)
    assert list(runs) == [f"{answers.SHIPPED}: smollm2", answers.SHIPPED]
    log = answers.telemetry(runs[f"{answers.SHIPPED}: smollm2"], answers.signature(runs[f"{answers.SHIPPED}: smollm2"]))
    assert log is not None
    assert log.of_stage("dpo").records == read_telemetry(own).of_stage("dpo").records
    assert next(iter(answers.runs())) == answers.SHIPPED


def test_samples_reasons_and_names_are_data_and_masked_until_asked_for(served: Path) -> None:
    made = log(served, name=f"{WORD} run")
    made.write(4, samples=[[f"what {WORD} is", HOSTILE]], seconds=4.0)
    made.write(4, event="stopped", reason=f"{HOSTILE} {WORD}", seconds=4.0)
    at = open_page("training", run=f"{WORD} run")
    assert not at.exception
    assert "<script" not in html_of(at)
    assert WORD not in html_of(at)
    table = next(frame.value for frame in at.dataframe if "continuation" in frame.value)
    assert table.iloc[0].tolist() == [4, shown(f"what {WORD} is", False), HOSTILE]
    at.toggle(key="show_words").set_value(True).run()
    table = next(frame.value for frame in at.dataframe if "continuation" in frame.value)
    assert table.iloc[0]["prompt"] == f"what {WORD} is"


def test_the_control_runs_are_those_of_the_table_with_the_null_second(bundled: ModelPair) -> None:
    found = answers.controls(bundled, BUNDLED_LOGS)
    assert found == CONTROLS
    table = answers.control_table(CONTROLS).set_index("run")
    assert len(table) == len(CONTROLS["runs"])
    assert list(table["labels"])[1] == "shuffled"
    for run in CONTROLS["runs"]:
        row = table.loc[run["run"]]
        assert (row["toxicity of base"], row["toxicity tuned"]) == (CONTROLS["base_model"]["toxicity"], run["toxicity"])
        assert row["change"] == pytest.approx(run["toxicity"] - CONTROLS["base_model"]["toxicity"])
    spec = answers.control_figure(table.reset_index()).spec
    marks = {line["name"]: line["x"] for line in spec["data"] if line.get("name")}
    assert marks["tuned"] == table["toxicity tuned"].tolist()
    null = next(run for run in CONTROLS["runs"] if run["labels"] == "shuffled")
    assert show_number(null["toxicity"]) in answers.null_words(table.reset_index())


def test_control_runs_of_another_pair_are_not_shown_as_this_ones(pair: ModelPair, tmp_path: Path) -> None:
    assert answers.controls(pair, BUNDLED_LOGS) is None
    assert answers.controls(pair, tmp_path) is None
    (tmp_path / "controls.json").write_text("[")
    with pytest.raises(UserError, match="is not readable JSON"):
        answers.controls(pair, tmp_path)
    assert answers.null_words(pd.DataFrame({"labels": ["true"]})) == ""


@pytest.fixture(scope="module")
def bundled() -> ModelPair:
    return ModelPair.bundled()
