"""A grid of runs: what it expands to, that it goes on where it was stopped, and that one failing run does not stop the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp.errors import UserError
from interp.runs.telemetry import read_lines
from tests.training.grammar import write_language
from training import dpo
from training.cli import run_stage
from training.grid import INDEX, expand
from training.recipe import DATA_SETTING, RUNS_SETTING, load_recipe
from training.sections import DpoSettings

GRID = """
extends = "tiny"
name = "many"

[grid.axes]
objective = [
  { name = "dpo" },
  { name = "ipo", dpo = { loss = "ipo", beta = 0.2 } },
  { name = "hinge", dpo = { loss = "hinge" } },
]
seed = { setting = "dpo.seed", values = [1, 2] }
data = [{ name = "two", pairs = { file = { path = "two.jsonl" } } }, { name = "three", pairs = { file = { path = "three.jsonl" } } }]

[[grid.exclude]]
data = "three"
seed = 2

[[grid.exclude]]
data = "three"
objective = "hinge"
"""
TINY = {
    "epochs = 2": "steps = 4\nevaluate_kilobytes = 1",
    "heads = 2": "heads = 2\nsample_prompts = ['a']",
    "prompts = 60": 'prompts = 24\ngenerator = "file"\nfile = { path = "one.jsonl" }',
    "chosen_at_most = 0.2": "chosen_at_most = 1.0",
    "rejected_at_least = 0.6": "rejected_at_least = 0.0",
    "max_steps = 25": "max_steps = 2",
    "development_prompts = 20": "development_prompts = 2",
    "evaluate_every = 10": "evaluate_every = 1",
}


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes `tiny` and `many`, and a run of `tiny` up to the base model."""
    root = tmp_path_factory.mktemp("grid")
    tiny = write_language(root, documents=300)
    text = tiny.read_text(encoding="utf-8")
    for old, new in TINY.items():
        assert old in text, old
        text = text.replace(old, new)
    before, _, after = text.partition("[probe]")
    tiny.write_text(before + "[pairs]" + after.partition("[pairs]")[2], encoding="utf-8")
    (root / "many.toml").write_text(GRID, encoding="utf-8")
    for name, words in (("two", ("river", "stone")), ("three", ("cloud", "meadow"))):
        pairs = [{"prompt": f"number {n} is", "chosen": f" {words[0]} {n}", "rejected": f" {words[1]} {n}"} for n in range(24)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_SETTING, str(root))
        patch.setenv(RUNS_SETTING, str(root / "runs"))
        for stage in ("corpus", "tokenizer", "pretrain"):
            run_stage(stage, tiny)
    return root


@pytest.fixture
def root(language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(language, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv(DATA_SETTING, str(tmp_path))
    monkeypatch.setenv(RUNS_SETTING, str(tmp_path / "runs"))
    return tmp_path


def rows(root: Path, name: str = "many") -> dict[str, dict[str, Any]]:
    index = json.loads((root / "runs" / name / "grid" / INDEX).read_text(encoding="utf-8"))
    return {row["name"]: row for row in index["runs"]}


def test_a_grid_is_the_cross_product_of_its_axes_with_what_reaches_furthest_back_first(root: Path) -> None:
    grid = expand(load_recipe(root / "many.toml"))
    assert [run.name for run in grid.runs] == [
        "data=two,objective=dpo,seed=1", "data=two,objective=dpo,seed=2", "data=two,objective=ipo,seed=1", "data=two,objective=ipo,seed=2",
        "data=two,objective=hinge,seed=1", "data=two,objective=hinge,seed=2", "data=three,objective=dpo,seed=1",
        "data=three,objective=ipo,seed=1",
    ]  # fmt: skip
    assert grid.axes == {"data": ("two", "three"), "objective": ("dpo", "ipo", "hinge"), "seed": ("1", "2")}
    ipo = next(run.recipe for run in grid.runs if run.name == "data=two,objective=ipo,seed=2")
    assert ipo.settings["dpo"] == {**load_recipe(root / "tiny.toml").settings["dpo"], "loss": "ipo", "beta": 0.2, "seed": 2}
    assert ipo.owner("pairs").run.name == "data=two", "the pairs of one source of data are made once"
    assert ipo.owner("pretrain").name == "tiny"
    assert ipo.run == root / "runs" / "many" / "grid" / "data=two,objective=ipo,seed=2"


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ("[grid]\nstage = 'dpo'\n", r"does not set 'axes'"),
        ("[grid.axes]\n", r"has no axes"),
        ("[grid.axes]\nseed = [1, 2]\n", r"axis 'seed' .* has no points that can be read.*dpo\.seed"),
        ("[grid.axes]\na = [{ name = 'x', dpo = { bate = 2 } }]\n", r"section \[dpo\] of recipe 'point a=x' does not know 'bate'"),
        ("[grid.axes]\na = { setting = 'dpo.beta', values = ['much'] }\n", r"sets beta to 'much'"),
        ("[grid.axes]\na = [{ name = 'x' }, { name = 'x' }]\n", r"has the points x, x"),
        ("[grid.axes]\na = [{ name = 'x/y' }]\n", r"has the points x/y"),
        ("[grid]\nexclude = [{ a = 'z' }]\n[grid.axes]\na = [{ name = 'x' }]\n", r"excludes a=z, which is no point"),
        ("[grid]\nexclude = [{ a = 'x' }]\n[grid.axes]\na = [{ name = 'x' }]\n", r"excludes all of its points"),
        ("[grid]\nstage = 'bundle'\n[grid.axes]\na = [{ name = 'x' }]\n", r"go to 'bundle', which makes nothing"),
        ("[grid.axes]\nseed = { setting = 'seed', values = [1, -1] }\n", r"point seed=-1 has the seed -1.*a number from 0"),
        ("[grid.axes]\nseed = { setting = 'seed', values = [true] }\n", r"point seed=True has the seed True.*a number from 0"),
        ("[grid.axes]\na = [{ name = 'x', seed = 1.5 }]\n", r"point a=x has the seed 1\.5.*a number from 0"),
        ("[grid.axes]\na = [{ name = 'x', dpo = { equal_steps = true } }]\n", r"asks for equal_steps"),
    ],
)
def test_a_grid_that_cannot_be_expanded_says_why(root: Path, axes: str, says: str) -> None:
    (root / "bad.toml").write_text(f'extends = "tiny"\n{axes}', encoding="utf-8")
    with pytest.raises(UserError, match=says):
        expand(load_recipe(root / "bad.toml"))


