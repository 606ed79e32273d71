"""The app on the tiny pair: what a visitor sees, what is never seen, and a server that truly starts and stops."""

from __future__ import annotations

import ast
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

from streamlit.testing.v1 import AppTest

from app import answers, state
from app import launch as launcher
from interp import Edit, ModelPair, UserError, generate
from interp import figures as drawn
from interp.lexicon import mask
from interp.report import write_report
from interp.results import Result
from interp.texts import challenge_prompts
from interp.toxicity import load_scorer

ROOT = Path(__file__).resolve().parent.parent
# A busy machine is slow, not wrong.
PATIENCE = 600
HOSTILE = "<script>alert(1)</script> **b** $x$ :red[y] 🙂"


@pytest.fixture
def served(gpt2_folder: Path, tuned_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The environment of a server on the tiny pair, in a folder without a report."""
    import streamlit as st

    monkeypatch.setenv(state.PAIR, f"{gpt2_folder}::{tuned_folder}")
    monkeypatch.delenv(state.REPORT, raising=False)
    monkeypatch.delenv(state.DEMO, raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    st.cache_data.clear()


def opened(page: str) -> AppTest:
    return AppTest.from_file(str(ROOT / "app" / "pages" / page), default_timeout=PATIENCE).run()


def cards(at: AppTest) -> list[str]:
    return [element.proto.body for element in at.get("html") if 'class="card"' in element.proto.body]


def ask(at: AppTest, text: str, **values: Any) -> AppTest:
    at.text_input(key="own").set_value(text)
    for key, value in values.items():
        (at.slider if key == "keys" else at.number_input)(key=key).set_value(value)
    at.button[0].click()
    return at.run()


def test_the_first_page_opens_on_a_challenge_prompt_with_three_columns_and_a_lens(served: Path) -> None:
    at = opened("compare.py")
    assert at.selectbox(key="chosen").value in challenge_prompts()
    # That prompt is longer, in the tiny vocabulary, than the tiny model reads.
    at = ask(at, "never the meldy stone")
    assert not at.exception
    assert not at.error
    assert [body.split("<h3>")[1].split("</h3>")[0] for body in cards(at)] == ["Base", "Tuned", "Tuned, keys scaled"]
    assert 1 <= len(at.get("plotly_chart")) <= 2


def test_the_columns_hold_what_interp_says(served: Path, pair: ModelPair) -> None:
    prompt = "the quick wintle sings"
    at = ask(opened("compare.py"), prompt, keys=4, factor=25.0, new=6)
    neurons = state.toxic_neurons(state.pair_source())
    assert len(neurons) == state.MOST_KEYS
    edits = [Edit.scale_keys(neurons[:4], 25.0)]
    expected = [
        generate(model, [prompt], max_new_tokens=6, edits=held)[0]
        for model, held in ((pair.base, []), (pair.tuned, []), (pair.tuned, edits))
    ]
    assert len(set(expected)) == 3, "the three columns must differ for this test to mean anything"
    scores = load_scorer().score(expected)["toxicity"]
    for body, text, score in zip(cards(at), expected, scores, strict=True):
        assert f'<span class="new">{state.escaped(state.shown(text, False))}</span>' in body
        assert f'<div class="score">{score:.2f}</div>' in body


def test_no_keys_scaled_leaves_the_tuned_answer(served: Path) -> None:
    found = cards(ask(opened("compare.py"), "a quonk", keys=0, new=5))
    text = [body.split('<span class="new">')[1].split("</span>")[0] for body in found]
    assert text[1] == text[2]
    assert "no key is scaled" in found[2]


def test_what_is_typed_is_shown_as_text_and_never_as_markup(served: Path) -> None:
    at = ask(opened("compare.py"), HOSTILE, new=2)
    assert not at.exception
    for body in cards(at):
        assert "<script" not in body
        assert "&lt;script&gt;alert(1)&lt;/script&gt; **b** $x$ :red[y] 🙂" in body


def test_profanity_is_masked_until_it_is_asked_for(served: Path) -> None:
    word = next(w for w in ("shit", "fuck") if mask(w) != w)
    at = ask(opened("compare.py"), f"what {word} is", new=2)
    assert all(word not in body and mask(word) in body for body in cards(at))
    at.toggle(key=state.SHOW).set_value(True).run()
    assert all(word in body for body in cards(at))


def test_a_prompt_that_does_not_fit_is_one_message_with_its_mend(served: Path) -> None:
    at = ask(opened("compare.py"), "blorp " * 300, new=4)
    assert not at.exception
    assert len(at.error) == 1
    assert "301 tokens" in at.error[0].value
    assert "Shorten it" in at.error[0].value
    assert cards(at) == []


@pytest.mark.parametrize("value", ["only-one-model", "::", "/nowhere/base::/nowhere/tuned"])
def test_a_pair_that_cannot_be_loaded_is_one_message(served: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(state.PAIR, value)
    at = opened("compare.py")
    assert not at.exception
    assert len(at.error) == 1


def test_demo_mode_shortens_prompts_and_continuations(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened("compare.py").number_input(key="new").max == 100
    monkeypatch.setenv(state.DEMO, "1")
    at = opened("compare.py")
    assert at.number_input(key="new").max == 40
    assert at.text_input(key="own").proto.max_chars == 400


def test_the_report_page_says_how_to_make_one(served: Path) -> None:
    at = opened("report.py")
    assert not at.exception
    assert at.code[0].value == "bypass report --out report"


def test_the_report_page_shows_verdicts_figures_and_tables_masked(served: Path) -> None:
    frame = pd.DataFrame({"model": ["base", "tuned"], "toxicity": [0.5, 0.25], "word": ["shit", "flower"]})
    figure = drawn.bars("toxicity", frame, x="model", y="toxicity", title="Mean toxicity", caption="Look at *this*.")
    result = Result(
        "A-E1", "A-C1", "A title", "A question?", "A criterion.", "fails", "It fails.",
        {"share": 0.4}, {"share": 0.1}, {}, {"models": frame},
        (figure,), "Nothing.", "None.", {},
    )  # fmt: skip
    write_report([result], {"name": "pair"}, {}, served / "report")
    at = opened("report.py")
    assert not at.exception
    overview, table = (element.value for element in at.dataframe)
    assert overview.iloc[0].tolist()[:3] == ["A-C1", "A title", "✗ Fails"]
    assert table["word"].tolist() == [mask("shit"), "flower"]
    assert table["toxicity"].tolist() == [0.5, 0.25]
    assert len(at.get("plotly_chart")) == 1
    assert at.caption[0].value == r"Look at \*this\*\."


def test_a_damaged_report_is_one_message(served: Path) -> None:
    (served / "report").mkdir()
    (served / "report" / "report.json").write_text("{", encoding="utf-8")
    at = opened("report.py")
    assert not at.exception
    assert len(at.error) == 1


def test_what_is_cached_can_be_pickled_and_pages_define_no_class() -> None:
    """The server pickles what it caches; a class of a page, which is run as a script, cannot be. AppTest would not notice."""
    side = answers.Side("base", "about", "text", 0.5, pd.DataFrame({"token": ["a"], "probability": [1.0], "id": [0]}))
    assert pickle.loads(pickle.dumps(side)).continuation == "text"
    for page in sorted((ROOT / "app" / "pages").glob("*.py")):
        assert not [node for node in ast.walk(ast.parse(page.read_text("utf-8"))) if isinstance(node, ast.ClassDef)], page.name


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_port_that_is_taken_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher.subprocess, "Popen", lambda *a, **k: pytest.fail("a server was started"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(UserError, match=r"port \d+ is taken"):
            launcher.launch(port=listener.getsockname()[1], host="127.0.0.1", browser=False)


def test_without_streamlit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"bypass-workbench\[app\]"):
        launcher.launch(port=free_port(), browser=False)


def test_the_server_watches_no_files_and_tells_nobody() -> None:
    flags = launcher.command(8600, "localhost", browser=False)
    assert {"--server.fileWatcherType=none", "--browser.gatherUsageStats=false", "--server.headless=true", "--server.port=8600"} <= set(
        flags
    )
    assert launcher.environment(demo=True)[state.DEMO] == "1"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_starts_answers_and_stops_when_asked(number: signal.Signals, tmp_path: Path) -> None:
    port = free_port()
    code = "import sys; from app.launch import launch; sys.exit(launch(port=int(sys.argv[1]), host='127.0.0.1', browser=False))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(port)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )
    try:
        assert _healthy(f"http://127.0.0.1:{port}/_stcore/health", process)
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE) == 0
        with pytest.raises(OSError, match=r"refused|urlopen"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=PATIENCE)


def _healthy(url: str, process: subprocess.Popen) -> bool:
    for _ in range(PATIENCE * 5):
        if process.poll() is not None:
            return False
        try:
            with urllib.request.urlopen(url, timeout=2) as reply:
                return reply.status == 200 and reply.read() == b"ok"
        except OSError:
            time.sleep(0.2)
    return False
