"""Recipes: a control changes a few settings of another, and every stage out of the change's reach is read from the other's run."""

from __future__ import annotations

from pathlib import Path

import pytest

from interp.errors import UserError
from training.recipe import RUNS_SETTING, base_folder, load_recipe
from training.stages import STAGES, lineage

PARENT = """
name = "parent"
seed = 4
[corpus]
sources = [{ name = "a" }, { name = "b" }]
[tokenizer]
vocabulary = 900
[pretrain]
width = 8
layers = 1
[pairs]
[dpo]
beta = 1
max_steps = 3
"""


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(RUNS_SETTING, str(tmp_path / "runs"))
    (tmp_path / "parent.toml").write_text(PARENT)
    for stage in ("corpus", "tokenizer", "pretrain", "pairs", "dpo", "probe"):
        (tmp_path / "runs" / "parent" / stage).mkdir(parents=True)
    return tmp_path / "runs"


def write(folder: Path, text: str, name: str = "child.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_child_changes_keys_of_sections_and_keeps_the_rest(tmp_path: Path) -> None:
    text = 'extends = "parent.toml"\n[dpo]\nbeta = 2\n[corpus]\nsources = [{ name = "c" }]\n[probe]\nl2 = 5\n'
    child = load_recipe(write(tmp_path, text))
    assert (child.name, child.seed) == ("child", 4)
    assert child.settings == {
        "corpus": {"sources": [{"name": "c"}]}, "tokenizer": {"vocabulary": 900}, "pretrain": {"width": 8, "layers": 1}, "pairs": {},
        "dpo": {"beta": 2, "max_steps": 3}, "probe": {"l2": 5},
    }  # fmt: skip


def test_a_change_of_dpo_leaves_every_other_stage_with_the_parent(tmp_path: Path, runs: Path) -> None:
    child = load_recipe(write(tmp_path, 'extends = "parent"\n[dpo]\nbeta = 2\n[pretrain]\nwidth = 8\n'))
    for stage in ("corpus", "tokenizer", "pretrain", "pairs", "probe"):
        assert child.folder(stage) == runs / "parent" / stage
    assert child.folder("dpo") == runs / "child" / "dpo"
    assert base_folder(child) == runs / "parent" / "pretrain" / "model"


def test_a_change_reaches_what_is_made_from_it_and_nothing_else(tmp_path: Path, runs: Path) -> None:
    child = load_recipe(write(tmp_path, 'extends = "parent"\n[pretrain]\nwidth = 16\n'))
    own = {stage for stage in STAGES if child.owner(stage) is child}
    assert own == {"pretrain", "continue", "sharpen", "probe", "pairs", "dpo", "bundle"}
    assert child.folder("tokenizer") == runs / "parent" / "tokenizer"
    assert lineage("pretrain") == ("corpus", "tokenizer", "pretrain")


def test_a_continuation_added_by_the_child_becomes_its_base_model(tmp_path: Path, runs: Path) -> None:
    child = load_recipe(write(tmp_path, 'extends = "parent"\n[continue]\nepochs = 1\n'))
    assert base_folder(child) == runs / "child" / "continue" / "model"
    assert child.folder("pretrain") == runs / "parent" / "pretrain"
    assert child.folder("pairs") == runs / "child" / "pairs"


def test_a_sharpening_added_by_the_child_becomes_its_base_model(tmp_path: Path, runs: Path) -> None:
    child = load_recipe(write(tmp_path, 'extends = "parent"\n[sharpen]\nfresh_mlps = [0]\n'))
    assert base_folder(child) == runs / "child" / "sharpen" / "model"
    assert child.folder("pretrain") == runs / "parent" / "pretrain"
    assert child.folder("probe") == runs / "child" / "probe"


@pytest.mark.parametrize("seed", ["-1", "true", "1.5", '"one"'])
def test_a_seed_is_a_number_from_0(tmp_path: Path, seed: str) -> None:
    with pytest.raises(UserError, match=r"has name 'child' and seed .*the seed as a number from 0"):
        load_recipe(write(tmp_path, f'extends = "parent"\nseed = {seed}\n'))


def test_another_seed_makes_everything_anew(tmp_path: Path, runs: Path) -> None:
    child = load_recipe(write(tmp_path, 'extends = "parent"\nseed = 5\n'))
    assert [child.folder(stage) for stage in STAGES] == [runs / "child" / stage for stage in STAGES]


def test_a_grandchild_reads_each_stage_from_the_recipe_that_last_changed_it(tmp_path: Path, runs: Path) -> None:
    (runs / "child" / "pairs").mkdir(parents=True)
    write(tmp_path, 'extends = "parent"\n[pairs]\nsamples = 2\n')
    grandchild = load_recipe(write(tmp_path, 'extends = "child"\n[dpo]\nbeta = 3\n', "grandchild.toml"))
    assert [grandchild.folder(stage).parent.name for stage in ("corpus", "pairs", "dpo")] == ["parent", "child", "grandchild"]


def test_a_shipped_recipe_can_be_extended_by_its_name(tmp_path: Path) -> None:
    child = load_recipe(write(tmp_path, 'extends = "shipped"\n[dpo]\nbeta = 2\n'))
    assert child.parent is not None
    assert child.parent.name == "shipped"
    assert child.settings["corpus"] == child.parent.settings["corpus"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('extends = "child"\n', r"child\.toml extends itself, through child\.toml"),
        ('extends = "nothing"\n', r"extends a recipe that is not there: nothing.*recipes that ship: .*shipped"),
        ("extends = 3\n", r"extends 3.*the path of a TOML file"),
        ('extends = "parent"\nname = "parent"\n', r"has the name 'parent' of a recipe that it extends"),
    ],
)
def test_an_extends_that_leads_nowhere_is_explained(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        load_recipe(write(tmp_path, text))


def test_a_stage_that_the_parent_has_not_run_is_named_with_the_command_that_runs_it(tmp_path: Path, runs: Path) -> None:
    (runs / "parent" / "pairs").rmdir()
    child = load_recipe(write(tmp_path, 'extends = "parent"\n[dpo]\nbeta = 2\n'))
    with pytest.raises(UserError, match=r"takes the stage pairs from the run of 'parent', where it has not run.*bypass train pairs parent"):
        child.folder("pairs")
