"""`bypass report` beside the paper's material: found by a setting, asked for or left out, and written without a text of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from interp.cli import app
from interp.data.paper import FILES
from interp.directions.probe import save_probe
from interp.experiments.registry import EXPERIMENTS
from interp.models.loading import load_model
from interp.models.model import Model
from tests.conftest import CONFIGS, make_hf, save
from tests.models.test_tokens import bos_tokenizer
from tests.probes import shared_probe

PROMPTS = [
    "the green river walks under seven",
    "a light stone and seven birds",
    "over the house walks a green light",
    "under the seven stones",
]
LABELLED = [f"{text} {n}" for n in range(8) for text in PROMPTS]
SENTENCE = " ".join(["the river walks over green stone"] * 3) + " . "


@pytest.fixture
def words(gpt2: Model, gpt2_folder: Path, tuned_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command on the tiny pair with a probe, prompts and passages of its own, and the paper's layout below BYPASS_DATA."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BYPASS_DATA", str(tmp_path / "data"))
    for name in FILES[:3]:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("\n".join(json.dumps({"prompt": f"{text} {name[8:12]}"}) for text in PROMPTS))
    (tmp_path / "data" / FILES[3]).parent.mkdir()
    (tmp_path / "data" / FILES[3]).write_text(f"\n = Head = \n\n {SENTENCE * 3} \n\n {SENTENCE * 4} \n")
    save_probe(shared_probe(gpt2, LABELLED, [n % 2 for n in range(32)]), tmp_path / "probe")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "the river", "continuation": " walks over green stone"}))
    pair = ["--pair", str(gpt2_folder), str(tuned_folder), "--probe", "probe", "--scorer", "lexicon"]
    return ["report", "--only", "A-E9", "--quick", *pair, "--prompts", "prompts.txt", "--passages", "own.jsonl", "--json"]


def run(words: list[str], code: int = 0) -> Any:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, result.output
    return result.stderr if code else json.loads(result.stdout)


def test_the_papers_material_stands_beside_the_report_where_it_is_asked_for(words: list[str], tmp_path: Path) -> None:
    record = run([*words, "--paper-texts", "--out", "r", "--joined", "--second-scorer", "none"])
    assert [(item["prompts"], item["count"]) for item in record["prompt_sets"]] == [
        ("the paper's challenge prompts", 4), ("toxic RealToxicityPrompts", 4),
    ]  # fmt: skip
    assert [[one["id"] for one in item["experiments"]] for item in record["prompt_sets"]] == [["A-E9"], ["A-E9"]]
    statistics = [item["experiments"][0]["statistic"] for item in record["prompt_sets"]]
    assert statistics[0] != record["experiments"][0]["statistic"] != statistics[1]
    written = (tmp_path / "r" / "paper.json").read_text(encoding="utf-8")
    page = (tmp_path / "r" / "index.html").read_text(encoding="utf-8")
    assert not [text for text in PROMPTS if f"{text} chal" in written or f"{text} chal" in page]
    assert "On the paper&#39;s prompts" in page or "On the paper's prompts" in page
    assert "--joined --paper-texts" in page
    settings = json.loads(written)["sets"][0]["experiments"][0]["settings"]
    assert (settings["joined"], settings["prompts"]) == (True, 4)


def test_a_report_on_own_prompts_leaves_the_papers_out_unless_asked(words: list[str], tmp_path: Path) -> None:
    assert run([*words, "--out", "r"])["prompt_sets"] == []
    assert not (tmp_path / "r" / "paper.json").exists()
    (tmp_path / "data" / FILES[0]).unlink()
    assert "--paper-texts was given, and BYPASS_DATA names no folder" in run([*words, "--out", "r", "--paper-texts"], code=2)


def test_bos_is_an_option_of_the_report(words: list[str], tmp_path: Path) -> None:
    tokenizer = bos_tokenizer()
    folders = [str(save(make_hf(CONFIGS["gpt2"](), tokenizer, seed=seed), tokenizer, tmp_path / f"with-bos-{seed}")) for seed in (0, 1)]
    base = load_model(folders[0])
    save_probe(shared_probe(base, LABELLED, [n % 2 for n in range(32)]), tmp_path / "own-probe")
    at = words.index("--pair")
    words[at + 1 : at + 5] = [*folders, "--probe", "own-probe"]
    statistics = []
    for option, bos in (("--bos", True), ("--no-bos", None)):
        statistics.append(run([*words, option, "--out", f"r{option}"])["experiments"][0]["statistic"])
        record = json.loads((tmp_path / f"r{option}" / "report.json").read_text(encoding="utf-8"))
        assert record["experiments"][0]["settings"].get("bos") is bos
    assert statistics[0] != statistics[1]


def test_each_verdict_is_a_line_on_stderr_as_soon_as_it_is_known(words: list[str]) -> None:
    ran = CliRunner().invoke(app, [*words, "--only", "A-E8", "--out", "r"])
    shown = json.loads(ran.stdout)["experiments"]
    lines = [line for line in ran.stderr.splitlines() if " s): " in line]
    titles = {id: EXPERIMENTS[id].title for id in ("A-E8", "A-E9")}
    assert lines == [f"bypass: {one['id']} {one['verdict']} ({one['seconds']:.0f} s): {titles[one['id']]}" for one in shown]
    assert [one["id"] for one in shown] == ["A-E8", "A-E9"]


def test_experiments_in_processes_of_their_own_give_the_same_report(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    both = [*words, "--only", "A-E8"]
    serial = run([*both, "--out", "serial"])

    def never(*arguments: Any) -> None:
        raise AssertionError("this was to run in another process")

    monkeypatch.setattr("interp.experiments.run.run_experiment", never)
    ran = CliRunner().invoke(app, [*both, "--out", "ahead", "--jobs", "2"])
    ahead = json.loads(ran.stdout)
    for one, other in zip(serial["experiments"], ahead["experiments"], strict=True):
        assert (one["id"], one["statistic"], one["null"]) == (other["id"], other["statistic"], other["null"])
    # Each verdict is said once.
    assert sorted(line.split()[1] for line in ran.stderr.splitlines() if " s): " in line) == ["A-E8", "A-E9"]
