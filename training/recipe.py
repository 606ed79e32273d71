"""Reads recipes, the TOML files that say how a run is made, and locates their data and run folders.

Corpora are never part of the repository. Paths in a recipe are relative to the folder named by the setting
`BYPASS_DATA`, so the same recipe runs on any machine that has the files. A control run is a recipe that `extends`
another and changes a few settings: every stage that the change cannot reach is read from the other recipe's run.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from interp.errors import UserError
from training.settings import check_section, did_you_mean, read_alternative, read_section
from training.stages import STAGES, base_training, lineage

DATA_SETTING = "BYPASS_DATA"
RUNS_SETTING = "BYPASS_RUNS"
SHIPPED = Path(__file__).parent / "recipes"
GRID = "grid"
Options = TypeVar("Options")


class Section(dict[str, Any]):
    """The settings of one stage; a key that the recipe lacks raises `UserError` with its name."""

    def __init__(self, settings: dict[str, Any], title: str) -> None:
        super().__init__(settings)
        self.title = title

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.title} does not set {key!r}", f"add `{key} = ...`, as in training/recipes/shipped.toml")


@dataclass(frozen=True)
class Recipe:
    """One run: its name, its settings by stage, the folder that its stages write to, and the recipe that it extends."""

    name: str
    seed: int
    settings: dict[str, Any]
    run: Path
    parent: Recipe | None = None

    def stage(self, name: str) -> dict[str, Any]:
        """The settings of one stage; raises `UserError` when the recipe has no such section."""
        if name not in self.settings:
            known = ", ".join(key for key, value in self.settings.items() if isinstance(value, dict))
            raise UserError(f"recipe {self.name!r} has no [{name}] section; it has: {known}", f"add a [{name}] section to the recipe")
        section = self.settings[name]
        if not isinstance(section, dict):
            raise UserError(f"{name!r} of recipe {self.name!r} is not a section", f"write a [{name}] section with its settings")
        return Section(section, f"section [{name}] of recipe {self.name!r}")

    def settings_as(self, section: type[Options], stage: str) -> Options:
        """The settings of one stage as its dataclass, with every default; raises `UserError` as `stage`, and for unusable settings."""
        return read_section(section, self.stage(stage), f"section [{stage}] of recipe {self.name!r}")

    def alternative_as(self, stage: str, choice: str) -> Any:
        """The settings of the alternative that a stage's section selects by the setting `choice`, as their dataclass.

        Raises `UserError` as `settings_as`.
        """
        return read_alternative(STAGES[stage].settings, choice, self.stage(stage), f"section [{stage}] of recipe {self.name!r}")

    def digest(self, *stages: str) -> str:
        """A hash of the named sections and the seed, which identifies the settings of a checkpoint."""
        chosen = {"seed": self.seed, **{name: self.settings.get(name) for name in stages}}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    def owner(self, stage: str) -> Recipe:
        """The recipe whose run has a stage: this one, or the extended one where no change reaches the stage or its inputs."""
        if self.parent is None or self.seed != self.parent.seed:
            return self
        changed = any(self.settings.get(name) != self.parent.settings.get(name) for name in lineage(stage, self.settings))
        return self if changed else self.parent.owner(stage)

    def folder(self, stage: str) -> Path:
        """The folder of a stage's output, in this recipe's run or in that of a recipe that it extends.

        Raises `UserError` where the stage belongs to an extended recipe whose run does not have it.
        """
        owner = self.owner(stage)
        folder = owner.run / stage
        if owner is not self and not folder.is_dir():
            raise UserError(
                f"recipe {self.name!r} takes the stage {stage} from the run of {owner.name!r}, where it has not run (no {folder})",
                f"run `bypass train {stage} {owner.name}` first",
            )
        return folder


def base_folder(recipe: Recipe) -> Path:
    """The folder of the base model, on which probe, pairs and DPO work: that of the last stage of the recipe that trains it.

    A recipe with a section [base] takes the `model` that it names instead: a folder (below `BYPASS_DATA` or not), a hub id or a
    named model.
    Raises `UserError` for a recipe that pretrains all the same.
    """
    if "base" not in recipe.settings:
        return recipe.folder([name for name in base_training() if name in recipe.settings or name == "pretrain"][-1]) / "model"
    twice = [name for name in ("tokenizer", *base_training()) if name in recipe.settings]
    if twice:
        raise UserError(f"recipe {recipe.name!r} has a [base] that is already trained, and [{twice[0]}] too", "remove one of the two")
    name = recipe.stage("base")["model"]
    below = Path(os.environ.get(DATA_SETTING, ".")) / name
    return below if below.is_dir() else Path(name)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a TOML file, or by the bare name of one that ships in `training/recipes`.

    Raises `UserError` for a file that is missing or no TOML, for settings that are unknown, wrongly typed or out of range, and for
    `extends` that leads nowhere or in a circle.
    """
    return _read(_find(path, Path(), "no recipe at"), ())


