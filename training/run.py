"""Runs one stage of one recipe and stamps its output, for `bypass train` with a stage, with `all` and with `grid`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from interp.errors import UserError
from training.parallel import is_writer
from training.recipe import Recipe
from training.stages import stage_named
from training.stamps import STAMP, made_from, why_again, write_stamp


def run_one(stage: str, recipe: Recipe, *, again: bool) -> None:
    """Run a stage, unless it is unchanged or in the run of another recipe, and stamp its output."""
    if not stage_named(stage).makes:
        show(stage, stage_function(stage)(recipe))
        return
    owner = recipe.owner(stage)
    if owner is not recipe:
        recipe.folder(stage)  # raises where it has not run
        say(f"{stage}: as in {owner.name}, whose run is read")
        return
    recipe.stage(stage)
    inputs = made_from(recipe, stage)
    reasons = ["asked for"] if again else why_again(recipe, stage, inputs)
    if not reasons:
        say(f"{stage}: unchanged, skipped")
        return
    folder = recipe.folder(stage)
    if is_writer():
        if (folder / STAMP).exists():
            say(f"{stage}: made again, since {reasons[0]}")
        if again:
            for part in ("checkpoint", "checkpoint.old", *stage_named(stage).makes):
                shutil.rmtree(folder / part, ignore_errors=True)
    output = stage_function(stage)(recipe)
    if is_writer():
        write_stamp(recipe, stage, inputs)
    show(stage, output)


def stage_function(name: str) -> Callable[[Recipe], Any]:
    """The function that runs a stage."""
    row = stage_named(name)
    try:
        return getattr(import_module(f"training.{row.module}"), row.function)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "training":
            raise UserError(f"the stage {name} is not part of this installation", "use a checkout of the repository") from error
        raise UserError(f"the stage {name} needs the library {missing}", "pip install 'bypass-workbench[train]'") from error


def say(line: str) -> None:
    """Print a line on stdout, in the one process that prints."""
    if is_writer():
        sys.stdout.write(line + "\n")


def show(stage: str, output: Any) -> None:
    """Print one line, or the stage's own summary, on stdout."""
    if isinstance(output, dict):
        say(f"{stage}: {json.dumps(output, ensure_ascii=False, default=str, indent=1)}")
    else:
        say(f"{stage}: {output if isinstance(output, Path) else 'done'}")
