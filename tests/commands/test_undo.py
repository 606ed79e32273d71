"""`bypass undo` as a user runs it, on the tiny pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from interp.cli import app
from interp.commands.undo import chosen_arms, dose_steps
from interp.elasticity.undo_folder import folder_of, read_plan, read_record
from interp.errors import UserError
from interp.models.pair import ModelPair
from tests.elasticity.words import OPENINGS, moved_words

TEXTS = "the blorp walks\na river and a stone\nnever under the wintle\n"


def run(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["undo", *words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def asked(tmp_path: Path, gpt2_folder: Path, tuned_folder: Path, pair: ModelPair) -> list[str]:
    """The options of a small question about the tiny pair, whose word odds differ in every opening."""
    texts, words = tmp_path / "texts.txt", tmp_path / "words.json"
    texts.write_text(TEXTS)
    words.write_text(json.dumps({"openings": OPENINGS, "pairs": [moved_words(pair)]}))
    neutral = tmp_path / "neutral.txt"
    neutral.write_text("the river walks\na stone sings\n")
    return [
        "--texts", str(texts), "--pair", str(gpt2_folder), str(tuned_folder), "--behaviour", f"words:{words}", "--arms",
        "opposite,neutral,same", "--neutral", str(neutral), "--held-out", str(neutral), "--doses", "2,4", "--steps-first", "",
        "--batch", "2",
        "--length", "12", "--seeds", "1", "--lr", "1e-4", "--new-tokens", "3", "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def test_a_question_has_its_plan_first_and_its_answer_on_a_page(asked: list[str], tmp_path: Path) -> None:
    result = run(*asked)
    assert "arm opposite: 3 texts of texts.txt" in result.stderr
    assert "doses in steps: 1 (2 samples, 24 tokens), 2 (4 samples, 48 tokens)" in result.stderr
    assert "3 runs (3 arms, 1 attacks, 1 seeds), about" in result.stderr
    assert "The mean word log-odds is" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"undo.json", "undo.csv", "index.html", "runs"}
    summary = json.loads((tmp_path / "out" / "undo.json").read_text())
    assert {row["arm"] for row in summary["doses"]} == {"opposite", "neutral", "same"}
    # The same question goes on from what is there, and answers the same.
    again = run(*asked, "--json")
    assert json.loads(again.stdout)["doses"] == summary["doses"]


def test_a_plan_alone_trains_nothing_and_the_question_goes_on_from_it(asked: list[str], tmp_path: Path) -> None:
    result = run(*asked, "--plan")
    assert "3 runs (3 arms, 1 attacks, 1 seeds), about" in result.stderr
    assert len(result.stdout.splitlines()) == 1
    assert result.stdout.startswith("The mean word log-odds is")
    place = folder_of(tmp_path / "out")
    assert place is not None
    assert {file.name for file in place.iterdir()} == {"base.json", "tuned.json", "step.json", "plan.json"}
    plan = read_plan(place)
    assert plan is not None
    assert [line.removeprefix("bypass: ") for line in result.stderr.splitlines()[-len(plan.lines) :]] == list(plan.lines)
    assert f"about {plan.minutes:.1f} minutes" in plan.lines[-1]
    said = json.loads(run(*asked, "--plan", "--json").stdout)
    assert (said["has_behaviour"], said["sentences"]) == (True, [" ".join(result.stdout.split())])
    record = read_record(place)
    assert record is not None
    assert not record.runs
    written = (place / "tuned.json").read_bytes()
    run(*asked)
    assert (place / "tuned.json").read_bytes() == written


def test_texts_are_ranked_without_training(asked: list[str], tmp_path: Path) -> None:
    result = run(*asked, "--rank")
    assert "what a first step would undo most" in result.stdout
    table = pd.read_csv(tmp_path / "out" / "ranking.csv")
    assert sorted(table["text"]) == sorted(TEXTS.splitlines())
    assert table["effect"].is_monotonic_increasing
    assert not (tmp_path / "out" / "runs").exists()


def test_a_budget_that_holds_nothing_says_how_much_is_needed(asked: list[str]) -> None:
    assert "the budget leaves" in run(*asked, "--budget", "0.0001", code=2).stderr


def test_doses_are_steps_with_points_at_five_and_ten() -> None:
    assert dose_steps("8,16,40,80,200,400", "5,10", 8) == (1, 2, 5, 10, 25, 50)
    assert dose_steps("10,200", "5,10", 16) == (1, 5, 10, 13)
    assert dose_steps("8,16", "5,10", 8) == (1, 2)
    for doses, batch in (("0,8", 8), ("8", 0), ("x", 8)):
        with pytest.raises(UserError):
            dose_steps(doses, "5,10", batch)


def test_arms_without_texts_are_left_out_and_refused_where_they_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(f"text {n}" for n in range(40)))
    arms, held_out = chosen_arms("opposite,benign,neutral,pretraining,same,from_base", file, None, None, None, None, strict=False)
    assert [arm for arm, _, _ in arms] == ["opposite", "benign", "neutral", "same", "from_base"]
    assert len(held_out["opposite"]) == 4
    texts = {arm: some for arm, some, _ in arms}
    assert texts["same"] is None
    assert not set(texts["opposite"] or ()) & set(held_out["opposite"])
    given, _ = chosen_arms("pretraining,same", file, None, None, file, file, strict=True)
    assert [arm for arm, _, _ in given] == ["pretraining", "same"]
    for names in ("pretraining", "opposites"):
        with pytest.raises(UserError):
            chosen_arms(names, file, None, None, None, None, strict=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--no-full",), "leaves no way of training"), (("--lora", "0"), "give a rank of at least 1"),
        (("--behaviour", "refusal"), "name them with --prompts"), (("--behaviour", "kindness"), "there is no behaviour"),
        (("--lr", "0"), "positive learning rates"), (("--limit", "1"), "at least 2 prompts"),
    ],
)  # fmt: skip
def test_what_makes_no_question_is_refused_with_a_fix(asked: list[str], options: tuple[str, ...], said: str) -> None:
    assert said in run(*asked, *options, code=2).stderr
