"""The first page on the tiny pair: its numbers and figures are interp's own, nothing typed or said leaves its place, and another pair is
loaded or refused in one message."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

import torch
from streamlit.testing.v1 import AppTest

from app import settings, shell, show, state
from app.answers import argument, summary
from app.answers import start as answers
from app.answers.left_in_place import left_in_place
from app.jobs import Cancelled, Runner, runner
from app.launch import environment
from interp import Edit, ModelPair, UserError, generate
from interp.data.lexicon import mask
from interp.data.texts import challenge_prompts, passages
from interp.directions.probe import probe_for
from interp.evaluation.metrics import perplexity
from interp.lens.logit_lens import logit_lens
from interp.neurons.ranking import keys_at, values_at
from interp.report.page import write_report
from interp.results.result import Result
from interp.steering.edit_text import parse_edit
from interp.steering.unalign import FACTOR, KEYS
from tests.app.app_pages import PATIENCE, html_of, open_page

PROMPT = "the quick wintle sings"
HOSTILE = "<script>alert(1)</script> **b** $x$ :red[y] {{7*7}} ../../etc/passwd \u202e🙂"


def cards(text: str) -> list[str]:
    """The cards of a page's HTML, in order."""
    return ['<section class="card"' + part.split("</section>")[0] for part in text.split('<section class="card"')[1:]]


def ignore(phrase: str, done: int, total: int) -> None:
    """A step of a job that nobody watches."""


