"""`bypass patch` says what `patch` finds, masked for people and raw for machines, and refuses what makes no sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from interp import Model, ModelPair, patch
from interp.cli import app
from interp.patching.metrics import LogitDifference

Invoke = Callable[..., Any]
PROMPT = "the quick wintle sings"


@pytest.fixture
def invoke(gpt2_folder: Path, tuned_folder: Path) -> Invoke:
    def run(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["patch", *words, "--pair", str(gpt2_folder), str(tuned_folder)])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if "--json" in words and not code else result

    return run


def test_the_command_prints_the_numbers_of_the_function(invoke: Invoke, pair: ModelPair) -> None:
    words = ("--from", "base", "--into", "tuned", "--site", "mlp_out", "--tokens", "river", "stone", "--null", "0")
    record = invoke(PROMPT, *words, "--json")
    metric = LogitDifference(pair.base.token("river"), pair.base.token("stone"))
    expected = patch(pair, PROMPT, metric=metric, site="mlp_out", directions=["base into tuned"]).to_frame()
    assert [cell["effect"] for cell in record["cells"]] == pytest.approx(expected["effect"].tolist(), abs=1e-6)
    assert [end["direction"] for end in record["directions"]] == ["base into tuned"]
    text = invoke(PROMPT, *words, "--top", "3").stdout
    assert "Strongest is layer" in text
    assert "base into tuned" in text


def test_within_a_model_the_folder_holds_tables_and_a_page(invoke: Invoke, gpt2: Model, tmp_path: Path) -> None:
    out = tmp_path / "map"
    text = invoke(PROMPT, "--corrupted", "the bitter snarg walks", "--token", "river", "--token", "stone", "--out", str(out)).stdout
    assert text.index("denoising") < text.index("noising: effect")
    assert {path.name for path in out.iterdir()} == {"patch.json", "patch.csv", "index.html"}
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "Strongest is layer" in page
    assert "http" not in page.split("<script", 1)[0]


def test_estimates_are_checked_and_paths_are_listed(invoke: Invoke) -> None:
    found = invoke(PROMPT, "--tokens", "river", "stone", "--site", "attn_out", "--method", "gradient", "--check", "--json")
    assert {row["direction"] for row in found["agreement"]} == {"base into tuned", "tuned into base"}
    assert all(-1 <= row["correlation"] <= 1 for row in found["agreement"])
    paths = invoke(PROMPT, "--tokens", "river", "stone", "--paths", "mlp.0,head.0.1", "head.1.2.v,logits", "--json")
    assert len(paths["cells"]) == 2 * 2 * 2


def test_words_are_masked_for_people(invoke: Invoke) -> None:
    words = ("the shit sings", "--tokens", "river", "stone", "--from", "base", "--top", "50")
    assert "shit" not in invoke(*words).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--from", "clean"), "base and tuned"), (("--metric", "anger"), "no metric"), (("--metric", "logit-difference"), "go together"),
        (("--layers", "x"), "--layers"), (("--method", "guess"), "no method"), (("--check",), "--check"), (("--units", "1.2.3"), "--units"),
        (("--corrupted", "the", "--tokens", "river", "stone"), "part at position"), (("--tokens", "river", "blorpblorp"), "tokens for"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_line_and_exit_code_2(invoke: Invoke, words: tuple[str, ...], message: str) -> None:
    result = invoke(PROMPT, *words, code=2)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