def _find(path: str | Path, beside: Path, problem: str) -> Path:
    for file in (beside / path, beside / f"{path}.toml", SHIPPED / f"{path}.toml"):
        if file.is_file():
            return file
    names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.toml")))
    raise UserError(f"{problem} {path!s}", f"give a TOML file or one of the recipes that ship: {names}")


def _read(file: Path, below: tuple[Path, ...]) -> Recipe:
    if file.resolve() in below:
        raise UserError(f"recipe {file} extends itself, through {' and '.join(p.name for p in below)}", "remove one `extends`")
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {file} is not valid TOML: {error}", "correct the file at the line named") from error
    extends = settings.pop("extends", None)
    if extends is not None and not isinstance(extends, str):
        raise UserError(
            f"recipe {file} extends {extends!r}", "give the name of a recipe that ships, or the path of a TOML file, as a string"
        )
    parent = None
    if extends is not None:
        parent = _read(_find(extends, file.parent, f"recipe {file} extends a recipe that is not there:"), (*below, file.resolve()))
    name = settings.pop("name", file.stem)
    seed = settings.pop("seed", parent.seed if parent else 0)
    if not isinstance(name, str) or not is_seed(seed):
        raise UserError(f"recipe {file} has name {name!r} and seed {seed!r}", "give the name as a string and the seed as a number from 0")
    check_settings(settings, name, parent.settings if parent else None)
    if parent is not None:
        _own_name(file, name, parent)
        settings = _merged(parent.settings, settings)
    return Recipe(name=name, seed=seed, settings=settings, run=Path(os.environ.get(RUNS_SETTING, "runs")) / name, parent=parent)


def is_seed(value: Any) -> bool:
    """Whether a value read from TOML is a seed: a number from 0, and no bool."""
    return type(value) is int and value >= 0


def check_settings(settings: dict[str, Any], name: str, inherited: Mapping[str, Any] | None = None) -> None:
    """Raise `UserError` for an unknown section or setting, and for one of a wrong type or out of its range.

    Args:
        inherited: the settings by section that these change.
    """
    for title, section in settings.items():
        if title == GRID:
            continue  # its points are checked where they are expanded (`training.grid`)
        if title not in STAGES:
            problem = f"recipe {name!r} does not know {title!r}{did_you_mean(title, [*STAGES, GRID])}"
            raise UserError(problem, f"beside name, seed and extends it may have the sections {', '.join((*STAGES, GRID))}")
        if not isinstance(section, dict):
            raise UserError(f"{title!r} of recipe {name!r} is not a section", f"write a [{title}] section with its settings")
        check_section(STAGES[title].settings, section, f"section [{title}] of recipe {name!r}", (inherited or {}).get(title))


def _own_name(file: Path, name: str, parent: Recipe | None) -> None:
    while parent is not None:
        if parent.name == name:
            raise UserError(f"recipe {file} has the name {name!r} of a recipe that it extends", "give it a `name` of its own")
        parent = parent.parent


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Each section of `old` updated key by key from `new`; other values are replaced."""
    both = {key: old[key] | new[key] for key in old.keys() & new.keys() if isinstance(old[key], dict) and isinstance(new[key], dict)}
    return {**old, **new, **both}


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
