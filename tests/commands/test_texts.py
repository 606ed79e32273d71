"""What the commands do with texts: files by their suffix, BOS, long prompts, JSON in any encoding, and pairs of equal sides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from interp import Model, generate, load_model
from interp.cli import app
from interp.commands import common
from interp.experiments.registry import EXPERIMENTS
from tests.conftest import CONFIGS, CONTEXT, TEXTS, make_hf, save
from tests.models.test_tokens import BOS, bos_tokenizer

Invoke = Callable[..., Any]
MINE = """
import pandas as pd
from interp.experiments import Context, Finding, experiment

@experiment("MY-E1", claim="MY-C1", title="mine", question="so?", criterion="so", refuted_by="not so", caveat="none")
def run(context: Context) -> Finding:
    return Finding("holds", "said", {"share": 1.0}, {"shares": 0.5}, {}, {}, ())
"""


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("BYPASS_DATA", raising=False)

    def run(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == code, result.output
        return result

    return run


def test_prompts_of_a_table_are_its_column_and_never_its_header(invoke: Invoke, gpt2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('id,prompt\n1,"the river, quick"\n2,a stone\n', encoding="utf-8")
    found = json.loads(invoke("generate", str(gpt2_folder), "--prompts", "p.csv", "--new-tokens", "2", "--json").stdout)
    assert [row["prompt"] for row in found] == ["the river, quick", "a stone"]
    (tmp_path / "p.md").write_text("# Prompts\nthe river\n", encoding="utf-8")
    assert "not guessed at" in invoke("generate", str(gpt2_folder), "--prompts", "p.md", code=2).stderr


def test_long_prompts_are_refused_or_lose_their_beginning_with_a_word(
    invoke: Invoke, gpt2_folder: Path, gpt2: Model, tmp_path: Path
) -> None:
    prompts = ["the quick river " * 40 + TEXTS[2], "a stone"]
    (tmp_path / "p.json").write_text(json.dumps(prompts), encoding="utf-8")
    words = ("generate", str(gpt2_folder), "--prompts", "p.json", "--new-tokens", "3", "--json")
    assert "keep its end" in invoke(*words, code=2).stderr
    found = invoke(*words, "--max-prompt-tokens", "9")
    expected = generate(gpt2, prompts, max_new_tokens=3, max_prompt_tokens=9)
    assert [row[gpt2_folder.name] for row in json.loads(found.stdout)] == expected
    assert found.stderr == "bypass: 1 of 2 prompts are longer than 9 tokens: only the last 9 are read.\n"
    # More than fits is as much as fits.
    found = invoke(*words, "--max-prompt-tokens", "1000")
    assert f"the last {CONTEXT - 3} are read" in found.stderr
    report = ("report", "--pair", str(gpt2_folder), str(gpt2_folder), "--prompts", "p.json", "--scorer", "lexicon", "--only", "A-E2")
    limit = CONTEXT - 20
    refused = invoke(*report, code=2).stderr
    assert f"1 of 2 prompts are longer than the {limit} tokens" in refused
    assert f"--max-prompt-tokens {limit}" in refused


def test_bos_is_as_the_tokenizer_has_it_or_as_asked_and_said(invoke: Invoke, tmp_path: Path) -> None:
    tokenizer = bos_tokenizer()
    folder = str(save(make_hf(CONFIGS["llama"](), tokenizer, seed=2), tokenizer, tmp_path / "with-bos"))
    model = load_model(folder)
    answers = {}
    for option, said in (
        ((), f"bypass: Raw texts begin with the BOS token {BOS}, as the tokenizer has it.\n"),
        (("--no-bos",), f"bypass: Raw texts begin without the BOS token {BOS}, which the tokenizer adds by default.\n"),
    ):
        found = invoke("generate", folder, "the quick river", "--new-tokens", "6", "--json", *option)
        assert found.stderr == said
        (answers[option],) = (row["with-bos"] for row in json.loads(found.stdout))
        assert answers[option] == generate(model, ["the quick river"], max_new_tokens=6, bos=not option)[0]
    assert answers[()] != answers["--no-bos",]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_json_is_json_whatever_the_terminals_encoding(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"é": "🙂 日本 \x9d \ud83d end", "ü": ["€", 1.5]}
    file = tmp_path / "out.json"
    with file.open("w", encoding=encoding, errors="backslashreplace") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        common.print_json(value)
    assert json.loads(file.read_text(encoding=encoding)) == value


def test_sides_of_equal_weights_are_named_first_and_no_claim_on_them_holds(invoke: Invoke, gpt2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(text for text in TEXTS for _ in range(3)), encoding="utf-8")
    words = ("report", "--pair", str(gpt2_folder), str(gpt2_folder), "--prompts", "p.txt", "--scorer", "lexicon", "--quick")
    found = invoke(*words, "--only", "A-E2", "--only", "A-E8", "--out", "out", "--max-prompt-tokens", "20")
    first = "Both sides have the same weights"
    assert found.stderr.startswith(f"bypass: {first}")
    assert found.stdout.startswith(first)
    record = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    verdicts = {item["id"]: item["verdict"] for item in record["experiments"]}
    assert verdicts["A-E8"] == "not applicable"
    assert verdicts["A-E2"] in ("holds", "fails", "inconclusive")
    assert [note[: len(first)] for note in record["environment"]["notes"]] == [first]
    assert "not applicable" in found.stdout
    table = pd.read_csv(next((tmp_path / "out").glob("A-E2-*.csv")))
    digest = load_model(gpt2_folder).digest[:12]
    assert table["pair"].str.endswith(f"({digest}, {digest})").all()


def test_sides_that_stop_at_different_tokens_are_told(invoke: Invoke, gpt2_folder: Path, tuned_folder: Path, tmp_path: Path) -> None:
    tuned = shutil.copytree(tuned_folder, tmp_path / "chat")
    file = tuned / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [0, 300]}))
    found = invoke("generate", "both", "the river", "--pair", str(gpt2_folder), str(tuned), "--new-tokens", "2", "--json")
    assert "The sides stop at different tokens" in found.stderr
    assert set(json.loads(found.stdout)[0]) == {"prompt", "prompt_format", "base", "tuned"}


def test_an_experiment_whose_nulls_are_named_otherwise_is_one_line(
    invoke: Invoke, gpt2_folder: Path, tuned_folder: Path, tmp_path: Path
) -> None:
    before = dict(EXPERIMENTS)
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "p.txt").write_text("the river\na stone\n", encoding="utf-8")
    words = ("report", "--pair", str(gpt2_folder), str(tuned_folder), "--prompts", "p.txt", "--scorer", "lexicon")
    try:
        found = invoke(*words, "--experiment", "mine.py", "--only", "MY-E1", code=2)
    finally:
        EXPERIMENTS.clear()
        EXPERIMENTS.update(before)
    assert "MY-E1 has a null or interval of shares, of which there is no statistic" in found.stderr
    assert "name each as its statistic: share" in found.stderr
    assert len(found.stderr.splitlines()) == 1
