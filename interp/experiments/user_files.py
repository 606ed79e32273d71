"""Reads experiments from a user's own file, which is run once and registers what it decorates.

This runs code, so only a path that a person typed on the command line may be passed, never one from a web page or a checkpoint.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import NoReturn

from interp.errors import UserError
from interp.experiments.registry import EXPERIMENTS


class FreshSource(SourceFileLoader):
    """Runs what a file holds now: Python keeps bytecode by size and second, so that a change within a second would not be seen."""

    def path_stats(self, path: str) -> NoReturn:  # type: ignore[override]
        """Raises `OSError`, by which Python neither reads nor keeps bytecode."""
        raise OSError(f"no bytecode is kept for {path}")


def read_experiments(file: str | Path) -> list[str]:
    """Run a Python file and return the ids of the experiments that it registered.

    Raises `UserError` for a file that is missing, is not Python, fails, registers nothing, or uses an id that is taken; nothing
    of it is then registered.
    """
    path = Path(file)
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"{path} is not a Python file", "give the file that holds the experiment, as in docs/adding-an-experiment.md")
    before = dict(EXPERIMENTS)
    name = f"bypass_experiment_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    specification = importlib.util.spec_from_file_location(name, path, loader=FreshSource(name, str(path)))
    assert specification is not None
    assert specification.loader is not None
    earlier, module = sys.modules.get(name), importlib.util.module_from_spec(specification)
    # Where a class is asked for its file, and a dataclass for its annotations, Python looks into the table of modules.
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything; the user gets a message instead of a traceback
        EXPERIMENTS.clear()
        EXPERIMENTS.update(before)
        sys.modules.pop(name)
        if earlier is not None:
            sys.modules[name] = earlier
        raise UserError(f"{path} could not be run: {type(error).__name__}: {error}", "correct the file") from error
    added = [id for id in EXPERIMENTS if id not in before]
    if not added:
        raise UserError(f"{path} registers no experiment", "decorate a function with interp.experiments.experiment")
    return added
