"""The frame of the app on the tiny pair: what every page has around it, which pair it reads, what a link may say, and a server that
truly starts and stops."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

from app import launch as launcher
from app import pins, settings, shell, show
from interp import ModelPair, UserError
from interp.data.lexicon import mask
from interp.models.named import NAMED, installed
from tests import ROOT
from tests.app.app_pages import PATIENCE, html_of, open_page

HOSTILE = "<script>alert(1)</script> **b** $x$ :red[y] 🙂"


@pytest.mark.parametrize("name", list(shell.PAGES))
def test_every_page_opens_under_its_title_with_a_lead_and_the_switch(served: Path, name: str) -> None:
    at = open_page(name)
    assert not at.exception
    assert [title.value for title in at.title] == [shell.heading(name)]
    assert '<p class="lead">' in html_of(at)
    assert at.sidebar.toggle(key=shell.WORDS).value is False


def test_the_note_is_there_until_it_is_understood_on_every_page(served: Path) -> None:
    at = open_page("vectors")
    assert len(at.info) >= 1
    assert at.info[0].value.startswith("This is research on reducing harm")
    at.button(key="understood").click().run()
    at.switch_page("views/bypass.py").run()
    assert not [info for info in at.info if info.value.startswith("This is research")]


@pytest.mark.parametrize("value", ["only-one-model", "::", "/nowhere/base::/nowhere/tuned"])
def test_a_pair_that_cannot_be_loaded_is_one_message(served: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(settings.PAIR, value)
    at = open_page("training")
    assert not at.exception
    assert len(at.error) == 1


def test_a_link_names_a_pair_that_is_offered_and_the_page_reads_it(
    served: Path, monkeypatch: pytest.MonkeyPatch, pair: ModelPair, make_offer: Path
) -> None:
    monkeypatch.setenv(settings.MODELS, str(make_offer))
    at = open_page("training", pair="lesson")
    assert not at.exception
    assert at.sidebar.selectbox[0].value == "lesson"
    named = {name for name in NAMED if installed(name)}
    assert set(at.sidebar.selectbox[0].options) == {"chosen at the start", "bundled", "lesson"} | named


@pytest.fixture
def make_offer(tmp_path: Path, gpt2_folder: Path, tuned_folder: Path) -> Path:
    """A folder of pairs: one whole, one that lacks a side."""
    for name, sides in (("lesson", {"base": gpt2_folder, "tuned": tuned_folder}), ("half", {"base": gpt2_folder})):
        (tmp_path / "offer" / name).mkdir(parents=True)
        for side, folder in sides.items():
            (tmp_path / "offer" / name / side).symlink_to(folder)
    return tmp_path / "offer"


@pytest.mark.parametrize("name", ["../../etc", "/etc::/etc", "nobody/model::nobody/tuned", HOSTILE, "x" * 100_000])
def test_visitors_cannot_name_a_pair_that_is_not_offered(served: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(settings.DEMO, "1")
    monkeypatch.setattr("app.state.load_pair", lambda source: pytest.fail("a pair was read"))
    at = open_page("training", pair=name)
    assert not at.exception
    assert len(at.error) == 1
    assert "is offered here" in at.error[0].value


def test_alone_a_link_may_name_two_folders(served: Path, gpt2_folder: Path, tuned_folder: Path) -> None:
    at = open_page("training", pair=f"{tuned_folder}::{gpt2_folder}")
    assert not at.exception
    assert not at.error


def test_a_fault_of_ours_is_a_line_and_a_log_entry(served: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("app.shell.about", lambda page: 1 / 0)
    at = open_page("training")
    assert not at.exception
    assert len(at.error) == 1
    assert "ZeroDivisionError" in caplog.text
    assert "division" not in at.error[0].value


def test_pinned_sets_go_from_page_to_page_and_into_the_link(served: Path) -> None:
    at = open_page("training", pins="mine:1.5,0.2;yours:2.7")
    assert not at.error
    at.switch_page("views/evidence.py").run()
    assert at.query_params["pins"] == "mine:1.5,0.2;yours:2.7"


@pytest.mark.parametrize("text", ["mine", "mine:", "mine:9.9999", "mine:x", "<b>:0.1", "a:0.1;" * 50 + HOSTILE, "mine:" + "9" * 50])
def test_a_link_with_sets_that_cannot_be_read_is_one_message(served: Path, text: str) -> None:
    at = open_page("training", pins=text)
    assert not at.exception
    assert len(at.error) == 1


def test_sets_are_written_as_they_are_read() -> None:
    sets = {"toxic 7": [(5, 770), (4, 12)], "b": [(0, 3)]}
    assert pins.read(pins.written(sets)) == sets


def test_text_is_shown_as_itself_in_html_and_in_markdown() -> None:
    assert show.escaped(HOSTILE) == "&lt;script&gt;alert(1)&lt;/script&gt; **b** $x$ :red[y] 🙂"
    assert show.plain("**b** <i> $x$") == r"\*\*b\*\* \<i\> \$x\$"
    assert show.shown("a\x00b\u202ec", True) == "a\\x00b\\u202ec"


def test_a_word_spread_over_tokens_is_masked_in_a_strip_and_across_the_prompts_end_in_a_card() -> None:
    word = "shit"
    assert mask(word) != word
    strip = show.strip(["what ", "sh", "it"], [0.0, 1.0, 2.0], "#123456", False, label="where it fires")
    assert "sh</span>" in strip
    assert "it</span>" not in strip
    body = show.card("base", "Base", "about", "what sh", "it is", False)
    assert word not in body.replace('</span><span class="new">', "")
    assert word in show.card("base", "Base", "about", "what sh", "it is", True).replace('</span><span class="new">', "")


def test_facts_are_names_with_numbers_and_notes_and_hold_text_alone() -> None:
    assert show.facts([show.fact("n", ("1", None)), show.fact("m", ("2", "of 3"), ("4", ""))]) == (
        '<dl class="facts"><div><dt>n</dt><dd>1</dd></div><div><dt>m</dt><dd>2<small>of 3</small></dd><dd>4<small></small></dd></div></dl>'
    )
    role = show.fact("before", ("1", None), role="base", title="Base")
    assert role == f'<div><dt><span class="role" style="--hue:{show.colour("base")}">Base</span> before</dt><dd>1</dd></div>'
    assert HOSTILE not in show.fact(HOSTILE, (HOSTILE, HOSTILE), role="base", title=HOSTILE)


def test_hostile_text_in_a_card_or_a_strip_is_text() -> None:
    for body in (show.card("base", HOSTILE, HOSTILE, HOSTILE, HOSTILE, True), show.strip([HOSTILE], [1.0], "#123456", True, label=HOSTILE)):
        assert "<script" not in body
        assert "&lt;script&gt;" in body


def test_pages_define_no_class_because_what_is_cached_must_be_pickled() -> None:
    """The server pickles what it caches; a class of a page, which is run as a script, cannot be. AppTest would not notice."""
    for view in sorted((ROOT / "app" / "views").glob("*.py")):
        assert not [node for node in ast.walk(ast.parse(view.read_text("utf-8"))) if isinstance(node, ast.ClassDef)], view.name


def test_the_app_reads_models_through_interp_alone() -> None:
    for file in sorted((ROOT / "app").rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        named = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        named |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not {name.split(".")[0] for name in named} & {"training", "transformers", "trl", "transformer_lens", "nnsight"}, file.name


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
    flags = launcher.command(8600, "localhost")
    assert {"--server.fileWatcherType=none", "--browser.gatherUsageStats=false", "--server.headless=true", "--server.port=8600"} <= set(
        flags
    )
    assert launcher.environment(demo=True)[settings.DEMO] == "1"


@pytest.mark.parametrize(
    ("host", "opened"),
    [("localhost", "http://localhost:8600"), ("0.0.0.0", "http://127.0.0.1:8600"), ("::", "http://[::1]:8600")],
)
def test_a_window_opens_once_the_server_answers_and_only_on_a_desktop(host: str, opened: str, monkeypatch: pytest.MonkeyPatch) -> None:
    urls: list[str] = []
    monkeypatch.setattr(launcher.sys, "platform", "linux")
    monkeypatch.setattr(launcher.webbrowser, "open", urls.append)
    monkeypatch.setattr(launcher, "healthy", lambda url, process: True)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    launcher.show(8600, host, None)
    assert urls == []
    monkeypatch.setenv("DISPLAY", ":0")
    launcher.show(8600, host, None)
    assert urls == [opened]
    monkeypatch.setattr(launcher, "healthy", lambda url, process: False)
    launcher.show(8600, host, None)
    assert urls == [opened]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_starts_answers_and_stops_when_asked(number: signal.Signals, tmp_path: Path) -> None:
    port = free_port()
    code = "import sys; from app.launch import launch; sys.exit(launch(port=int(sys.argv[1]), host='127.0.0.1', browser=False))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(port)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )
    try:
        assert launcher.healthy(f"http://127.0.0.1:{port}", process)
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE) == 0
        with pytest.raises(OSError, match=r"refused|urlopen"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=PATIENCE)
