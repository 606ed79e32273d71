"""`bypass pairs` as a user runs it, on a tiny model."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from interp.cli import app
from tests import ROOT
from tests.preferences.invented_pairs import HOSTILE, rows
from tests.preferences.test_watch import log, write

Invoke = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows()).encode()))
    return path


def run(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["pairs", *words])
    assert result.exit_code == code, result.output
    return result


def test_help_of_the_group_reads_no_library_that_takes_seconds() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from interp.cli import app\n"
        "r = CliRunner().invoke(app, ['pairs', 'audit', '--help'])\n"
        "print('--keep' in r.output, *sorted({'torch', 'transformers', 'pandas', 'numpy', 'datasets'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"


def test_an_audit_says_what_it_reads_and_costs_and_writes_its_files(file: Path, gpt2_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(
        "audit", str(file), "--model", str(gpt2_folder), "--max-length", "32", "--keep", "0.5", "--by", "alpha_ches", "--out", str(out)
    )
    assert "24 pairs, jsonl, packed, layout standard explicit" in result.stderr
    assert "forward: 21 pairs of" in result.stderr
    assert "22 of 24 pairs give the trainer a gradient" in result.stdout
    names = {path.name for path in out.iterdir()}
    assert names == {"audit.json", "audit.csv", "audit.parquet", "index.html", "kept.jsonl", "dropped.jsonl", "random.jsonl", "blocks"}
    assert len((out / "kept.jsonl").read_text().splitlines()) == 10


def test_a_filter_is_verified_by_training_where_that_is_asked_for(gpt2_folder: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(46)))
    options = ("--model", str(gpt2_folder), "--level", "text", "--max-length", "32", "--by", "edit", "--keep", "0.5", "--out", str(out))
    shown = run("audit", str(path), *options, "--verify", "--verify-lr", "1e-3", "--verify-optimizer", "sgd").stdout
    assert "Trained on what is kept, log π(chosen) of 4 held-out pairs ends" in shown
    record = json.loads((out / "audit.json").read_text())["verification"]
    assert [arm["trained_on"] for arm in record["arms"]] == ["all", "kept", "random"]
    assert "verification: mean changes in nats" in (out / "index.html").read_text().lower()
    assert "--verify checks a filter" in run("audit", str(path), "--verify", "--out", str(out), code=2).stderr


def test_json_is_the_summary_that_is_written(file: Path, gpt2_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = run("audit", str(file), "--model", str(gpt2_folder), "--max-length", "32", "--level", "text", "--json", "--out", str(out))
    record = json.loads(shown.stdout)
    assert record == json.loads((out / "audit.json").read_text())
    assert (record["ranked_by"], record["rows_in_file"], record["layout"]) == ("edit", 24, "standard explicit")
    assert not (out / "blocks").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--truncation", "keep_end"), "TRL deprecates keep_end"), (("--columns", "chosen"), "--columns holds 'chosen'"),
     (("--layout", "odd"), "no layout 'odd'"), (("--level", "deep"), "--level is 'deep'")],
)  # fmt: skip
def test_bad_options_are_one_line_with_a_fix(words: tuple[str, ...], message: str, file: Path, tmp_path: Path, unchecked: None) -> None:
    said = run("audit", str(file), *words, "--out", str(tmp_path / "out"), code=2).stderr
    assert message in said
    assert "Fix:" in said


def test_a_hostile_file_stays_text_and_a_broken_one_is_named(gpt2_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": " the", "chosen": HOSTILE[:20] + str(n), "rejected": " a"}) + "\n" for n in range(3)))
    run("audit", str(path), "--model", str(gpt2_folder), "--out", str(tmp_path / "out"))
    assert HOSTILE[:20] not in (tmp_path / "out" / "index.html").read_text().split("</style>")[1].split("<script")[0]
    path.write_text('{"chosen": "a", "rejected": "b"}\n{"chosen": "a"}\n')
    assert "line 2: `rejected` is missing" in run("audit", str(path), "--out", str(tmp_path / "out"), code=2).stderr


def test_watch_says_it_in_a_sentence_and_as_json(tmp_path: Path) -> None:
    file = write(log(-12, -40), tmp_path)
    assert "both sides fell" in run("watch", str(file)).stdout
    assert json.loads(run("watch", str(file), "--json").stdout)["both_fall"] is True
    assert "there is no training log" in run("watch", str(tmp_path / "gone"), code=2).stderr
