"""Runs stages of the training chain by name, for `bypass train STAGE RECIPE`.

A stage's module is imported only when the stage runs, because some need libraries that others do without. A stage whose inputs
and output match its stamp is not run again; one that is in the run of an extended recipe is read from there.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from interp.errors import UserError
from interp.files import is_full_disk
from training.grid import run_grid
from training.parallel import process_count
from training.recipe import Recipe, load_recipe
from training.recipes_page import settings_text
from training.run import run_one
from training.stages import STAGES, runnable, stage_named


def run_stage(name: str, recipe: str | Path, *, again: bool = False) -> int:
    """Run one stage of a recipe, or `all` that it has a section for in order, print each output, and return the exit code.

    `grid` makes every run of the recipe's section [grid] (`training.grid`), and returns 1 where one of them failed. `settings`
    in place of a stage prints the settings of the stage that is named in place of a recipe.

    A stage is skipped where none of its inputs has changed; `again` runs it from the start all the same. Raises
    `UserError` for an unknown stage or recipe, a library that is not installed, and a full disk.
    """
    if name == "settings":
        sys.stdout.write(settings_text(str(recipe)))
        return 0
    if name not in (*runnable(), "all", "grid"):
        raise UserError(f"there is no stage {name!r}", f"use one of {', '.join(runnable())}, all, grid or settings")
    parallel = [row.name for row in STAGES.values() if row.parallel]
    if process_count() > 1 and name not in parallel:
        raise UserError(f"the stage {name} runs in one process", f"start it without a launcher; {', '.join(parallel)} can use several")
    if name == "grid":
        return run_grid(recipe, again=again)
    loaded = load_recipe(recipe)
    for stage in runnable() if name == "all" else (name,):
        if name == "all" and not in_all(stage, loaded):
            continue
        try:
            run_one(stage, loaded, again=again)
        except Exception as error:
            if not is_full_disk(error):
                raise
            raise _full(stage, loaded) from error
    return 0


def in_all(stage: str, recipe: Recipe) -> bool:
    """Whether `all` runs a stage: those that the recipe has a section for, and the bundle for no recipe that extends another."""
    return stage in recipe.settings and (stage != "bundle" or recipe.parent is None)


def _full(stage: str, recipe: Recipe) -> UserError:
    folder = recipe.run / stage
    saved = "earlier stages are kept"
    for place in ("checkpoint", "checkpoint.old"):
        file = folder / place / "state.json"
        if stage_named(stage).resumed and file.is_file():
            saved = f"the checkpoint of step {json.loads(file.read_text(encoding='utf-8'))['step']} and {saved}"
            break
    where = folder if folder.is_dir() else recipe.run if recipe.run.is_dir() else Path()
    free = shutil.disk_usage(where).free / 1e6
    return UserError(f"the disk is full: the stage {stage} could not write to {folder} ({free:.1f} MB are left); {saved}",
                     "make room and give the same command again")  # fmt: skip
