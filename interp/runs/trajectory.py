"""The runs of a grid as one table of trajectories, with the reason for each missing run and the command that makes it.

`bypass train grid RECIPE` writes a folder of runs and an index of them. Experiments read runs here and never train. A run that
is not done, that failed, whose folder differs from the index, or that started from other weights than expected is listed as
missing, never silently left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from interp.errors import UserError
from interp.files import read_json
from interp.runs.schema import LOG
from interp.runs.telemetry import Telemetry, read_lines

INDEX = "index.json"
GRID = "grid"
RUNS_SETTING = "BYPASS_RUNS"


@dataclass(frozen=True)
class Trajectory:
    """The log of one run, and its point in the grid.

    `base` is the digest of the weights that it started from, or None where its summary has none.
    """

    name: str
    point: dict[str, str]
    folder: Path
    telemetry: Telemetry
    base: str | None = None


@dataclass(frozen=True)
class Trajectories:
    """The runs that can be read, and for each of the others the reason why not (`missing`, by the name of the run)."""

    runs: tuple[Trajectory, ...]
    missing: dict[str, str]
    command: str
    source: Path

    def to_frame(self) -> pd.DataFrame:
        """One row per run and step: `run`, the grid's axes, `step`, and the fields of the telemetry that were measured there.

        Objects are columns `field.key`; an axis that is named as a field, or `run`, is the column `axis.NAME`.
        """
        frames = []
        for run in self.runs:
            steps = Telemetry(tuple(record for record in run.telemetry.records if "event" not in record), run.telemetry.source).to_frame()
            frame = steps.drop(columns="stage")
            reserved = {"run", *frame.columns}
            labels = {"run": run.name} | {f"axis.{axis}" if axis in reserved else axis: name for axis, name in run.point.items()}
            for place, (column, value) in enumerate(labels.items()):
                frame.insert(place, column, value)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["run", "step"])

    @property
    def text(self) -> str:
        """A text that lists the missing runs, and the command that makes them."""
        lines = [f"{len(self.runs)} of {len(self.runs) + len(self.missing)} runs in {self.source} can be read"]
        lines += [f"  {name}: {reason}" for name, reason in self.missing.items()]
        return "\n".join([*lines, f"`{self.command}` makes what is missing"] if self.missing else lines)


def read_trajectories(source: str | Path | Iterable[str | Path], *, base: str | None = None) -> Trajectories:
    """The trajectories of a grid's folder (or of the run that has it), or of a list of folders of stages with a log each.

    Args:
        base: the digest of the model that every run must have started from; None allows different ones.

    Raises `UserError` where there is no index, and for one that cannot be read.
    """
    if isinstance(source, str | Path):
        return _read_grid(Path(source), base)
    runs: dict[str, Trajectory] = {}
    missing: dict[str, str] = {}
    folders = [Path(folder) for folder in source]
    for folder in folders:
        name = str(folder)
        run, reason = _read_run(name, {}, folder, base)
        if run is None:
            missing[name] = reason
        else:
            runs[name] = run
    if not folders:
        raise UserError("no folder of a run was given", "name the folders of some runs, or that of a grid")
    shared = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    return Trajectories(tuple(runs.values()), missing, "bypass train STAGE RECIPE", shared)


def runs_of(source: str | Path, *, base: str | None = None) -> Trajectories:
    """Every run of a grid, by its folder or by the name of its recipe below `BYPASS_RUNS`; experiments use this.

    Raises `UserError` that names the runs that are missing, with the command that makes them.
    """
    place = Path(source)
    if not place.is_dir():
        place = Path(os.environ.get(RUNS_SETTING, "runs")) / source
    if not place.is_dir():
        raise UserError(f"the runs of {source} are not there (no folder {place})", f"run `bypass train grid {source}`")
    trajectories = read_trajectories(place, base=base)
    if trajectories.missing:
        listed = "; ".join(f"{name}: {reason}" for name, reason in list(trajectories.missing.items())[:5])
        more = len(trajectories.missing) - 5
        problem = f"{len(trajectories.missing)} of the runs in {trajectories.source} cannot be read ({listed}"
        raise UserError(problem + (f"; and {more} more)" if more > 0 else ")"), f"run `{trajectories.command}`")
    return trajectories


def _read_grid(place: Path, base: str | None) -> Trajectories:
    file = next((folder / INDEX for folder in (place, place / GRID) if (folder / INDEX).is_file()), None)
    if file is None:
        raise UserError(f"there is no index of runs in {place}", "name the folder that `bypass train grid` wrote, or the run that it is of")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        command, rows = str(record["command"]), [(row["name"], row["point"], file.parent / row["folder"], row) for row in record["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the index {file} cannot be read ({error!r})", "run `bypass train grid` with its recipe again") from error
    runs: list[Trajectory] = []
    missing: dict[str, str] = {}
    for name, point, folder, row in rows:
        reason = _unfinished(row, folder)
        run = None
        if reason is None:
            run, reason = _read_run(name, point, folder, base)
        if run is None:
            missing[name] = str(reason)
        else:
            runs.append(run)
    return Trajectories(tuple(runs), missing, command, file.parent)


def _unfinished(row: dict[str, Any], folder: Path) -> str | None:
    """The reason why a run cannot be read, by its entry in the index, or None where it is complete."""
    if row.get("state") == "failed":
        return f"it failed: {row.get('error')}"
    if row.get("state") != "done":
        return "it has not run to its end"
    try:
        stamp = hashlib.sha256((folder / "stamp.json").read_bytes()).hexdigest()
    except OSError:
        return f"its folder {folder} is gone or not finished"
    return None if stamp == row.get("stamp") else "it was made again since the index was written"


def _read_run(name: str, point: dict[str, str], folder: Path, base: str | None) -> tuple[Trajectory | None, str]:
    """The trajectory of one run, or None and the reason why it cannot be read."""
    file = folder / LOG
    if not file.is_file():
        return None, f"there is no log at {file}"
    summary = folder / "summary.json"
    try:
        records = tuple({"stage": folder.name, **record} for record in read_lines(file))
        starting_weights = read_json(summary).get("base") if summary.is_file() else None
    except UserError as error:
        return None, error.problem
    if not records or records[-1].get("event") not in ("finished", "stopped") or not (folder / "stamp.json").is_file():
        return None, "it has not run to its end"
    if base is not None and starting_weights != base:
        return None, f"it began from other weights ({starting_weights or 'not recorded'}, where {base} belong)"
    return Trajectory(name, point, folder, Telemetry(records, file), starting_weights), ""
