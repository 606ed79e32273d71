"""The page of evidence on the tiny pair: what a report says is what is shown, and a run in the app adds to a report and spoils none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

from app.answers import evidence as answers
from app.answers.reports import digests_of, find_report
from app.jobs import Cancelled, runner
from app.show import escaped
from interp import ModelPair, UserError
from interp.data.lexicon import mask
from interp.experiments.registry import EXPERIMENTS, Finding, experiment, find_experiments
from interp.experiments.toxicity.context import ToxicityContext
from interp.report.page import read_report, write_report
from interp.report.prompt_sets import PromptSet, without_texts
from interp.results import figures
from interp.results.judged import Judged
from interp.results.result import Result
from tests.app.app_pages import html_of, open_page

HOSTILE = "<script>alert(1)</script> **b** $x$ :red[y] 🙂"
WORD = next(word for word in ("shit", "fuck") if mask(word) != word)


def quiet(phrase: str, done: int, total: int) -> None:
    """A step that nobody watches."""


def result(name: str = "A-E1", title: str = "A title", **changes: Any) -> Result:
    frame = pd.DataFrame({"model": ["base", "tuned"], "toxicity": [0.5, 0.25], "word": [WORD, "flower"], "both": [[WORD, "a"], ["b"]]})
    figure = figures.bars("toxicity", frame, x="word", y="toxicity", title="Mean toxicity", caption=f"Look at {WORD}.")
    given: dict[str, Any] = {
        "id": name, "claim": name.replace("E", "C"), "title": title, "question": "A question?", "criterion": "A criterion.",
        "verdict": "fails", "summary": "It fails.",
        "statistic": {"share": 0.4, "ratio": 2.0}, "null": {"share": 0.1}, "interval": {"share": (0.3, 0.5)},
        "tables": {"models": frame}, "figures": (figure,), "refuted_by": "Nothing.", "caveat": "None.", "settings": {"seed": 3},
        "seconds": 2.0,
    }  # fmt: skip
    return Result(**given | changes)


def report(folder: Path, pair: ModelPair, *results: Result) -> Path:
    write_report(results or (result(),), pair.manifest(), {}, folder)
    return folder


@pytest.fixture
def cheap() -> Iterator[list[str]]:
    """Three experiments that cost nothing, in place of all; gives the ids of those that were run."""
    ran: list[str] = []
    registered = dict(EXPERIMENTS)
    EXPERIMENTS.clear()
    for name in ("A-E1", "A-E2", "A-E3"):

        @experiment(
            name, claim="A-C1", title=f"Title {name}", question=f"Question {name}?", criterion="c", refuted_by=f"Refuter {name}", caveat="v"
        )
        def run(context: ToxicityContext, name: str = name) -> Finding:
            ran.append(name)
            context.say("half way")
            if name == "A-E3":
                raise UserError("these models have no gates", "give others")
            return Finding("holds", "s", {"prompts": float(len(context.prompts))}, {}, {}, {}, ())

    yield ran
    # In the order of registration, which is the order that a report shows.
    EXPERIMENTS.clear()
    EXPERIMENTS.update(registered)


# What is shown


def test_an_exploratory_verdict_says_so_and_every_version_of_its_criterion_is_a_row() -> None:
    versions = (Judged(1, "2026-01-02", "First.", "r", "", "holds"), Judged(2, "", "Second.", "r", "Seen before.", "fails"))
    judged = result(criteria=versions)
    assert answers.verdict_of(judged) == "✗ Fails (exploratory)"
    assert answers.verdict_of(result(criteria=versions[:1], settings={"quick": True})) == "✗ Fails (quick)"
    assert answers.verdict_of(result(criteria=versions, settings={"quick": True})) == "✗ Fails (quick, exploratory)"
    assert answers.versions_of(judged).to_numpy().tolist() == [
        [1, "2026-01-02", "✓ Holds", "First.", "no"],
        [2, "–", "✗ Fails", "Second.", "Seen before."],
    ]


def test_a_verdict_on_other_prompts_stands_beside_its_experiment_and_beside_no_other(served: Path, pair: ModelPair) -> None:
    elsewhere = without_texts(result(verdict="holds", sentence=f"There it {HOSTILE} comes back."))
    sets = (PromptSet("the paper's challenge prompts", 400, (elsewhere,), {}),)
    write_report((result(), result("A-E2", "Another")), pair.manifest(), {}, served / "report", prompt_sets=sets)
    at = open_page("evidence")
    assert not at.exception
    line = f"<dt>On the paper&#x27;s challenge prompts (400)</dt><dd>✓ Holds. There it {escaped(HOSTILE)} comes back.</dd>"
    assert line in html_of(at)
    at.selectbox[0].select_index(1).run()
    assert "Another" in [item.value for item in at.subheader]
    assert "(400)" not in html_of(at)


def test_without_a_report_the_page_says_what_will_be_asked_and_offers_to_run_it(served: Path) -> None:
    at = open_page("evidence")
    assert not at.exception
    assert not at.error
    page = html_of(at)
    assert page.count("<article>") == len(find_experiments(None))
    assert all(escaped(item.criterion.refuted_by) in page for item in find_experiments(None))
    assert [button.label for button in at.button if button.label.startswith("Run ")] == [f"Run {len(find_experiments(None))} experiments"]


def test_the_table_and_the_effects_hold_what_the_report_holds(served: Path, pair: ModelPair) -> None:
    report(served / "report", pair, result(), result("A-E2", "Another", verdict="holds", statistic={}, null={}, interval={}))
    at = open_page("evidence")
    assert not at.exception
    assert not at.error
    frame = at.dataframe[0].value
    assert frame.iloc[0].tolist() == ["A-C1", "✗ Fails", "A title", "40 %", "10 %", "30 % to 50 %", "share", "A-E1"]
    assert frame.iloc[1].tolist() == ["A-C2", "✓ Holds", "Another", "–", "–", "–", "–", "A-E2"]
    page = html_of(at)
    assert "<dt>✗ Fails</dt><dd>1</dd>" in page
    assert "<dt>✓ Holds</dt><dd>1</dd>" in page
    assert "<dt>? Inconclusive</dt><dd>0</dd>" in page
    assert "<td>40 %</td><td>10 %</td><td>30 % to 50 %</td>" in page
    assert "<td>2</td><td>–</td><td>–</td>" in page
    assert at.get("plotly_chart")
    assert "Nothing." in page


def test_a_link_opens_an_experiment_and_a_wrong_one_the_first(served: Path, pair: ModelPair) -> None:
    report(served / "report", pair, result(), result("A-E2", "Another"))
    assert "Another" in [element.value for element in open_page("evidence", experiment="A-E2").subheader]
    for wrong in ("../../etc/passwd", HOSTILE + "\0" + "x" * 100_000):
        at = open_page("evidence", experiment=wrong)
        assert not at.exception
        assert not at.error
        assert [element.value for element in at.subheader] == ["A title"]
        assert "experiment" not in at.query_params


def test_a_choice_is_kept_in_the_link_by_its_id_alone(served: Path, pair: ModelPair) -> None:
    report(served / "report", pair, result(), result("A-E2", "Another"))
    at = open_page("evidence")
    at.selectbox(key="chosen_experiment").set_value("A-E2").run()
    assert at.query_params["experiment"] in ("A-E2", ["A-E2"])
    assert [element.value for element in at.subheader] == ["Another"]


def test_words_are_masked_in_tables_lists_figures_and_titles_until_asked_for(served: Path, pair: ModelPair) -> None:
    report(served / "report", pair, result(title=f"What {WORD} does", summary=f"{WORD} {HOSTILE}"))

    def everything() -> str:
        shown = [html_of(at), *(str(frame.value.values.tolist()) for frame in at.dataframe), *(element.value for element in at.caption)]
        shown += [element.proto.spec for element in at.get("plotly_chart")] + [element.value for element in at.subheader]
        return "\n".join([*shown, *map(str, at.selectbox(key="chosen_experiment").options)])

    at = open_page("evidence")
    assert WORD not in everything()
    assert mask(WORD) in everything()
    assert "<script" not in html_of(at)
    assert "&lt;script&gt;alert(1)" in html_of(at)
    at.toggle(key="show_words").set_value(True).run()
    assert WORD in everything()


def test_the_command_repeats_the_experiment_as_it_was_made_without_touching_the_report(served: Path, pair: ModelPair) -> None:
    report(served / "report", pair, result(settings={"seed": 3, "quick": True}))
    at = open_page("evidence")
    command = at.code[0].value
    assert command.startswith("bypass report --pair ")
    assert command.endswith("--only A-E1 --quick --seed 3 --out again-A-E1")


@pytest.mark.parametrize("text", ["{", "[]", '{"pair": {}}', '{"pair": {}, "environment": {}, "experiments": [3]}'])
def test_a_damaged_report_is_one_message(served: Path, text: str) -> None:
    (served / "report").mkdir()
    (served / "report" / "report.json").write_text(text)
    at = open_page("evidence")
    assert not at.exception
    assert len(at.error) == 1
    assert "bypass report" in at.error[0].value


def test_the_report_of_another_pair_is_named_and_not_shown_as_this_ones(served: Path, pair: ModelPair) -> None:
    other = report(served / "report", ModelPair(pair.tuned, pair.base, "some other pair"))
    at = open_page("evidence")
    assert "some other pair" in at.info[-1].value.replace("\\", "")
    assert not at.dataframe
    assert find_report(digests_of(pair)).folder.parent.parent == other.relative_to(served)


def test_visitors_cannot_run_anything_and_see_no_folder(served: Path, pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    report(served / "report", pair)
    monkeypatch.setenv("BYPASS_DEMO", "1")
    at = open_page("evidence")
    assert not at.exception
    assert not at.error
    assert not [button for button in at.button if button.label.startswith("Run ")]
    assert not at.multiselect
    assert [element.value for element in at.code] == [
        "bypass report --pair BASE TUNED --only A-E1 --seed 3 --out again-A-E1", "bypass report --pair BASE TUNED",
    ]  # fmt: skip


# What is run


def test_a_run_adds_to_the_report_and_leaves_what_is_there_as_it_was(served: Path, pair: ModelPair, cheap: list[str]) -> None:
    folder = report(served / "report", pair, result(title="Made with other settings"), result("Z-9", "Somebody's own"))
    before = {item["id"]: item for item in json.loads((folder / "report.json").read_text())["experiments"]}
    assert answers.run_missing(pair, None, folder, ["A-E2", "A-E3"], True, quiet) == ("A-E2",)
    after = {item["id"]: item for item in json.loads((folder / "report.json").read_text())["experiments"]}
    assert list(after) == ["A-E1", "A-E2", "Z-9"]
    assert all(after[name] == before[name] for name in before)
    assert cheap == ["A-E2", "A-E3"]
    assert after["A-E2"]["settings"]["quick"] is True
    assert answers.left_out(read_report(folder)) == {"A-E3": "these models have no gates. Fix: give others."}
    assert (folder / "index.html").is_file()


def test_a_cancelled_run_keeps_what_is_done_and_the_next_goes_on_from_there(served: Path, pair: ModelPair, cheap: list[str]) -> None:
    def stop(phrase: str, done: int, total: int) -> None:
        if phrase.startswith("Title A-E2"):
            raise Cancelled

    folder = served / "report"
    with pytest.raises(Cancelled):
        answers.run_missing(pair, None, folder, ["A-E1", "A-E2"], True, stop)
    assert [one.id for one in read_report(folder).results] == ["A-E1"]
    assert cheap == ["A-E1"]
    (folder / "report.json").unlink()
    answers.run_missing(pair, None, folder, ["A-E1", "A-E2"], True, quiet)
    assert cheap == ["A-E1", "A-E2"], "the first was kept, not run again"
    assert [one.id for one in read_report(folder).results] == ["A-E1", "A-E2"]


def test_the_report_of_another_pair_or_of_several_seeds_is_never_written_over(served: Path, pair: ModelPair, cheap: list[str]) -> None:
    folder = report(served / "report", ModelPair(pair.tuned, pair.base, "other"))
    text = (folder / "report.json").read_text()
    with pytest.raises(UserError, match="another pair"):
        answers.run_missing(pair, None, folder, ["A-E1"], True, quiet)
    assert (folder / "report.json").read_text() == text
    own = report(served / "own", pair)
    record = json.loads((own / "report.json").read_text()) | {"seeds": {"seeds": [0, 1], "experiments": []}}
    (own / "report.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="several seeds"):
        answers.run_missing(pair, None, own, ["A-E2"], True, quiet)
    assert json.loads((own / "report.json").read_text()) == record


def test_nothing_that_can_be_run_and_a_folder_that_cannot_be_written_are_said_in_a_sentence(
    served: Path, pair: ModelPair, cheap: list[str]
) -> None:
    with pytest.raises(UserError, match="no gates"):
        answers.run_missing(pair, None, served / "report", ["A-E3"], True, quiet)
    (served / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        answers.run_missing(pair, None, served / "file" / "report", ["A-E1"], True, quiet)


def test_the_button_starts_the_job_and_the_page_then_shows_the_report(served: Path, pair: ModelPair, cheap: list[str]) -> None:
    at = open_page("evidence")
    at.multiselect(key="missing").set_value(["A-E1", "A-E3"])
    at.toggle(key="quick").set_value(True).run()
    key = answers.job_key(pair, Path("report"))
    next(button for button in at.button if button.label == "Run 2 experiments").click().run()
    job = runner.find(key)
    assert job is not None
    while not job.over:
        at.run()
    at.run()
    assert job.state == "done"
    assert not at.exception
    assert not at.error
    assert at.dataframe[0].value["Experiment"].tolist() == ["A-E1"]
    assert any("no gates" in element.value for element in at.markdown)
    assert answers.job_key(pair, Path("report")) != key, "the next run is another job"
