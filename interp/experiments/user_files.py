"""Reads experiments from a user's own file, which is run once and registers what it decorates.

This runs code, so only a path that a person typed on the command line may be passed, never one from a web page or a checkpoint.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from interp.errors import UserError
from interp.experiments.registry import EXPERIMENTS


def read_experiments(file: str | Path) -> list[str]:
    """Run a Python file and return the ids of the experiments that it registered.

    Raises `UserError` for a file that is missing, is not Python, fails, registers nothing, or uses an id that is taken; nothing
    of it is then registered.
    """
    path = Path(file)
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"{path} is not a Python file", "give the file that holds the experiment, as in docs/adding-an-experiment.md")
    before = dict(EXPERIMENTS)
    specification = importlib.util.spec_from_file_location(f"bypass_experiment_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    try:
        specification.loader.exec_module(importlib.util.module_from_spec(specification))
    except Exception as error:  # a user's file may raise anything; the user gets a message instead of a traceback
        EXPERIMENTS.clear()
        EXPERIMENTS.update(before)
        raise UserError(f"{path} could not be run: {type(error).__name__}: {error}", "correct the file") from error
    added = [name for name in EXPERIMENTS if name not in before]
    if not added:
        raise UserError(f"{path} registers no experiment", "decorate a function with interp.experiments.experiment")
    return added
