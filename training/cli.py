"""The stages of the training chain by name: `bypass train STAGE RECIPE` comes here.

A stage's module is read only when the stage runs, because some need libraries that others do without.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from interp.errors import UserError
from training.recipe import Recipe, load_recipe

STAGES = {
    "corpus": "build_corpus", "tokenizer": "train_tokenizer", "pretrain": "pretrain", "scorer": "train_scorer", "probe": "train_probe",
    "pairs": "make_pairs", "dpo": "tune", "bundle": "bundle",
}  # fmt: skip


def run_stage(name: str, recipe: str | Path) -> None:
    """Run one stage of a recipe, or `all` in order, and print what each made.

    Raises `UserError` for an unknown stage or recipe, and for a library that is not installed.
    """
    if name != "all" and name not in STAGES:
        raise UserError(f"there is no stage {name!r}", f"use one of {', '.join(STAGES)}, or all")
    found = load_recipe(recipe)
    for stage in STAGES if name == "all" else (name,):
        show(stage, stage_function(stage)(found))


def stage_function(name: str) -> Callable[[Recipe], Any]:
    """The function that runs a stage."""
    try:
        return getattr(import_module(f"training.{name}"), STAGES[name])
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "training":
            raise UserError(f"the stage {name} is not part of this installation", "use a checkout of the repository") from error
        raise UserError(f"the stage {name} needs the library {missing}", "pip install 'bypass-workbench[train]'") from error


def show(stage: str, made: Any) -> None:
    """One line, or the stage's own summary, on stdout."""
    if isinstance(made, dict):
        sys.stdout.write(f"{stage}: {json.dumps(made, ensure_ascii=False, default=str, indent=1)}\n")
    else:
        sys.stdout.write(f"{stage}: {made if isinstance(made, Path) else 'done'}\n")