def test_the_grid_that_ships_expands_to_runs_on_the_pairs_of_grammar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNS_SETTING, str(tmp_path))
    grid = expand(load_recipe("grammar_grid"))
    assert grid.axes == {"objective": ("dpo", "ipo"), "seed": ("1", "2")}
    assert [run.name for run in grid.runs] == [f"objective={objective},seed={seed}" for objective in ("dpo", "ipo") for seed in (1, 2)]
    settings = [run.recipe.settings_as(DpoSettings, "dpo") for run in grid.runs]
    assert [(one.loss, one.seed) for one in settings] == [("sigmoid", 1), ("sigmoid", 2), ("ipo", 1), ("ipo", 2)]
    assert {one.max_steps for one in settings} == {30}
    for run in grid.runs:
        assert run.recipe.alternative_as("dpo", "measure").scorer == "lexicon"
        assert run.recipe.owner("pairs").name == run.recipe.owner("pretrain").name == "grammar"
        assert run.recipe.owner("dpo").run == tmp_path / "grammar_grid" / "grid" / run.name


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    capsys.readouterr()
    return lambda: capsys.readouterr().out


@pytest.mark.slow
def test_a_grid_goes_on_where_it_was_stopped_and_a_failing_run_stops_no_other(
    root: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    check, steps = dpo.check_first, []

    def stopped(wanted: float, value: float, margin: float) -> None:
        check(wanted, value, margin)
        steps.append(wanted)
        if len(steps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(dpo, "check_first", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_stage("grid", root / "many.toml")
    states = [row["state"] for row in rows(root).values()]
    assert states == ["done", "done", *["pending"] * 6]
    first = root / "runs" / "many" / "grid" / "data=two,objective=dpo,seed=1" / "dpo"
    stamp, log = (first / "stamp.json").stat().st_mtime_ns, (first / "log.jsonl").read_bytes()

    said()
    assert run_stage("grid", root / "many.toml") == 1
    text, index = said(), rows(root)
    assert "run 1 of 8, data=two,objective=dpo,seed=1: done before, skipped" in text
    assert "grid: 6 of 8 runs are done; failed: data=two,objective=hinge,seed=1; data=two,objective=hinge,seed=2" in text
    assert [name for name, row in index.items() if row["state"] == "failed"] == [f"data=two,objective=hinge,seed={seed}" for seed in (1, 2)]
    assert "the loss 'hinge' is not usable" in index["data=two,objective=hinge,seed=1"]["error"]
    assert ((first / "stamp.json").stat().st_mtime_ns, (first / "log.jsonl").read_bytes()) == (stamp, log)
    assert len(list((root / "runs" / "many" / "grid").glob("*/pairs/pairs.jsonl"))) == 2, "one set of pairs for each source of data"

    # What failed is tried again, and nothing else; a changed setting makes anew only what it reaches.
    text = (root / "many.toml").read_text(encoding="utf-8")
    for old, new in (('loss = "hinge"', 'loss = "sigmoid", beta = 0.3'), ('loss = "ipo", beta = 0.2', 'loss = "ipo"')):
        assert old in text
        text = text.replace(old, new)
    (root / "many.toml").write_text(text, encoding="utf-8")
    assert run_stage("grid", root / "many.toml") == 0
    text = said()
    assert text.count("done before, skipped") == 3
    assert text.count("made again, since the recipe changed: beta was 0.2 and is 0.1") == 3
    assert {row["state"] for row in rows(root).values()} == {"done"}
    assert ((first / "stamp.json").stat().st_mtime_ns, (first / "log.jsonl").read_bytes()) == (stamp, log)
    assert run_stage("grid", root / "many.toml") == 0
    assert said().count("done before, skipped") == 8
    assert [record["step"] for record in read_lines(first / "log.jsonl") if "loss" in record] == [1, 2]
