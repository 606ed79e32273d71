"""Expands one recipe into many runs: the cross product of the axes of its section [grid], one run for each point.

A point is a recipe that extends the grid's with the point's changes; its run lies in the folder `grid` of the grid's run. Axes
are put in the order of the stages that they reach, and each point extends the point of the axes before, so that what several
points have in common (the pairs of one source of data, for example) is made once, by the stamps that every stage leaves. A run
that fails is recorded with its error and does not keep the others from running; the next start of the grid tries it again.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.files import is_full_disk, write_json
from training.recipe import GRID, Recipe, check_settings, is_seed, load_recipe
from training.run import run_one, say
from training.settings import read_section, setting
from training.stages import STAGES, lineage, stage_named
from training.stamps import STAMP, file_hash, made_from, why_again

INDEX = "index.json"


@dataclass(frozen=True, kw_only=True)
class GridSettings:
    """Many runs out of one recipe."""

    stage: str = setting("the stage that each run goes to", default="dpo")
    axes: dict[str, Any] = setting("table of axes; each a list of points, or `{ setting, values }`")  # noqa: RUF009
    exclude: list[dict[str, Any]] = setting("combinations to leave out, by the names of their points", default=())  # noqa: RUF009


@dataclass(frozen=True)
class Choice:
    """One point of one axis: its name, and the settings that it changes by section (or the seed of everything)."""

    axis: str
    name: str
    changes: dict[str, Any]

    @property
    def reaches(self) -> int:
        """The index in the chain of the first stage that it changes."""
        order = list(STAGES)
        return min((-1 if title == "seed" else order.index(title) for title in self.changes), default=len(order))


@dataclass(frozen=True)
class GridRun:
    """One run of a grid: the names of its points by axis, and its recipe."""

    point: dict[str, str]
    recipe: Recipe

    @property
    def name(self) -> str:
        """The name of the run, which is that of its point."""
        return point_name(self.point)


@dataclass(frozen=True)
class Grid:
    """A recipe's grid, expanded."""

    recipe: Recipe
    stage: str
    axes: dict[str, tuple[str, ...]]
    runs: tuple[GridRun, ...]

    @property
    def folder(self) -> Path:
        """The folder of the grid's runs and index."""
        return self.recipe.run / GRID


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run of a grid: `state` is done, failed or pending."""

    state: str
    error: str | None = None


def point_name(point: Mapping[str, str]) -> str:
    """The name of a point, which is that of its run's folder: `objective=dpo,seed=1`."""
    return ",".join(f"{axis}={name}" for axis, name in point.items())


def expand(recipe: Recipe) -> Grid:
    """The runs of a recipe's section [grid], in order.

    Raises `UserError` for a recipe without one, an axis or point that cannot be read, settings that there are not, and a grid all
    of whose points are excluded.
    """
    title = f"section [grid] of recipe {recipe.name!r}"
    settings = read_section(GridSettings, recipe.stage(GRID), title)
    if not stage_named(settings.stage).makes:
        raise UserError(f"{title} has runs go to {settings.stage!r}, which makes nothing in a run", "name a stage such as dpo")
    axes = [tuple(_choices(axis, value, title, recipe.settings)) for axis, value in settings.axes.items()]
    if not axes:
        raise UserError(f"{title} has no axes", 'add a table [grid.axes], such as `seed = { setting = "dpo.seed", values = [1, 2] }`')
    # What is changed first in the chain comes first, so that later points share it.
    axes.sort(key=lambda choices: min(choice.reaches for choice in choices))
    names = {choices[0].axis: tuple(choice.name for choice in choices) for choices in axes}
    for combination in settings.exclude:
        unknown = [f"{axis}={name}" for axis, name in combination.items() if str(name) not in names.get(axis, ())]
        if unknown or not combination:
            raise UserError(f"{title} excludes {unknown[0] if unknown else 'nothing'}, which is no point", "name axes and their points")
    root = replace(recipe, settings={name: section for name, section in recipe.settings.items() if name != GRID})
    runs = tuple(
        GridRun({choice.axis: choice.name for choice in choices}, _point_recipe(root, choices))
        for choices in itertools.product(*axes)
        if not any(all(_has(choices, axis, str(name)) for axis, name in combination.items()) for combination in settings.exclude)
    )
    if not runs:
        raise UserError(f"{title} excludes all of its points", "exclude fewer")
    return Grid(root, settings.stage, names, runs)


