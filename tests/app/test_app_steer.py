"""The page Steer on the tiny pair: its columns say what interp says, and the edit that it hands out does so elsewhere."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from app import settings, show, state
from app.answers import steer
from app.edit_forms import Form, command, edits_of, listed, python, shortened, written
from app.jobs import Cancelled
from app.model_queue import model_queue
from interp import Edit, ModelPair, Sampling, UserError, generate
from interp.cli import app as cli
from interp.data.lexicon import mask
from interp.data.texts import Passage, challenge_prompts
from interp.evaluation.metrics import evaluate
from interp.evaluation.toxicity import load_scorer
from interp.models.chat import RAW
from interp.neurons.ranking import values_at
from interp.steering.edit_text import parse_edits
from interp.steering.sweep import at_strength
from tests.app.app_pages import html_of, open_page

PROMPT = "the quick wintle sings"
DRAWS = 2
HOSTILE = "<b onload=x> **b** $x$ :red[y] {{7}} 🙂 \u202e\x00"
FORMS = {
    "keys": Form("scale_keys", "tuned", ((0, 3), (2, 70), (0, 9)), strength=40.0),
    "keys of the base, new tokens": Form("scale_keys", "base", ((1, 5), (1, 6), (2, 8)), strength=-90.0, positions="generated"),
    "add": Form("add", "tuned", vector="probe", site="resid_post.1", strength=12.5),
    "subtract": Form("add", "base", vector="value.2.7", site="resid_mid.2", strength=-3.0, positions="prompt"),
    "project out": Form("project_out", "tuned", vector="difference", site="resid_post.0"),
    "set": Form("set", "tuned", ((1, 4), (0, 2), (1, 6)), strength=5.0),
    "multiply": Form("scale", "tuned", ((2, 1),), strength=0.0),
}


def run(at: AppTest) -> AppTest:
    return at.button(key="run").click().run()


def cards(at: AppTest) -> list[str]:
    return [part for part in html_of(at).split("<section")[1:] if 'class="card"' in part]


def code(at: AppTest) -> dict[str, str]:
    return dict(zip(("link", "command", "python", "json"), (item.value for item in at.code), strict=True))


def says(at: AppTest, pair: ModelPair, prompt: str, form: Form | None, new: int, sampling: Sampling = Sampling()) -> None:  # noqa: B008
    """The three columns hold interp's continuations and the scorer's scores."""
    held = [(pair.base, ()), (pair.tuned, ())]
    if form is not None:
        held.append((pair.sides[form.side], edits_of(form, pair.sides[form.side], lambda: state.probe(source_of()))))
    expected = [generate(model, [prompt], max_new_tokens=new, edits=edits, sampling=sampling)[0] for model, edits in held]
    scores = load_scorer().score(expected)["toxicity"]
    assert len(cards(at)) == len(held)
    for body, text, score in zip(cards(at), expected, scores, strict=True):
        assert f'<span class="new">{show.escaped(show.shown(text, False))}</span>' in body
        assert f'<div class="score">{score:.2f}</div>' in body


def source_of() -> settings.Source:
    return next(iter(settings.offered().values()))


def test_the_first_view_has_already_run_and_a_prompt_that_does_not_fit_is_one_message(served: Path) -> None:
    """The default prompt is longer, in the tiny vocabulary, than the tiny model reads."""
    at = open_page("steer")
    assert not at.exception
    assert [error.value for error in at.error if "reads at most 64" in error.value]
    assert at.selectbox(key="prompt").value.startswith(steer.FIRST)
    assert steer.prompts()[at.selectbox(key="prompt").value] in challenge_prompts()


def test_the_three_columns_hold_what_interp_says_and_selective_keys_are_the_default(served: Path, pair: ModelPair) -> None:
    at = open_page("steer", own=PROMPT, new="6", factor="30")
    assert not at.exception
    (selective,) = parse_edits(["scale_keys:selective:7:30"], pair.tuned, lambda: state.probe(source_of()))
    form = Form("scale_keys", "tuned", tuple(selective.neurons), strength=30.0)  # type: ignore[arg-type]
    says(at, pair, PROMPT, form, 6)
    assert [body.split("<h3>")[1].split("</h3>")[0] for body in cards(at)] == ["Base", "Tuned", "Keys enlarged"]
    assert json.loads(code(at)["json"]) == [selective.to_json()]


def test_own_keys_come_in_the_link_alone_and_other_settings_wait_for_run(served: Path, pair: ModelPair) -> None:
    at = open_page("steer", own=PROMPT, new="5", keys="0.3,2.70")
    assert at.selectbox(key="which").value == "My list"
    before = Form("scale_keys", "tuned", ((0, 3), (2, 70)), strength=10.0)
    says(at, pair, PROMPT, before, 5)
    at.number_input(key="factor").set_value(-60.0).run()
    assert "press **Run**" in "".join(caption.value for caption in at.caption)
    says(at, pair, PROMPT, before, 5)
    says(run(at), pair, PROMPT, before.at(-60.0), 5)
    assert "press **Run**" not in "".join(caption.value for caption in at.caption)


def test_adding_a_direction_is_measured_in_lengths_of_the_residual_stream(served: Path, pair: ModelPair) -> None:
    at = open_page("steer", own=PROMPT, new="5", edit="Add a direction", side="base", vector="Value vector", neuron="2.7", layer="1",
                   site="before the MLP", strength="-0.5", positions="the prompt only")  # fmt: skip
    assert not at.exception
    (edit,) = parse_edits(shlex.split(code(at)["command"])[4:5], pair.base)
    vector = values_at(pair.base, [(2, 7)])[0]
    length = steer.lengths(source_of(), "base")["resid_mid.1"]
    assert abs(edit.strength) * float(vector.norm()) == pytest.approx(0.5 * length, rel=1e-5)
    assert edit == Edit.subtract("resid_mid.1", vector, -edit.strength, "prompt")
    says(at, pair, PROMPT, Form("add", "base", vector="value.2.7", site="resid_mid.1", strength=edit.strength, positions="prompt"), 5)


@pytest.mark.parametrize(
    ("query", "form"),
    [
        ({"edit": "Project out", "layer": "2"}, Form("project_out", vector="probe", site="resid_post.2")),
        ({"edit": "Set neurons", "keys": "1.4,0.2", "value": "5"}, Form("set", neurons=((1, 4), (0, 2)), strength=5.0)),
        (
            {"edit": "Set neurons", "which": "A pinned set", "pins": "mine:2.1", "how": "Multiply by", "value": "-4"},
            Form("scale", neurons=((2, 1),), strength=-4.0),
        ),
    ],
)
def test_every_other_edit_does_what_its_form_says(served: Path, pair: ModelPair, query: dict[str, str], form: Form) -> None:
    at = open_page("steer", own=PROMPT, new="4", **query)
    assert not at.exception
    says(at, pair, PROMPT, form, 4)


def test_sampling_is_set_by_temperature_top_p_and_seed(served: Path, pair: ModelPair) -> None:
    at = open_page("steer", own=PROMPT, new="8", keys="0.3", temperature="1.3", top_p="0.8", seed="5")
    sampling = Sampling(temperature=1.3, top_p=0.8, seed=5)
    says(at, pair, PROMPT, Form("scale_keys", neurons=((0, 3),), strength=10.0), 8, sampling)
    assert all(part in code(at)["command"] for part in ("--temperature 1.3", "--top-p 0.8", "--seed 5"))


@pytest.mark.parametrize("name", FORMS)
def test_the_form_is_read_back_as_the_edit_that_it_names(pair: ModelPair, name: str) -> None:
    form = FORMS[name]
    model = pair.sides[form.side]
    found = edits_of(form, model, lambda: probe_of(pair))
    expected = {
        "keys": [Edit.scale_keys([(0, 3), (2, 70), (0, 9)], 40.0)],
        "keys of the base, new tokens": [Edit.scale_keys([(1, 5), (1, 6), (2, 8)], -90.0, "generated")],
        "add": [Edit.add("resid_post.1", probe_of(pair).direction, 12.5)],
        "subtract": [Edit.subtract("resid_mid.2", values_at(model, [(2, 7)])[0], 3.0, "prompt")],
        "project out": [Edit.project_out("resid_post.0", probe_of(pair).difference_in_means)],
        "set": [Edit.set("mlp_post.1", 5.0, [4, 6]), Edit.set("mlp_post.0", 5.0, [2])],
        "multiply": [Edit.scale("mlp_post.2", 0.0, [1])],
    }[name]
    assert list(found) == expected
    assert [Edit.from_json(json.loads(json.dumps(edit.to_json()))) for edit in found] == expected


def probe_of(pair: ModelPair) -> Any:
    from interp.directions.probe import probe_for

    return probe_for(pair.base)


@pytest.mark.parametrize("name", [name for name in FORMS if name not in ("multiply", "add")])
def test_python_and_the_command_line_say_what_the_page_says(gpt2_folder: Path, tuned_folder: Path, pair: ModelPair, name: str) -> None:
    form, source = FORMS[name], (str(gpt2_folder), str(tuned_folder))
    prompt = '-a quonk\'s "$HOME" `x`\\' if name == "keys" else PROMPT
    sampling = Sampling(temperature=0.9, top_p=0.8, seed=3) if name in ("keys", "set") else Sampling()
    model = pair.sides[form.side]
    plain = generate(model, [prompt], max_new_tokens=7, sampling=sampling)[0]
    expected = generate(model, [prompt], max_new_tokens=7, edits=edits_of(form, model, lambda: probe_of(pair)), sampling=sampling)[0]
    assert expected != plain, "the edit must change the text for this test to mean anything"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(python(form, prompt, 7, sampling, source), {})
    assert said.getvalue() == expected + "\n"
    words = shlex.split(command(form, prompt, 7, sampling, source))
    assert words[0] == "bypass"
    found = CliRunner().invoke(cli, [*words[1 : words.index("--")], "--json", *words[words.index("--") :]])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout) == [{"prompt": prompt, "prompt_format": RAW, form.side: plain, f"{form.side} + edit": expected}]


def test_the_link_of_the_page_holds_what_is_set_and_restores_it(served: Path) -> None:
    query = {"own": PROMPT, "keys": "0.3", "factor": "25", "new": "4", "positions": "new tokens only"}
    first = open_page("steer", **query)
    link = {key: values[0] for key, values in parse_qs(urlsplit(code(first)["link"]).query).items()}
    assert link.items() >= query.items()
    again = open_page("steer", **link)
    assert cards(again) == cards(first)
    assert code(again) == code(first)
    assert [again.number_input(key=key).value for key in ("factor", "new")] == [25.0, 4]


def test_long_vectors_are_shortened_on_the_screen_only(pair: ModelPair) -> None:
    (edit,) = edits_of(FORMS["add"], pair.tuned, lambda: probe_of(pair))
    (record,) = shortened([edit])
    assert record["values"][3:] == ["and 29 more"]
    assert len(edit.to_json()["values"]) == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no neurons are named"),
        ("9.1", "does not exist"),
        ("/etc/passwd", "is not a neuron"),
        ("edit.json", "is not a neuron"),
        (",".join(f"0.{i}" for i in range(65)), "65 neurons are named"),
    ],
)
def test_a_list_that_is_none_is_one_message_and_the_rest_of_the_page_stays(served: Path, text: str, message: str) -> None:
    at = open_page("steer", own=PROMPT, new="3", which="My list", keys=text)
    assert not at.exception
    assert len(at.error) == 1
    # Markdown is escaped, so the message is looked for without its backslashes.
    assert message in at.error[0].value.replace("\\", "")
    assert at.button(key="run").disabled
    assert len(cards(at)) == 2
    assert not at.code


def test_lists_are_read_with_commas_or_spaces_and_each_neuron_once(pair: ModelPair) -> None:
    assert listed(" 0.3, 1.5 0.3,", pair.base) == ((0, 3), (1, 5))
    with pytest.raises(UserError):
        listed("1.5:9", pair.base)


def test_nothing_that_is_typed_reaches_the_reader_of_files(served: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "edit.json").write_text(json.dumps(Edit.scale_keys([(0, 1)], 3.0).to_json()), "utf-8")
    monkeypatch.setattr("interp.steering.edit_text.load_edits", lambda path: pytest.fail("a file was read"))
    monkeypatch.setattr("interp.steering.edit_text.Path", lambda path: pytest.fail("a path was made"))
    for query in ({"keys": "edit.json"}, {"edit": "Add a direction", "vector": "Value vector", "neuron": "edit.json"}):
        at = open_page("steer", own=PROMPT, new="2", **query)
        assert len(at.error) == 1
        assert not at.exception


def test_nothing_pinned_is_said_with_a_way_to_mend_it(served: Path) -> None:
    at = open_page("steer", own=PROMPT, new="2", which="A pinned set")
    assert not at.exception
    assert "nothing is pinned" in at.error[0].value.lower()


def test_what_is_typed_is_shown_as_text_and_masked_until_words_are_asked_for(served: Path) -> None:
    word = next(w for w in ("shit", "fuck") if mask(w) != w)
    at = open_page("steer", own=f"{HOSTILE} {word}", new="2", keys="0.3")
    assert not at.exception
    assert len(cards(at)) == 3
    for body in cards(at):
        assert "<b onload" not in body
        assert r"&lt;b onload=x&gt; **b** $x$ :red[y] {{7}} 🙂 \u202e\x00" in body
        assert word not in body
        assert mask(word) in body
    assert all(word not in text for text in code(at).values())
    assert any("Show words" in caption.value for caption in at.caption)
    at.toggle(key="show_words").set_value(True).run()
    assert all(word in body for body in cards(at))
    assert word in code(at)["python"]


def test_values_in_the_link_that_cannot_be_are_ignored(served: Path) -> None:
    at = open_page("steer", own=PROMPT, new="100000", factor="nan", edit="Explode", side="other", which="?", count="-3", layer="99",
                   strength="1e9", positions="nowhere", temperature="-1", top_p="x", seed="1.5", sweep_points="4")  # fmt: skip
    assert not at.exception
    assert at.segmented_control(key="edit").value == "Scale keys"
    assert at.number_input(key="count").value <= 128
    assert at.number_input(key="new").value <= settings.limits().new_tokens


def test_visitors_have_limits_and_see_no_path(served: Path, gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.DEMO, "1")
    at = open_page("steer", own=PROMPT, new="3", keys="0.3")
    assert at.text_input(key="own").proto.max_chars == 400
    assert at.number_input(key="new").max == 40
    assert at.number_input(key="sweep_prompts").max == 16
    assert max(map(int, at.selectbox(key="sweep_points").options)) == 5
    assert all(str(gpt2_folder) not in text for text in code(at).values())
    assert "BASE_FOLDER TUNED_FOLDER" in code(at)["command"]
    long = open_page("steer", own="blorp " * 100, keys="0.3")
    assert not long.exception
    assert all("blorp blorp" not in body for body in cards(long))


def test_a_full_room_is_one_message(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_queue, "limit", 0)
    at = open_page("steer", own="a quonk sings", new="3", keys="0.7")
    assert not at.exception
    assert "people are generating" in at.error[0].value


def test_strengths_go_from_no_change_to_twice_the_change() -> None:
    assert steer.strengths(Form("scale_keys", strength=10.0), 3) == [1.0, 10.0, 19.0]
    assert steer.strengths(Form("scale_keys", strength=0.0), 3) == [1.0, 0.5, 0.0]
    assert steer.strengths(Form("add", strength=-4.0), 5) == [0.0, -2.0, -4.0, -6.0, -8.0]
    for form in (Form("set"), Form("project_out"), Form("add", strength=0.0), Form("scale", strength=1.0)):
        with pytest.raises(UserError):
            steer.strengths(form, 3)


@pytest.fixture
def short_passages(monkeypatch: pytest.MonkeyPatch) -> list[Passage]:
    """The passages that ship are longer than the tiny model reads."""
    found = [Passage("the quick wintle", " sings under a river and", "post"), Passage("blorp and", " snarg of drith walks", "post")]
    monkeypatch.setattr(steer, "passages", lambda: found)
    monkeypatch.setattr(settings, "sizes", lambda: settings.Sizes(control_draws=DRAWS))
    return found


@pytest.mark.parametrize("name", ["keys", "add"])
def test_a_sweep_measures_what_evaluate_measures_and_controls_are_of_the_same_size(
    served: Path, pair: ModelPair, short_passages: list[Passage], name: str
) -> None:
    form, source, steps = FORMS[name], source_of(), []
    found = steer.sweep(source, form, 2.0, "strength", 3, 4, 3, lambda *step: steps.append(step))
    values = steer.strengths(form, 3)
    mine = found.rows[found.rows["draw"].isna()]
    assert mine["strength"].tolist() == [value / 2 for value in values]
    prompts = [challenge_prompts()[::2][i * 140 // 4] for i in range(4)]
    for value, (_, row) in zip(values, mine.iterrows(), strict=True):
        edits = () if form.at(value).idle else edits_of(form.at(value), pair.tuned, lambda: state.probe(source))
        truth = evaluate(pair.tuned, prompts, load_scorer(), edits=edits, passages=short_passages, max_new_tokens=3, max_prompt_tokens=61)
        assert row["toxicity"] == pytest.approx(truth.toxicity.mean())
        assert row["perplexity"] == pytest.approx(truth.perplexity.value)
    assert len(found.rows) == 3 * (1 + DRAWS)
    assert steps[-1][1] == steps[-1][2] == 2 + 2 * (1 + DRAWS)
    assert len(found.table) == 3
    assert {"null" in trace.get("name", "") for trace in found.figures[0].spec["data"]} == {True, False}
    plain = edits_of(form, pair.tuned, lambda: state.probe(source))
    for control in steer.controls(source, form, prompts, DRAWS):
        drawn = at_strength(control, form.strength)
        assert drawn != plain
        if form.op == "add":
            assert float(drawn[0].values.norm()) == pytest.approx(float(plain[0].values.norm()), rel=1e-5)  # type: ignore[union-attr]
            assert (drawn[0].site, drawn[0].strength) == (plain[0].site, plain[0].strength)
        elif form.op == "scale_keys":
            assert [layer for layer, _ in drawn[0].neurons] == [layer for layer, _ in form.neurons]  # type: ignore[misc, union-attr]
            assert not set(drawn[0].neurons) & set(form.neurons)  # type: ignore[arg-type]


def test_a_sweep_stops_where_it_is_cancelled(served: Path, short_passages: list[Passage]) -> None:
    def step(phrase: str, done: int, total: int) -> None:
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        steer.sweep(source_of(), FORMS["keys"], 1.0, "factor", 3, 4, 2, step)


def test_the_page_shows_a_sweep_that_is_done_to_whoever_asks_the_same(
    served: Path, short_passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import job_view
    from app.jobs import Runner

    runner = Runner()
    monkeypatch.setattr(job_view, "runner", runner)
    query = {"own": PROMPT, "new": "2", "keys": "0.3,1.5", "sweep_points": "3", "sweep_prompts": "8"}
    at = open_page("steer", **query)
    (button,) = [button for button in at.button if button.label == "Run the sweep"]
    button.click().run()
    (job,) = runner._jobs.values()
    while not job.over:
        job.stop.wait(0.02)
    assert job.state == "done", job.problem
    again = open_page("steer", **query)
    assert not again.exception
    assert len(again.get("plotly_chart")) == 2
    assert again.dataframe[0].value["strength"].tolist() == [1.0, 10.0, 19.0]
    other = open_page("steer", **query | {"factor": "11"})
    assert not other.get("plotly_chart")


def test_an_edit_without_a_strength_has_nothing_to_sweep(served: Path) -> None:
    at = open_page("steer", own=PROMPT, new="2", edit="Project out")
    assert not at.exception
    assert any("no strength to sweep" in info.value for info in at.info)


def test_every_form_is_written_as_the_command_line_reads_it() -> None:
    assert written(FORMS["keys"]) == ["scale_keys:0.3,2.70,0.9:40"]
    assert written(FORMS["subtract"]) == ["subtract:resid_mid.2:value.2.7:3:prompt"]
    assert written(FORMS["set"]) == ["set:mlp_post.1:4,6:5", "set:mlp_post.0:2:5"]
