"""A recipe is one TOML file that says how a run is made; this module reads it and finds its data and run folders.

Corpora are never part of the repository. Paths in a recipe are relative to the folder named by the setting
`BYPASS_DATA`, so the same recipe runs on any machine that has the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import UserError

DATA_SETTING = "BYPASS_DATA"
RUNS_SETTING = "BYPASS_RUNS"


class Section(dict[str, Any]):
    """The settings of one stage; asking for one that the recipe lacks raises `UserError` with its name."""

    def __init__(self, settings: dict[str, Any], title: str) -> None:
        super().__init__(settings)
        self.title = title

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.title} does not set {key!r}", f"add `{key} = ...`, as in training/recipes/shipped.toml")


@dataclass(frozen=True)
class Recipe:
    """One run: its name, its settings by stage, and the folder that its stages write to."""

    name: str
    seed: int
    settings: dict[str, Any]
    run: Path

    def stage(self, name: str) -> dict[str, Any]:
        """The settings of one stage; raises `UserError` when the recipe has no such section."""
        if name not in self.settings:
            known = ", ".join(key for key, value in self.settings.items() if isinstance(value, dict))
            raise UserError(f"recipe {self.name!r} has no [{name}] section; it has: {known}", f"add a [{name}] section to the recipe")
        section = self.settings[name]
        if not isinstance(section, dict):
            raise UserError(f"{name!r} of recipe {self.name!r} is not a section", f"write a [{name}] section with its settings")
        return Section(section, f"section [{name}] of recipe {self.name!r}")

    def digest(self, *stages: str) -> str:
        """A hash of the named sections and the seed, which identifies what a checkpoint was made by."""
        chosen = {"seed": self.seed, **{name: self.settings.get(name) for name in stages}}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a TOML file, or by the bare name of one that ships in `training/recipes`."""
    file = Path(path)
    shipped = Path(__file__).parent / "recipes" / f"{path}.toml"
    if not file.is_file() and shipped.is_file():
        file = shipped
    if not file.is_file():
        names = ", ".join(sorted(p.stem for p in shipped.parent.glob("*.toml")))
        raise UserError(f"no recipe at {path!s}", f"give a TOML file or one of the recipes that ship: {names}")
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {file} is not valid TOML: {error}", "correct the file at the line named") from error
    name = settings.pop("name", file.stem)
    seed = settings.pop("seed", 0)
    if not isinstance(name, str) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"recipe {file} has name {name!r} and seed {seed!r}", "give the name as a string and the seed as a number from 0")
    runs = Path(os.environ.get(RUNS_SETTING, "runs"))
    return Recipe(name=name, seed=seed, settings=settings, run=runs / name)


def data_file(pattern: str) -> list[Path]:
    """The files that a recipe's path or glob names, below `BYPASS_DATA` unless the path is absolute."""
    root = Path(os.environ.get(DATA_SETTING, "."))
    path = Path(pattern)
    folder, glob = (path.parent, path.name) if path.is_absolute() else (root / path.parent, path.name)
    files = sorted(folder.glob(glob)) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"no file matches {glob!r} in {folder}", f"set {DATA_SETTING} to the folder that holds the corpora named in the recipe"
        )
    return files