def _has(choices: tuple[Choice, ...], axis: str, name: str) -> bool:
    return any(choice.axis == axis and choice.name == name for choice in choices)


def _choices(axis: str, value: Any, title: str, inherited: Mapping[str, Any]) -> Iterator[Choice]:
    """The points of an axis, a list of tables of changes to the settings `inherited`, or one setting with its values."""
    if isinstance(value, dict) and value.keys() == {"setting", "values"} and isinstance(value["values"], list):
        section, _, name = str(value["setting"]).partition(".")
        points = [{"name": str(item), **({section: {name: item}} if name else {section: item})} for item in value["values"]]
    else:
        points = value if isinstance(value, list) else []
    if not points or not all(isinstance(point, dict) and isinstance(point.get("name"), str) for point in points):
        fix = 'give a list such as [{ name = "ipo", dpo = { loss = "ipo" } }], or { setting = "dpo.seed", values = [1, 2] }'
        raise UserError(f"the axis {axis!r} in {title} has no points that can be read", fix)
    names = [point["name"] for point in points]
    bad = [name for name in (axis, *names) if not name or set(name) & set("/\\=,") or name.startswith(".")]
    if bad or len(set(names)) < len(names):
        problem = f"the axis {axis!r} in {title} has the points {', '.join(names)}"
        raise UserError(problem, "give each a name of its own, without a slash, a comma or an equals sign")
    for point in points:
        changes = {key: change for key, change in point.items() if key != "name"}
        check_settings({key: change for key, change in changes.items() if key != "seed"}, f"point {axis}={point['name']}", inherited)
        if not is_seed(changes.get("seed", 0)):
            raise UserError(f"the point {axis}={point['name']} has the seed {changes['seed']!r}", "give a number from 0")
        yield Choice(axis, point["name"], changes)


def _point_recipe(root: Recipe, choices: tuple[Choice, ...]) -> Recipe:
    """The recipe of a combination: a chain in which each choice extends the recipe of the choices before."""
    recipe, point = root, {}
    for choice in choices:
        point[choice.axis] = choice.name
        settings = {**recipe.settings}
        for section, change in choice.changes.items():
            if section != "seed":
                settings[section] = {**settings.get(section, {}), **change}
        name = point_name(point)
        recipe = Recipe(
            name=f"{root.name}/{GRID}/{name}", seed=choice.changes.get("seed", recipe.seed), settings=settings,
            run=root.run / GRID / name, parent=recipe,
        )  # fmt: skip
    if recipe.settings.get("dpo", {}).get("equal_steps"):
        raise UserError(f"{recipe.name} asks for equal_steps, but the runs of a grid extend no run that could be equalled", "set max_steps")
    return recipe


