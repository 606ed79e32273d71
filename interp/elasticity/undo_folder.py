"""The folder in which a run of `bypass undo` keeps what it has measured, read while the run goes on or after it was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.elasticity.measurement import Measurement
from interp.elasticity.undo import Attack, Point, Run, UndoRecord
from interp.files import read_json

# Below the folder of results: one folder a question, in it the two sides, the plan, and a folder with one file a run.
RUNS, PLAN = "runs", "plan.json"
SIDES = ("base", "tuned")


@dataclass(frozen=True)
class Plan:
    """The plan of a run in lines, and the minutes that it takes as a whole on the machine that it was made on."""

    lines: tuple[str, ...]
    minutes: float


def folder_of(out: Path) -> Path | None:
    """The folder of the question that was asked last in a folder of results; None where none was."""
    folders = [file.parent for file in out.glob(f"{RUNS}/*/{SIDES[0]}.json")]
    return max(folders, key=lambda folder: (folder / f"{SIDES[0]}.json").stat().st_mtime_ns, default=None)


def read_plan(folder: Path) -> Plan | None:
    """The plan in a question's folder; None where it is not made yet, or there is nothing to undo."""
    file = folder / PLAN
    if not file.is_file():
        return None
    record = read_json(file)
    return Plan(tuple(record["lines"]), float(record["minutes"]))


def read_record(folder: Path) -> UndoRecord | None:
    """What a question's folder holds by now, without names and settings; None until both sides have been measured."""
    sides = [folder / f"{name}.json" for name in SIDES]
    if not all(file.is_file() for file in sides):
        return None
    base, tuned = (Measurement.from_json(read_json(file)["measurement"]) for file in sides)
    runs = [_run(read_json(file)) for file in sorted((folder / RUNS).glob("*.json"))]
    return UndoRecord({"arms": {}}, base, tuned, runs)


def _run(record: Mapping[str, Any]) -> Run:
    points = tuple(Point.from_json(point) for point in record["points"])
    return Run(record["arm"], Attack(record["rate"], record["rank"]), record["seed"], points, record["is_whole"], record["note"])
