"""The first page is drawn before torch has been read: what it shows needs none, is of exactly these weights, and nobody waits for long."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import ROOT

pytest.importorskip("streamlit", reason="the app needs the extra `app`")

from app import precompute, settings
from app.answers import reports
from app.answers.summary import continuations_by_report, keys_by_report
from app.cards import FIRST
from app.importing import Gate
from interp import ModelPair, generate
from interp.data.texts import TEXTS_FOLDER, challenge_prompts
from interp.directions.probe import probe_for
from interp.evaluation.toxicity import load_scorer
from interp.steering.edit_text import parse_edit
from interp.steering.unalign import FACTOR

FIRST_PAGE = """
import json, sys
from app import job_view, precompute, settings, shell, show, state
from app.answers.argument import in_place, steps
from app.answers.reports import digests
from app.answers.summary import argued_by_report, measured_by_report, continuations_by_report
from app.cards import FIRST

found = measured_by_report(None)
drawn = steps(found, argued_by_report(None), in_place())
print(json.dumps({
    "read": [name for name in ("torch", "transformers") if name in sys.modules],
    "figures": sum(step.figure is not None for step in drawn), "base": found.row("base")["toxicity"], "digests": digests(None),
    "said": [said.text for said in continuations_by_report(None, FIRST).values()],
}))
"""


@pytest.fixture(scope="module")
def bundled() -> ModelPair:
    if not (TEXTS_FOLDER.parent / "report" / reports.FILE).is_file():
        pytest.skip("no pair ships yet")
    return ModelPair.bundled()


def test_numbers_and_figures_of_the_pair_that_ships_need_no_torch(bundled: ModelPair, tmp_path: Path) -> None:
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", FIRST_PAGE], cwd=tmp_path, env={"PYTHONPATH": str(root), "PATH": ""}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert said["read"] == []
    assert said["figures"] == 4
    assert 0 < said["base"] < 1
    assert said["digests"] == [bundled.base.digest, bundled.tuned.digest]
    assert len(said["said"]) == 3
    assert all(said["said"])


def test_what_the_first_page_says_for_the_models_is_what_they_say(bundled: ModelPair) -> None:
    edits = parse_edit("scale_keys:selective:7:10", bundled.tuned, lambda: probe_for(bundled.base))
    scorer = load_scorer("bundled")
    for prompt in (FIRST, challenge_prompts()[10]):
        said = continuations_by_report(None, prompt)
        assert said is not None
        for role, model, held in (("base", bundled.base, ()), ("tuned", bundled.tuned, ()), ("un-aligned", bundled.tuned, edits)):
            (text,) = generate(model, [prompt], max_new_tokens=20, edits=held)
            assert said[role].text == text
            assert said[role].toxicity == pytest.approx(float(scorer.score([text])["toxicity"].iloc[0]), abs=1e-3)
    assert sorted(keys_by_report(None) or []) == sorted(edits[0].neurons or ())
    assert edits[0].strength == FACTOR
    assert continuations_by_report(None, challenge_prompts()[1]) is None
    assert continuations_by_report(None, "nobody asked this") is None


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_weights_that_the_report_was_not_made_of_are_not_taken_for_them(
    bundled: ModelPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        shutil.copy(settings.BUNDLE / name / "model.safetensors", tmp_path / name)
    monkeypatch.setattr(settings, "BUNDLE", tmp_path)
    reports._shipped.clear()
    assert reports._shipped() == (bundled.base.digest, bundled.tuned.digest)
    with (tmp_path / side / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")
    reports._shipped.clear()
    assert reports._shipped() is None
    (tmp_path / side / "model.safetensors").unlink()
    reports._shipped.clear()
    assert reports._shipped() is None
    reports._shipped.clear()


@pytest.mark.slow
def test_what_is_read_ahead_of_the_pair_that_ships_comes_to_its_end_and_of_a_large_one_is_nothing(
    bundled: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import state
    from app.answers import bypass, vectors

    # Fewer prompts and draws come to the same end sooner.
    monkeypatch.setattr(settings, "sizes", lambda: settings.Sizes(usual_prompts=16, shift_draws=8, matched_draws=2))
    computed: list[object] = []
    moved, by_probe = bypass.moved, vectors.by_probe
    monkeypatch.setattr(bypass, "moved", lambda *arguments: computed.append(arguments[2]) or moved(*arguments))
    monkeypatch.setattr(vectors, "by_probe", lambda *arguments: computed.append("ranked") or by_probe(*arguments))
    precompute.other_pages(None, light=lambda pair: False)
    assert computed == []
    precompute.other_pages(None)
    assert computed[0] == "ranked"
    assert set(computed[1:]) == {layer for layer, _ in state.toxic_neurons(None)}


def test_the_libraries_are_imported_once_the_page_is_drawn_and_whoever_needs_them_waits_for_all() -> None:
    imported: list[str] = []
    light, after = threading.Event(), threading.Event()

    def record(name: str) -> None:
        imported.append(name)
        if name == precompute.FIRST_PAGE[-1]:
            light.set()

    gate = Gate()
    thread = gate.begin(precompute.MODULES, slow=precompute.SLOW, pause=1000.0, then=after.set, import_module=record)
    assert light.wait(10)
    thread.join(0.1)
    assert imported == list(precompute.FIRST_PAGE)
    assert not after.is_set()
    gate.wait()
    assert imported == list(precompute.MODULES)
    assert after.wait(10)


def test_a_page_that_is_drawn_meanwhile_pauses_the_import_again() -> None:
    first, gate, imported = threading.Event(), Gate(), []

    def record(name: str) -> None:
        imported.append(name)
        gate.hold(1000.0)
        first.set()

    thread = gate.begin(["one", "two"], slow=["one", "two"], import_module=record)
    assert first.wait(10)
    thread.join(0.1)
    assert imported == ["one"]
    gate.wait()
    assert imported == ["one", "two"]


def test_a_library_that_cannot_be_imported_keeps_nobody_waiting_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken(name: str) -> None:
        raise ImportError(f"no {name}")

    gate, after = Gate(), threading.Event()
    thread = gate.begin(["torch"], then=after.set, import_module=broken)
    gate.wait()
    thread.join(10)
    assert "no torch" in caplog.text
    assert not after.is_set()


def test_nobody_waits_where_nothing_is_imported() -> None:
    waiting = threading.Thread(target=Gate().wait, daemon=True)
    waiting.start()
    waiting.join(10)
    assert not waiting.is_alive()
