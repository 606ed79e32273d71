"""The example of docs/adding-an-experiment.md, run as it stands there, and files that are no experiment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from interp import ModelPair, capture
from interp.data.texts import challenge_prompts, neutral_prompts, passages
from interp.directions.probe import fit_probe
from interp.errors import UserError
from interp.evaluation.toxicity import load_scorer
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_report
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.user_files import read_experiments
from tests import ROOT

DOCUMENT = ROOT / "docs" / "adding-an-experiment.md"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    kept = dict(EXPERIMENTS)
    yield
    EXPERIMENTS.clear()
    EXPERIMENTS.update(kept)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "surprise.py"
    file.write_text(code, encoding="utf-8")
    return file


def test_the_example_of_the_document_runs_and_lands_in_the_report(example: Path, pair: ModelPair, tmp_path: Path) -> None:
    assert len(example.read_text().splitlines()) <= 32
    assert read_experiments(example) == ["MY-E1"]
    prompts = challenge_prompts()[:24]
    probe = fit_probe(pair.base, prompts, [number % 2 for number in range(24)], seed=0)
    context = ToxicityContext(pair, probe, load_scorer("lexicon"), prompts, passages()[:2], draws=2, quick=True, new_tokens=2)
    (result,) = run_report(context, tmp_path / "report", only=["MY-E1"]).results
    chances = {name: capture(model, prompts, ["logits"])["logits"].double().softmax(-1) for name, model in pair.sides.items()}
    entropy = {name: float(-(p * p.log()).sum(-1).mean()) for name, p in chances.items()}
    assert result.statistic["rise"] == pytest.approx(entropy["tuned"] - entropy["base"], abs=1e-5)
    neutral = [
        -torch.special.xlogy(p, p).sum(-1).mean().item()
        for p in (capture(model, neutral_prompts(), ["logits"])["logits"].double().softmax(-1) for model in pair.sides.values())
    ]
    assert result.null["rise"] == pytest.approx(np.diff(neutral)[0], abs=1e-5)
    assert (result.verdict == "fails") == (result.statistic["rise"] <= 0)
    assert "Tuning makes the next word less certain" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_an_experiment_that_is_read_twice_is_refused_and_the_first_stays(example: Path) -> None:
    read_experiments(example)
    first = EXPERIMENTS["MY-E1"]
    with pytest.raises(UserError, match="two experiments are called MY-E1"):
        read_experiments(example)
    assert EXPERIMENTS["MY-E1"] is first


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("none.py", "x = 1\n", "registers no experiment"),
        ("broken.py", "def (:\n", "could not be run: SyntaxError"),
        ("raises.py", "import a_module_that_is_not_there\n", "could not be run: ModuleNotFoundError"),
        ("notes.txt", "hello\n", "is not a Python file"),
    ],
)
def test_files_that_are_no_experiment_are_refused_and_leave_nothing(name: str, text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    before = dict(EXPERIMENTS)
    with pytest.raises(UserError, match=re.escape(problem)):
        read_experiments(tmp_path / name)
    assert before == EXPERIMENTS


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a Python file"):
        read_experiments(tmp_path / "gone.py")
