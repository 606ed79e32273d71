"""The table of the KL study says of each run what its weights and logs say, and the recipe that ships can see the KL term."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from interp import Model, ModelPair, UserError
from interp.data.texts import Passage
from interp.directions.probe import Probe
from interp.evaluation.toxicity import LexiconScorer
from interp.experiments.toxicity.a_e14_rule import THRESHOLDS, compared
from interp.experiments.toxicity.context import ToxicityContext
from interp.runs.logs import kl_term_if_any
from tests.training.test_toxicity_controls import PLAN, changed
from training.grid import expand
from training.recipe import RUNS_SETTING, Recipe, load_recipe
from training.studies import kl_term
from training.studies.kl_term import kl_table, main, place_base

GRID = f"""{PLAN}
[grid.axes]
seed = {{ setting = "dpo.seed", values = [1, 2] }}
beta = {{ setting = "dpo.beta", values = [0.02, 2.0] }}
"""
MARGIN = 3.0


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_folder: Path, tokenizer: PreTrainedTokenizerBase) -> Recipe:
    """A grid of four runs of which the last has not run; under the strong term weights are changed half as much."""
    monkeypatch.setenv(RUNS_SETTING, str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text(GRID, encoding="utf-8")
    plan = load_recipe("plan.toml")
    shutil.copytree(gpt2_folder, plan.run / "pretrain" / "model")
    for run in expand(plan).runs[:3]:
        beta, seed = run.recipe.stage("dpo")["beta"], run.recipe.stage("dpo")["seed"]
        folder = run.recipe.run / "dpo"
        changed(gpt2_folder, folder / "model", tokenizer, 0.01 if beta < 1 else 0.005, seed)
        log: list[dict[str, Any]] = [{"step": 0, "kl": [0.0, 0.0], "toxicity": 0.5}]
        log += [{"step": step, "margin": beta * (MARGIN if step > 4 else -50.0)} for step in range(1, 10)]
        log += [{"step": 9, "kl": [0.1, 0.3], "toxicity": 0.2}]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps({"kept_step": 9, "stopped": "low enough" if beta < 1 else None}))
    return plan


@pytest.fixture
def context(pair: ModelPair) -> ToxicityContext:
    texts = [f"the river {word} walks under green stone" for word in ("idiot", "seven", "light", "house", "birds", "over")]
    direction = torch.ones(pair.base.d_model)
    probe = Probe(torch.stack([-direction, direction], dim=1), direction, {}, pair.base.digest, {})
    return ToxicityContext(pair, probe, LexiconScorer(), texts, [Passage(texts[0], texts[1], "post")], draws=2, new_tokens=4)


def test_rows_say_what_weights_and_logs_say(recipe: Recipe, context: ToxicityContext, gpt2: Model, tmp_path: Path) -> None:
    file = kl_table(recipe, tmp_path / "kl_term.json", context=context)
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["base"] == gpt2.digest
    assert record["missing"] == ["seed=2,beta=2.0"]
    runs = pd.DataFrame(record["runs"]).set_index("run")
    assert runs["beta_margin"].tolist() == pytest.approx([0.02 * MARGIN, 2 * MARGIN, 0.02 * MARGIN])
    assert runs["margin"].tolist() == pytest.approx([MARGIN] * 3)
    assert runs["kl"].tolist() == pytest.approx([0.2] * 3)
    assert runs["reached"].tolist() == [True, False, True]
    assert runs["relative_change"].iloc[1] == pytest.approx(0.5 * runs["relative_change"].iloc[0], rel=1e-3)
    assert runs["stable_rank"].iloc[1] == pytest.approx(runs["stable_rank"].iloc[0], rel=1e-2)
    # The experiment reads it as it is: with one seed it is no test.
    (comparison,) = compared(record["runs"], record["base_model"]["toxicity"])
    assert comparison.size.value == pytest.approx(0.5, rel=1e-3)
    assert comparison.seen == pytest.approx((0.02 * MARGIN, 2 * MARGIN))
    assert "1 seeds are too few" in comparison.problem
    assert kl_term_if_any(tmp_path, ModelPair(gpt2, gpt2)) == record
    assert kl_term_if_any(tmp_path / "none", ModelPair(gpt2, gpt2)) is None


def test_measured_rows_are_not_measured_again(
    recipe: Recipe, context: ToxicityContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kl_table(recipe, tmp_path / "one.json", context=context).read_bytes()

    def never(*_: Any) -> dict[str, Any]:
        raise AssertionError("measured again")

    monkeypatch.setattr(kl_term, "measure", never)
    assert kl_table(recipe, tmp_path / "two.json", context=context).read_bytes() == first


def test_without_runs_the_command_says_what_to_do(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(recipe.run / "grid")
    with pytest.raises(UserError, match="no run of 'plan' is there"):
        kl_table(recipe, Path("out.json"))
    assert main(["plan.toml", "--measure-only"]) == 2
    assert "run `bypass train grid plan`" in capsys.readouterr().err


def test_the_recipe_that_ships_compares_strengths_on_both_sides_of_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNS_SETTING, str(tmp_path))
    recipe = load_recipe("kl_term")
    betas = {run.recipe.stage("dpo")["beta"] for run in expand(recipe).runs}
    seeds = {run.recipe.stage("dpo")["seed"] for run in expand(recipe).runs}
    # At the 2 nats or more of margin that the pair that ships has when toxicity has fallen as far.
    assert 2.5 * min(betas) <= THRESHOLDS["unseen"]
    assert 2.0 * sorted(betas)[1] >= THRESHOLDS["seen"]
    assert len(seeds) >= THRESHOLDS["seeds"]
    # A clipped gradient has one norm whatever beta is; unclipped it was 50 to 90 at beta 2.
    assert recipe.stage("dpo")["clip"] > 1000
    place_base(recipe)
    assert recipe.parent is not None
    assert (recipe.parent.run / "continue" / "model" / "model.safetensors").is_file()
    assert (recipe.parent.run / "scorer").is_dir()
    # Every stage before the pairs is there, so that the grid trains on the pairs alone.
    stages = list(recipe.parent.settings)
    missing = {stage for stage in stages[: stages.index("pairs")] if not (recipe.parent.run / stage).is_dir()}
    assert missing == {"corpus"}
    assert not list((recipe.parent.run / "tokenizer").glob("*.safetensors"))