def run_grid(path: str | Path, *, again: bool = False) -> int:
    """Make every run of a recipe's grid that is not yet made, one after another; return 0, or 1 where one failed.

    A stage that all points share is made in the grid's own run, and an error there ends the command. Raises `UserError` as
    `expand`, and for such an error.
    """
    grid, command = expand(load_recipe(path)), f"bypass train grid {path}"
    unmade: dict[tuple[str, str], bool] = {}
    outcomes = {run.name: Outcome("pending") for run in grid.runs}
    for run in grid.runs:
        if not again and not any(_is_unmade(grid, run, stage, unmade) for stage in _chain(grid, run)):
            outcomes[run.name] = Outcome("done")
    write_index(grid, outcomes, command)
    tried: dict[tuple[str, str], str | None] = {}
    for number, run in enumerate(grid.runs, start=1):
        label = f"run {number} of {len(grid.runs)}, {run.name}"
        if outcomes[run.name].state == "done":
            say(f"{label}: done before, skipped")
            continue
        say(label)
        error = _make(grid, run, again, tried)
        outcomes[run.name] = Outcome("done") if error is None else Outcome("failed", error)
        if error is not None:
            say(f"{label}: failed, {error}")
        write_index(grid, outcomes, command)
    failed = [name for name, outcome in outcomes.items() if outcome.state == "failed"]
    say(f"grid: {len(grid.runs) - len(failed)} of {len(grid.runs)} runs are done" + (f"; failed: {'; '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _make(grid: Grid, run: GridRun, again: bool, tried: dict[tuple[str, str], str | None]) -> str | None:
    """Run the stages of one run; return its error, if there was one.

    What several runs share is tried once: `tried` remembers each stage by the recipe in whose run it lies, with its error.
    """
    for stage in _chain(grid, run):
        owner = run.recipe.owner(stage)
        shared, key = owner.run.parent != grid.folder, (owner.name, stage)
        if key not in tried:
            try:
                run_one(stage, grid.recipe if shared else owner, again=again and stage == grid.stage)
                tried[key] = None
            except Exception as error:
                if is_full_disk(error) or (shared and stage != grid.stage):
                    raise
                tried[key] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if tried[key] is not None:
            return tried[key]
    return None


def _chain(grid: Grid, run: GridRun) -> list[str]:
    """The stages that a run needs and that its recipe has a section for, in order."""
    return [
        name
        for name in lineage(grid.stage, run.recipe.settings)
        if STAGES[name].module and (name in run.recipe.settings or name == grid.stage)
    ]


def _is_unmade(grid: Grid, run: GridRun, stage: str, known: dict[tuple[str, str], bool]) -> bool:
    """Whether a stage has to be made for a run, by the stamp in whosever run it lies; that of another recipe's run is taken as it is."""
    owner = run.recipe.owner(stage)
    if (owner.name, stage) not in known:
        try:
            ours = owner is grid.recipe or owner.run.parent == grid.folder
            known[owner.name, stage] = bool(why_again(owner, stage, made_from(owner, stage))) if ours else not (owner.run / stage).is_dir()
        except UserError:  # something that it reads is not there yet
            known[owner.name, stage] = True
    return known[owner.name, stage]


def write_index(grid: Grid, outcomes: Mapping[str, Outcome], command: str) -> Path:
    """Write the index of a grid's runs, from which `interp.runs.trajectory` reads them; return the file.

    It holds `recipe`, `command`, `stage`, `axes` (the names of the points of each) and `runs`: of each `name`, `point` (a name by
    axis), `folder` (of the stage, from the index's folder), `state`, `error`, `changes` (of settings), and `stamp`, the hash of
    the stamp that its stage left, None where it is not done.
    """
    runs = []
    for run in grid.runs:
        outcome, folder = outcomes[run.name], run.recipe.owner(grid.stage).run / grid.stage
        runs.append({
            "name": run.name, "point": run.point, "folder": Path(os.path.relpath(folder, grid.folder)).as_posix(), "state": outcome.state,
            "error": outcome.error, "changes": _changes(grid.recipe, run.recipe),
            "stamp": file_hash(folder / STAMP) if outcome.state == "done" else None,
        })  # fmt: skip
    record = {"recipe": grid.recipe.name, "command": command, "stage": grid.stage, "axes": grid.axes, "runs": runs}
    write_json(grid.folder / INDEX, record)
    return grid.folder / INDEX


def _changes(root: Recipe, recipe: Recipe) -> dict[str, Any]:
    """The settings in which a run differs from the grid's recipe."""
    changed: dict[str, Any] = {} if recipe.seed == root.seed else {"seed": recipe.seed}
    for section, settings in recipe.settings.items():
        before = root.settings.get(section, {})
        different = {key: value for key, value in settings.items() if key not in before or before[key] != value}
        changed |= {section: different} if different else {}
    return changed
