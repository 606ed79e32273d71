"""The switch for the chat template: on every page with a prompt, what is shown is what interp says of the prompt as a user turn."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

import streamlit as st
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from app import settings, show, state
from app.answers import bypass_lens, patching
from app.continuations import EditedModel
from app.edit_forms import Form, edits_of, python
from interp import Edit, ModelPair, Sampling, generate, logit_lens, patch
from interp.cli import app as cli
from interp.directions.probe import probe_for
from interp.models.chat import Chat
from interp.patching.metrics import ProbeProjection
from tests.app.app_pages import html_of, open_page
from tests.chat_models import LLAMA2, chat_folder

PROMPT, SYSTEM = "the quick wintle sings", "be sunny"
AS_TURNS = "Prompts are read as user turns of the model's chat template"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("chat app")
    return str(chat_folder(root / "base")), str(chat_folder(root / "tuned", noise=0.02))


@pytest.fixture(scope="module")
def pair(folders: tuple[str, str]) -> ModelPair:
    return ModelPair.load(*folders)


@pytest.fixture
def chatty(folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[settings.Source]:
    """The app on a pair with a chat template."""
    for name in ("BYPASS_REPORT", "BYPASS_RUNS", "BYPASS_MODELS", "BYPASS_DEMO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BYPASS_PAIR", "::".join(folders))
    monkeypatch.chdir(tmp_path)
    patching._measured.clear()
    yield folders
    st.cache_data.clear()


def captions(at: AppTest) -> str:
    return "\n".join(caption.value for caption in at.caption)


def said(at: AppTest) -> list[str]:
    """What each card says after the prompt."""
    cards = [part for part in html_of(at).split("<section")[1:] if 'class="card"' in part]
    return [part.split('<span class="new">')[1].split("</span>")[0] for part in cards]


def answers(pair: ModelPair, chat: Chat | bool, *edits: Edit) -> list[str]:
    models = ((pair.base, ()), (pair.tuned, ()), (pair.tuned, edits))
    return [
        show.escaped(show.shown(generate(model, [PROMPT], max_new_tokens=5, edits=some, chat=chat)[0], False)) for model, some in models
    ]


def test_a_pair_without_a_template_reads_raw_text_and_says_so(served: Path) -> None:
    for name, query in (("steer", {"own": PROMPT}), ("patching", {"patched_prompt": PROMPT}), ("start", {"own": PROMPT})):
        at = open_page(name, **query, chat="true")
        assert not at.exception
        assert "Prompts are read as raw text: this pair has no chat template." in captions(at)
        assert "chat" not in [toggle.key for toggle in at.toggle]


def test_sides_of_different_templates_are_read_as_raw_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = chat_folder(tmp_path / "base"), chat_folder(tmp_path / "tuned", LLAMA2)
    monkeypatch.setenv("BYPASS_PAIR", "::".join(map(str, folders)))
    at = open_page("steer", own=PROMPT, keys="0.3")
    assert not at.exception
    assert "Prompts are read as raw text: the chat templates of base and tuned differ" in captions(at)


def test_the_columns_answer_the_prompt_as_a_user_turn(chatty: settings.Source, pair: ModelPair) -> None:
    at = open_page("steer", own=PROMPT, new="5", keys="0.3,1.5", factor="-40")
    assert not at.exception
    assert "Prompts are read as raw text." in captions(at)
    assert "the user's tokens" not in at.selectbox(key="positions").options
    edit = Edit.scale_keys([(0, 3), (1, 5)], -40.0)
    raw, turns = answers(pair, False, edit), answers(pair, Chat(SYSTEM), edit)
    assert raw != turns
    assert said(at) == raw
    at.toggle(key="chat").set_value(True).run()
    at.text_input(key="system").set_value(SYSTEM).run()
    assert said(at) == raw, "the columns wait for Run"
    at.button(key="run").click().run()
    assert not at.exception
    assert f"{AS_TURNS}, after a system prompt." in captions(at)
    assert said(at) == turns
    again = open_page("steer", own=PROMPT, new="5", keys="0.3,1.5", factor="-40", chat="true", system=SYSTEM)
    assert said(again) == turns


def test_an_edit_of_the_users_tokens_is_the_same_on_the_page_in_a_terminal_and_in_python(chatty: settings.Source, pair: ModelPair) -> None:
    at = open_page("steer", own=PROMPT, new="5", keys="0.3,1.5", factor="-40", chat="true", positions="the user's tokens")
    assert not at.exception
    edit = Edit.scale_keys([(0, 3), (1, 5)], -40.0, "user")
    expected = generate(pair.tuned, [PROMPT], max_new_tokens=5, edits=[edit], chat=True)[0]
    assert said(at) == answers(pair, True, edit)
    assert any("not swept" in info.value for info in at.info)
    command = next(item.value for item in at.code if item.value.startswith("bypass"))
    assert " --chat " in command
    result = CliRunner().invoke(cli, [*shlex.split(command)[1:-2], "--json", *shlex.split(command)[-2:]])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["tuned + edit"] == expected
    program = next(item.value for item in at.code if "import" in item.value)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program, {})
    assert printed.getvalue() == f"{expected}\n"
    # Without the template there is no user, and the page goes back to all tokens.
    at.toggle(key="chat").set_value(False).run()
    assert not at.exception
    assert at.selectbox(key="positions").value == "all tokens"


def test_a_program_with_a_system_prompt_runs_as_it_stands(chatty: settings.Source, pair: ModelPair) -> None:
    form, chat = Form("set", "tuned", ((1, 4),), strength=5.0, positions="system"), Chat('be "sunny"\n')
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(python(form, PROMPT, 4, Sampling(), chatty, chat), {})
    edits = edits_of(form, pair.tuned, lambda: state.probe(chatty))
    assert printed.getvalue() == generate(pair.tuned, [PROMPT], max_new_tokens=4, edits=edits, chat=chat)[0] + "\n"


def test_a_continuation_is_kept_by_how_its_prompt_was_read(pair: ModelPair) -> None:
    ways = (False, True, Chat("a"), Chat("b"))
    assert len({EditedModel(pair.base).key(PROMPT, 4, Sampling(), chat) for chat in ways}) == len(ways)
    before = pair.base.tokenizer.chat_template
    try:
        keys = {EditedModel(pair.base).key(PROMPT, 4, Sampling(), True)}
        pair.base.tokenizer.chat_template = LLAMA2
        assert EditedModel(pair.base).key(PROMPT, 4, Sampling(), True) not in keys
    finally:
        pair.base.tokenizer.chat_template = before


def test_the_map_of_patches_is_of_the_rendered_tokens(chatty: settings.Source, pair: ModelPair) -> None:
    at = open_page("patching", patched_prompt="a stone", metric="probe", chat="true")
    assert not at.exception
    assert not at.error
    assert f"{AS_TURNS}." in captions(at)
    specs = [json.loads(element.proto.spec) for element in at.get("plotly_chart")]
    drawn = next(spec for spec in specs if spec["layout"]["title"]["text"].startswith("resid_post: "))
    expected = patch(pair, "a stone", metric=ProbeProjection.of(probe_for(pair.base)), chat=True)
    assert torch.allclose(torch.tensor(drawn["data"][0]["z"]).flatten(), expected.effects[0, 0], atol=1e-5)
    assert generate(pair.base, ["a stone"], max_new_tokens=patching_tokens(), chat=True)[0][:8] in " ".join(said(at))


def patching_tokens() -> int:
    return min(20, settings.limits().new_tokens)


def test_the_lens_reads_the_token_before_the_answer(chatty: settings.Source, pair: ModelPair) -> None:
    at = open_page("bypass", view="Logit lens", prompt=PROMPT, chat="true")
    assert not at.exception
    assert not at.error
    assert f"{AS_TURNS}." in captions(at)
    first = bypass_lens.candidates(chatty, PROMPT, True)[0]
    expected = logit_lens(pair.base, [PROMPT], [first.token], chat=True)
    assert first.base == pytest.approx(float(expected.probabilities[0, -1]), abs=1e-6)
    assert at.selectbox(key="token").value == first.token
    drawn = bypass_lens.curve(chatty, PROMPT, first.token, True).figure.spec["data"]
    assert next(line for line in drawn if line["name"] == "base")["y"] == pytest.approx(expected.probabilities[0].tolist(), abs=1e-6)


def test_the_first_page_answers_too(chatty: settings.Source, pair: ModelPair) -> None:
    at = open_page("start", own=PROMPT, chat="true")
    assert not at.exception
    assert not at.error
    expected = [show.escaped(show.shown(generate(model, [PROMPT], chat=True)[0], False)) for model in pair.sides.values()]
    assert said(at)[:2] == expected