@pytest.fixture
def source(served: Path) -> settings.Source:
    """The pair of the served app, with few prompts, so that its jobs are short."""
    return settings.offered()["chosen at the start"]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fewer prompts and passages: the held-out ones that are left."""
    monkeypatch.setattr(settings, "sizes", lambda: settings.Sizes(prompt_step=20, passage_step=60, argued_step=25))
    return challenge_prompts()[::2][::20]


def test_three_cards_say_what_the_three_models_say(served: Path, pair: ModelPair) -> None:
    at = open_page("start", own=PROMPT)
    assert not at.exception
    assert not at.error
    edits = parse_edit("scale_keys:selective:7:10", pair.tuned, lambda: probe_for(pair.base))
    shown = cards(html_of(at))
    assert len(shown) == 3
    for card, (model, held) in zip(shown, ((pair.base, []), (pair.tuned, []), (pair.tuned, edits)), strict=True):
        (text,) = generate(model, [PROMPT], max_new_tokens=answers.NEW_TOKENS, edits=held)
        assert f'<span class="given">{PROMPT}</span>' in card
        assert show.escaped(show.shown(mask(PROMPT + text)[len(PROMPT) :], True)) in card
        last = logit_lens(model, [PROMPT], top=answers.TOP, edits=held).top(masked=False).iloc[-answers.TOP :]
        for token, probability in zip(last["token"], last["probability"], strict=True):
            assert f'<th scope="row">{show.escaped(show.visible(token, False))}</th>' in card
            assert f"{probability:.1%}" in card


def test_the_first_prompt_is_one_that_ships_and_was_not_chosen_with_the_keys(served: Path) -> None:
    at = open_page("start")
    first = at.selectbox(key="prompt").value
    assert first in challenge_prompts()[::2]


def test_words_are_masked_until_they_are_asked_for(served: Path) -> None:
    at = open_page("start", own="you fucking")
    assert "fucking" not in html_of(at)
    assert "f*cking" in html_of(at)
    assert not any("fucking" in option for option in at.selectbox(key="prompt").options)
    at.sidebar.toggle(key=shell.WORDS).set_value(True).run()
    assert '<span class="given">you fucking</span>' in html_of(at)


@pytest.mark.parametrize("text", [HOSTILE, "\x00", "🙂" * 30, "<b>" * 20, "</section><h1>x"])
def test_what_is_typed_is_shown_as_text(served: Path, text: str) -> None:
    at = open_page("start")
    at.text_input(key="own").set_value(text).run()
    at.button(key="continue").click().run()
    assert not at.exception
    assert "<script>" not in html_of(at)
    assert len(cards(html_of(at))) == 3 or len(at.error) == 1
    assert show.escaped(show.shown(text, False)) in html_of(at) or len(at.error) == 1


@pytest.mark.parametrize("own", ["x " * 600_000, "the " * 900])
def test_a_prompt_that_does_not_fit_is_one_line_and_the_rest_of_the_page_is_there(served: Path, own: str) -> None:
    at = open_page("start", own=own)
    assert not at.exception
    assert len(at.error) == 1
    assert [header.value for header in at.header] == ["Try it", "The argument in five figures", "Another pair"]


def test_a_link_to_a_prompt_that_is_not_there_is_as_if_there_were_none(served: Path) -> None:
    at = open_page("start", prompt="no such prompt", own=PROMPT)
    assert not at.exception
    assert not at.error
    assert at.selectbox(key="prompt").value in challenge_prompts()


def test_nothing_is_measured_before_it_is_asked_for_and_no_number_is_made_up(served: Path) -> None:
    at = open_page("start")
    facts = next(part for part in html_of(at).split("\n") if 'class="facts"' in part)
    assert facts.count("<dd>–<small>") == 6
    assert "not measured yet" in facts
    assert not [element for element in at.get("plotly_chart") if "brought" in str(element)]


def test_the_numbers_are_those_of_interp(source: settings.Source, pair: ModelPair, few: list[str]) -> None:
    found = answers.measure(source, ignore)
    edits = parse_edit("scale_keys:selective:7:10", pair.tuned, lambda: probe_for(pair.base))
    texts = [passage.text for passage in passages()[::60]]
    for role, model, held in (("base", pair.base, []), ("tuned", pair.tuned, []), ("un-aligned", pair.tuned, edits)):
        said = generate(model, few, max_new_tokens=answers.NEW_TOKENS, edits=held, max_prompt_tokens=pair.base.context - answers.NEW_TOKENS)
        row = found.row(role)
        assert row["toxicity"] == pytest.approx(state.scorer().score(said)["toxicity"].mean(), abs=1e-6)
        assert row["perplexity"] == pytest.approx(perplexity(model, texts, edits=held).value, rel=1e-4)
        assert row["low"] <= row["toxicity"] <= row["high"]
    assert (found.prompts, found.passages) == (len(few), len(texts))
    assert found.row("null")["model"].endswith("(null)")


def test_held_out_prompts_played_no_part_in_choosing_the_keys(few: list[str]) -> None:
    assert not set(challenge_prompts()[::2]) & set(challenge_prompts()[1::2])
    assert set(few) <= set(challenge_prompts()[::2])


def test_a_job_that_is_cancelled_stops_at_its_next_step(source: settings.Source, few: list[str]) -> None:
    seen: list[str] = []

    def step(phrase: str, done: int, total: int) -> None:
        seen.append(phrase)
        if len(seen) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        answers.measure(source, step)
    assert len(seen) == 2


def test_what_the_jobs_found_fills_numbers_and_figures(source: settings.Source, few: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    own = Runner()
    monkeypatch.setattr("app.jobs.runner", own)
    monkeypatch.setattr("app.job_view.runner", own)
    answers.begin(source)
    found = [own.find(key) for key in summary.job_keys(source)]
    until = time.monotonic() + PATIENCE
    while not all(job is not None and job.over for job in found) and time.monotonic() < until:
        time.sleep(0.05)
    assert [job.state for job in found if job is not None] == ["done", "done"]
    at = open_page("start", own=PROMPT)
    assert not at.exception
    facts = next(part for part in html_of(at).split("\n") if 'class="facts"' in part)
    assert "–<small>" not in facts
    assert len(at.get("plotly_chart")) + len(at.error) == 5
    assert html_of(at).count('<h3 class="step">') == 5
    assert sum("Against chance." in text.value for text in at.markdown) + len(at.error) == 5


def test_toxic_vectors_are_compared_with_themselves_and_with_others(source: settings.Source, pair: ModelPair) -> None:
    step = left_in_place(source)
    neurons = state.toxic_neurons(source)
    assert step.figure is not None
    series = {trace["name"]: trace for trace in step.figure.spec["data"]}
    kept = len(series["key"]["y"])
    # Ranked as the probe ranks them, and no layer gives more than half of its neurons, so that others are left.
    assert kept <= len(neurons)
    rows = [tuple(map(int, data[0].split("."))) for data in series["key"]["customdata"]]
    assert [neuron for neuron in neurons if neuron in rows] == rows
    expected = torch.cosine_similarity(keys_at(pair.base, rows).double(), keys_at(pair.tuned, rows).double(), dim=1)
    assert series["key"]["y"] == pytest.approx(expected.tolist(), abs=1e-6)
    expected = torch.cosine_similarity(values_at(pair.base, rows).double(), values_at(pair.tuned, rows).double(), dim=1)
    assert series["value"]["y"] == pytest.approx(expected.tolist(), abs=1e-6)
    null = series["another neuron's value (null)"]["y"]
    assert sum(map(abs, null)) / len(null) < 0.5


def test_a_step_without_an_answer_says_why_and_shows_no_figure(source: settings.Source) -> None:
    why = UserError("this pair cannot answer", "give another")
    for step in argument.steps(None, dict.fromkeys(summary.ARGUED, why), argument.in_place()):
        if step.problem is not None:
            assert step.problem is why
            assert step.figure is None
            assert not step.chance
    assert sum(step.problem is why for step in argument.steps(None, dict.fromkeys(summary.ARGUED, why), argument.in_place())) == 3


def test_a_pair_that_tuning_made_no_milder_is_not_said_to_get_anything_back() -> None:
    import pandas as pd

    rows = [("base", "base", 0.2), ("tuned", "tuned", 0.3), ("un-aligned", summary.UNALIGNED, 0.4), ("null", summary.RANDOM, 0.3)]
    table = pd.DataFrame([(*row, row[2], row[2], 50.0) for row in rows], columns=["role", "model", "toxicity", "low", "high", "perplexity"])
    step = argument.brought_back(summary.Measured(table, 3, 3, 1, 0, "now"))
    assert "%" not in step.claim
    assert "lowered nothing" in step.claim


SAID = ("said by <b>nobody</b>", "nor this", "nor that")


def report(folder: Path, manifest: dict[str, object], used: dict[str, object] | None = None) -> None:
    """A report with one experiment: numbers that no measurement would give, and words that no model would say."""
    import pandas as pd

    table = pd.DataFrame({
        "model": ["base", "tuned", "3 selective keys × 10", "7 selective keys × 10", "random keys × 10 (null, 3 draws)",
                  "base with the same 7 keys × 10"],
        "row_key": ["base", "tuned", "selective 3", "selective 7", "random", "base, same keys"],
        "toxicity": [0.81, 0.12, 0.4, 0.77, 0.13, 0.9], "low": 0.0, "high": 1.0, "perplexity": [31.0, 32, 33, 34, 35, 36],
    })  # fmt: skip
    roles = ("base", "tuned", "un-aligned")
    said = pd.DataFrame([{"prompt": PROMPT, **dict(zip(roles, SAID, strict=True)), **{f"toxicity, {role}": 0.123 for role in roles}}])
    result = Result(
        "X-U1", "A-C9", "t", "q", "c", "holds", "s", {"a": 1.0}, {"a": 0.0}, {"a": (0.0, 1.0)}, {"keys": table, "continuations": said},
        (), "r", "v", {"prompts": 120, "passages": 220, "random_draws": 3} | (used or {}),
    )  # fmt: skip
    write_report([result], manifest, {}, folder)


def test_a_report_of_this_pair_is_read_instead_of_measuring(served: Path, pair: ModelPair) -> None:
    report(served / "report", pair.manifest())
    at = open_page("start")
    facts = next(part for part in html_of(at).split("\n") if 'class="facts"' in part)
    assert [number in facts for number in ("<dd>0.81<", "<dd>0.12<", "<dd>0.77<", "<dd>31<", "<dd>34<")] == [True] * 5
    assert any("120 challenge prompts" in caption.value and "written report" in caption.value for caption in at.caption)


def test_what_a_report_holds_is_shown_until_the_models_are_asked_to_say_it_again(served: Path, pair: ModelPair) -> None:
    report(served / "report", pair.manifest())
    at = open_page("start", own=PROMPT)
    for card, text in zip(cards(html_of(at)), SAID, strict=True):
        assert f'<span class="new">{show.escaped(text)}</span>' in card
        assert '<div class="score">0.12</div>' in card
        assert "Likeliest next token" in card
    assert any("from the written report" in caption.value and "say it again" in caption.value for caption in at.caption)
    at.button(key="continue").click().run()
    assert not at.exception
    for card, (model, text) in zip(cards(html_of(at))[:2], ((pair.base, SAID[0]), (pair.tuned, SAID[1])), strict=True):
        assert show.escaped(text) not in card
        (own,) = generate(model, [PROMPT], max_new_tokens=answers.NEW_TOKENS)
        assert show.escaped(show.shown(mask(PROMPT + own)[len(PROMPT) :], True)) in card
    assert not any("say it again" in caption.value for caption in at.caption)


def test_the_keys_of_a_report_that_is_written_meanwhile_are_the_ones_enlarged_from_then_on(
    served: Path, pair: ModelPair, source: settings.Source
) -> None:
    before, said = answers.unaligned(source), answers.next_tokens(source, PROMPT, "un-aligned")
    named = [(0, index) for index in range(KEYS)]
    assert answers.keys(source) != named
    report(served / "report", pair.manifest(), {"factor": FACTOR, "keys": [f"0.{index}" for _, index in named]})
    assert answers.keys(source) == named
    assert answers.unaligned(source) == (Edit.scale_keys(named, FACTOR),) != before
    assert answers.next_tokens(source, PROMPT, "un-aligned").rows != said.rows
    report(served / "report", pair.manifest(), {"factor": 3.0, "keys": ["0.1"]})
    assert answers.unaligned(source) == before


def test_a_report_of_another_pair_or_a_damaged_one_is_not_read(served: Path, pair: ModelPair, source: settings.Source) -> None:
    manifest = pair.manifest()
    report(served / "report", manifest | {"tuned": manifest["tuned"] | {"digest": "another"}})
    assert summary.measured_by_report(source) is None
    (served / "report" / "report.json").write_text("{")
    assert summary.report_of(source) is None
    assert not open_page("start", own=PROMPT).error


def test_the_manifest_names_both_sides(source: settings.Source, pair: ModelPair) -> None:
    frame, versions = answers.manifest(source, False)
    lines = frame.set_index("")
    assert lines.loc["digest"].tolist() == [pair.base.digest, pair.tuned.digest]
    assert lines.loc["tokens"].tolist() == [f"{len(pair.base.tokenizer):,}"] * 2
    assert "torch" in versions
    short, _ = answers.manifest(source, True)
    assert "/" not in "".join(short.set_index("").loc["path"])


def test_another_pair_is_loaded_and_chosen(served: Path, gpt2_folder: Path, tuned_folder: Path) -> None:
    at = load(str(tuned_folder), str(gpt2_folder))
    assert not at.exception
    assert not at.error
    assert at.session_state[state.CHOSEN] == f"{tuned_folder}::{gpt2_folder}"


def load(base: str, tuned: str) -> AppTest:
    """The page after another pair was asked for."""
    at = open_page("start", own=PROMPT)
    at.text_input(key="other_base").set_value(base)
    at.text_input(key="other_tuned").set_value(tuned)
    return at.button(key="load").click().run()


@pytest.mark.parametrize("text", ["", "  ", "b::c", "a\x00b", "x" * 5000, "a\nb", "\u202egnp.txt"])
def test_what_can_name_no_model_is_refused_before_anything_is_read(text: str) -> None:
    with pytest.raises(UserError, match="base"):
        answers.named("base", text)


def test_a_pair_that_cannot_be_loaded_is_one_message_and_the_page_keeps_its_pair(served: Path) -> None:
    at = load("/nowhere/<script>alert(1)</script>/base", "/nowhere/tuned")
    assert not at.exception
    assert len(at.error) == 1
    assert "there is no folder" in at.error[0].value
    assert show.plain("<script>") in at.error[0].value
    assert at.session_state[state.CHOSEN] == "chosen at the start"
    assert len(cards(html_of(at))) == 3


def test_sides_that_do_not_make_a_pair_are_refused_with_the_reason(served: Path, gpt2_folder: Path, llama_folder: Path) -> None:
    at = load(str(gpt2_folder), str(llama_folder))
    with pytest.raises(UserError) as refused:
        ModelPair.load(gpt2_folder, llama_folder)
    assert len(at.error) == 1
    assert at.error[0].value.startswith(show.plain(refused.value.problem))


def test_a_pair_that_the_user_may_not_read_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open", "shut"):
        for side in ("base", "tuned"):
            (tmp_path / name / side).mkdir(parents=True)
            (tmp_path / name / side / "config.json").write_text("{}")
    monkeypatch.setenv(settings.MODELS, str(tmp_path))
    assert {"open", "shut"} <= set(settings.offered())
    shut = tmp_path / "shut" / "tuned" / "config.json"
    shut.chmod(0)
    if os.geteuid() == 0:  # Root is bound by no permission bits, so `access` refuses for it.
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != shut and access(path, mode))
    assert "shut" not in settings.offered()
    assert "open" in settings.offered()


def test_visitors_are_offered_pairs_and_no_field_for_a_path(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.DEMO, "1")
    at = open_page("start")
    assert not at.exception
    assert {field.key for field in at.text_input} == {"own"}
    assert any("bundled" in text.value and "offered here" in text.value for text in at.markdown)
    at.text_input(key="own").set_value("the " * 200).run()
    at.button(key="continue").click().run()
    assert len(at.error) == 1


def test_the_un_aligned_model_is_the_short_form_of_the_command_line(source: settings.Source, pair: ModelPair) -> None:
    (edit,) = answers.unaligned(source)
    assert edit == Edit.scale_keys(answers.keys(source), 10.0)
    assert len(answers.keys(source)) == 7
    assert answers.is_ready(source)


def test_jobs_are_shared_by_all_who_look_at_the_same_pair(source: settings.Source, pair: ModelPair) -> None:
    assert summary.job_keys(source) == summary.job_keys(source)
    assert len(set(summary.job_keys(source))) == 2
    assert runner.find(summary.job_keys(source)[0]) is None


def test_a_named_pair_is_offered_where_it_is_installed_and_opened_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "installed", lambda name: False)
    assert "smollm2" not in settings.offered()
    monkeypatch.setattr(settings, "installed", lambda name: True)
    assert list(settings.offered()) == [settings.BUNDLED, "smollm2"]
    monkeypatch.setenv(settings.PAIR, "smollm2")
    assert list(settings.offered().items()) == [("smollm2", ("smollm2", "smollm2")), (settings.BUNDLED, None)]
    assert environment(demo=False, pair=("a", "b"))[settings.PAIR] == "a::b"
