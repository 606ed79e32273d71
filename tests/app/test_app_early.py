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

from app import settings, warm
from app.answers import reports
from app.answers.summary import FACTOR, keys_by_report, said_by_report
from app.cards import FIRST
from interp import ModelPair, generate
from interp.data.texts import TEXTS_FOLDER, challenge_prompts
from interp.directions.probe import probe_for
from interp.evaluation.toxicity import load_scorer
from interp.steering.edit_text import parse_edit

FIRST_PAGE = """
import json, sys
from app import job_view, settings, shell, show, state, warm
from app.answers.argument import in_place, steps
from app.answers.reports import digests
from app.answers.summary import argued_by_report, measured_by_report, said_by_report
from app.cards import FIRST

found = measured_by_report(None)
drawn = steps(found, argued_by_report(None), in_place())
print(json.dumps({
    "read": [name for name in ("torch", "transformers") if name in sys.modules],
    "figures": sum(step.figure is not None for step in drawn), "base": found.row("base")["toxicity"], "digests": digests(None),
    "said": [said.text for said in said_by_report(None, FIRST).values()],
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
        said = said_by_report(None, prompt)
        assert said is not None
        for role, model, held in (("base", bundled.base, ()), ("tuned", bundled.tuned, ()), ("un-aligned", bundled.tuned, edits)):
            (text,) = generate(model, [prompt], max_new_tokens=20, edits=held)
            assert said[role].text == text
            assert said[role].toxicity == pytest.approx(float(scorer.score([text])["toxicity"].iloc[0]), abs=1e-3)
    assert sorted(keys_by_report(None) or []) == sorted(edits[0].neurons or ())
    assert edits[0].strength == FACTOR
    assert said_by_report(None, challenge_prompts()[1]) is None
    assert said_by_report(None, "nobody asked this") is None


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


def test_what_is_read_ahead_of_the_pair_that_ships_comes_to_its_end_and_of_a_large_one_is_nothing(
    bundled: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import state
    from app.answers import bypass, vectors

    asked: list[object] = []
    moved, by_probe = bypass.moved, vectors.by_probe
    monkeypatch.setattr(bypass, "moved", lambda *given: asked.append(given[2]) or moved(*given))
    monkeypatch.setattr(vectors, "by_probe", lambda *given: asked.append("ranked") or by_probe(*given))
    with monkeypatch.context() as large:
        large.setattr(bypass, "LIGHT", 1.0)
        warm._ahead(None)
    assert asked == []
    warm._ahead(None)
    assert asked[0] == "ranked"
    assert set(asked[1:]) == {layer for layer, _ in state.toxic_neurons(None)}


def test_the_libraries_are_read_once_the_page_is_drawn_and_whoever_needs_them_waits_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    light = threading.Event()

    def record(name: str) -> None:
        read.append(name)
        if name == "app.answers.argument":
            light.set()

    monkeypatch.setattr(warm, "import_module", record)
    monkeypatch.setattr(warm, "_read", threading.Event())
    warm.hold(1000.0)
    reader = threading.Thread(target=warm._import, daemon=True)
    reader.start()
    assert light.wait(10)
    reader.join(0.1)
    assert not set(read) & set(warm.PIECES)
    warm.wait()
    assert set(warm.PIECES) <= set(read)


def test_a_library_that_cannot_be_read_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(warm, "import_module", broken)
    monkeypatch.setattr(warm, "_read", threading.Event())
    with pytest.raises(ImportError):
        warm._import()
    warm.wait()
