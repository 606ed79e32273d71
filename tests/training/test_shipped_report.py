"""The report that ships is a whole one of the pair that ships, and what was measured on other prompts goes with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from interp import UserError
from interp.bundled import BUNDLED
from training import shipped_report


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shipped_report, "BUNDLED", tmp_path / "bundled")
    (tmp_path / "bundled").mkdir()
    return tmp_path / "bundled"


def test_a_report_ships_without_the_paths_of_its_machine_and_with_the_sets_that_it_has(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    shutil.copytree(BUNDLED / "report", folder)
    record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    record["pair"]["base"]["source"] = "/somewhere/clone/interp/bundled/base"
    (folder / "report.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "paper.json").write_text(json.dumps({"pair": record["pair"], "sets": []}), encoding="utf-8")
    assert shipped_report.ship(folder) == bundle / "report" / "report.json"
    for name in ("report.json", "paper.json"):
        written = json.loads((bundle / "report" / name).read_text(encoding="utf-8"))
        assert written["pair"]["base"]["source"] == "interp/bundled/base"
    (folder / "paper.json").unlink()
    shipped_report.ship(folder)
    assert [path.name for path in (bundle / "report").iterdir()] == ["report.json"]


def test_a_quick_report_does_not_ship(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    shutil.copytree(BUNDLED / "report", folder)
    record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    record["experiments"][0]["settings"]["quick"] = True
    (folder / "report.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match="quick"):
        shipped_report.ship(folder)
    assert not (bundle / "report").exists()


def test_statistics_of_a_report_hold_no_text_and_no_path(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    shutil.copytree(BUNDLED / "smollm2" / "report", folder)
    record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    record["pair"]["tuned"]["path"] = "/somewhere/runs/full/dpo/model"
    (folder / "report.json").write_text(json.dumps(record), encoding="utf-8")
    file = shipped_report.write_statistics(folder, tmp_path / "statistics.json")
    text = file.read_text(encoding="utf-8")
    written = json.loads(text)
    assert written["pair"]["tuned"] == {"name": "model", "digest": record["pair"]["tuned"]["digest"]}
    assert "/somewhere" not in text
    assert [item["verdict"] for item in written["experiments"]] == [item["verdict"] for item in record["experiments"]]
    assert not {"tables", "figures", "summary"} & written["experiments"][0].keys()
