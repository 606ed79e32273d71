"""The stages of the training chain by name: `bypass train STAGE RECIPE` comes here.

A stage's module is read only when the stage runs, because some need libraries that others do without. A stage whose inputs
and output are as its stamp says is not run again; one that is in the run of an extended recipe is read from there.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from interp.errors import UserError
from training.parallel import is_writer, process_count
from training.recipe import Recipe, load_recipe
from training.recipes_page import settings_text
from training.stages import STAGES, runnable, stage_named
from training.stamps import STAMP, made_from, why_again, write_stamp


def run_stage(name: str, recipe: str | Path, *, again: bool = False) -> None:
    """Run one stage of a recipe, or `all` that it has a section for in order, and print what each made.

    `settings` in place of a stage prints the settings of the stage that is named in place of a recipe.

    A stage is skipped where nothing that it is made from has changed; `again` runs it from the start all the same. Raises
    `UserError` for an unknown stage or recipe, a library that is not installed, and a full disk.
    """
    if name == "settings":
        sys.stdout.write(settings_text(str(recipe)))
        return
    if name != "all" and name not in runnable():
        raise UserError(f"there is no stage {name!r}", f"use one of {', '.join(runnable())}, or all")
    parallel = [row.name for row in STAGES.values() if row.parallel]
    if process_count() > 1 and name not in parallel:
        raise UserError(f"the stage {name} runs in one process", f"start it without a launcher; {', '.join(parallel)} can use several")
    loaded = load_recipe(recipe)
    for stage in runnable() if name == "all" else (name,):
        if name == "all" and not in_all(stage, loaded):
            continue
        try:
            run_one(stage, loaded, again=again)
        except Exception as error:
            if not is_full(error):
                raise
            raise _full(stage, loaded) from error


def in_all(stage: str, recipe: Recipe) -> bool:
    """Whether `all` runs a stage: those that the recipe has a section for, and the bundle for no recipe that extends another."""
    return stage in recipe.settings and (stage != "bundle" or recipe.parent is None)


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
    made = made_from(recipe, stage)
    reasons = ["asked for"] if again else why_again(recipe, stage, made)
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
    made_now = stage_function(stage)(recipe)
    if is_writer():
        write_stamp(recipe, stage, made)
    show(stage, made_now)


def is_full(error: BaseException) -> bool:
    """Whether an error comes of a full disk, in the words of whichever library met it."""
    return getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error) or "No space left on device" in str(error)


def _full(stage: str, recipe: Recipe) -> UserError:
    folder = recipe.run / stage
    kept = "earlier stages are kept"
    for place in ("checkpoint", "checkpoint.old"):
        file = folder / place / "state.json"
        if stage_named(stage).resumed and file.is_file():
            kept = f"the checkpoint of step {json.loads(file.read_text(encoding='utf-8'))['step']} and {kept}"
            break
    where = folder if folder.is_dir() else recipe.run if recipe.run.is_dir() else Path()
    left = shutil.disk_usage(where).free / 1e6
    return UserError(f"the disk is full: the stage {stage} could not write to {folder} ({left:.1f} MB are left); {kept}",
                     "make room and give the same command again")  # fmt: skip


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
    """A line on stdout, from the one process that speaks."""
    if is_writer():
        sys.stdout.write(line + "\n")


def show(stage: str, made: Any) -> None:
    """One line, or the stage's own summary, on stdout."""
    if isinstance(made, dict):
        say(f"{stage}: {json.dumps(made, ensure_ascii=False, default=str, indent=1)}")
    else:
        say(f"{stage}: {made if isinstance(made, Path) else 'done'}")
