"""`Telemetry`: training logs, read and drawn.

Every stage that trains writes the same fields under the same names into `log.jsonl`, one JSON object a line, so that pages,
notebooks and comparisons of runs need to know one format only. A line has `step` and those other fields of `FIELDS` that were
measured there; no value is repeated to fill a line. `training.telemetry` writes the logs; this module reads them and must work
without the libraries of the training chain.

The log of a run that is in progress or was killed may end in half a line, which is left out. Logs with the former names of
fields are read too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import UserError
from interp.results.result import INFINITIES, Figure
from interp.runs.schema import FIELDS, FORMER, LOG, MEASURES, OBJECTS, TEXTS, Measure


class NoLog(UserError):
    """A place has no training log, or one without a complete line."""


@dataclass(frozen=True)
class Telemetry:
    """The records of one or several logs; each has its `stage` (the folder or file that it was read from)."""

    records: tuple[dict[str, Any], ...]
    source: Path

    @property
    def stages(self) -> list[str]:
        """The stages that have records, in order."""
        return list(dict.fromkeys(record["stage"] for record in self.records))

    def of_stage(self, stage: str) -> Telemetry:
        """The records of one stage. Raises `UserError` for a stage without a log."""
        if stage not in self.stages:
            raise UserError(f"{self.source} has no log of the stage {stage!r}", f"it has: {', '.join(self.stages)}")
        return Telemetry(tuple(record for record in self.records if record["stage"] == stage), self.source)

    @property
    def events(self) -> pd.DataFrame:
        """The events of training, one row each, with stage, step, seconds, event and reason."""
        rows = [record for record in self.records if "event" in record]
        return pd.DataFrame(rows, columns=["stage", "step", "seconds", "event", "reason"])

    def to_frame(self) -> pd.DataFrame:
        """The records as a frame, one row each; objects become columns `field.key`, lists stay as they are."""
        rows = []
        for record in self.records:
            row: dict[str, Any] = {}
            for field, value in record.items():
                row |= {f"{field}.{key}": item for key, item in value.items()} if field in OBJECTS else {field: value}
            rows.append(row)
        first = ["stage", "step"]
        frame = pd.DataFrame(rows)
        return frame[[*first, *(column for column in frame.columns if column not in first)]]

    def series(self, measure: str) -> pd.DataFrame:
        """A measure over steps as a tidy frame: stage, step, series (label, parameter group, source or position), value.

        Raises `UserError` for a measure that is not one of `MEASURES`.
        """
        if measure not in MEASURES:
            raise UserError(f"there is no measure {measure!r}", f"use one of {', '.join(MEASURES)}")
        columns = ["stage", "step", "series", "value"]
        rows: list[tuple[str, int, Any, float]] = []
        for record in self.records:
            for field, label in MEASURES[measure].fields.items():
                if field in record:
                    rows += [(record["stage"], record["step"], name, number) for name, number in _parts(record[field], label)]
        return pd.DataFrame(rows, columns=columns)

    def latest(self, measure: str) -> pd.DataFrame:
        """The rows of `series` at the last step at which the measure was logged."""
        rows = self.series(measure)
        return rows[rows["step"] == rows["step"].max()] if len(rows) else rows

    @property
    def measures(self) -> list[str]:
        """The measures with any value in this log, in the order of `MEASURES`."""
        present = {field for record in self.records for field in record}
        return [name for name, measure in MEASURES.items() if present & measure.fields.keys()]

    def figure(self, measure: str) -> Figure:
        """The figure of a measure over steps: lines, a heat map of position against step for `kl`, bars for `top_gaining`."""
        return draw(measure, {"": self})

    def figures(self) -> list[Figure]:
        """Every figure that can be drawn from this log."""
        return [self.figure(measure) for measure in self.measures]


def _parts(value: Any, label: str) -> Iterator[tuple[Any, float]]:
    if isinstance(value, Mapping):
        yield from ((key, _number(item)) for key, item in value.items())
    elif isinstance(value, Sequence) and value and isinstance(value[0], Sequence):
        yield from ((key, _number(item)) for key, item in value)
    elif isinstance(value, Sequence):
        yield from ((position, _number(item)) for position, item in enumerate(value))
    else:
        yield label, _number(value)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def draw(measure: str, runs: Mapping[str, Telemetry]) -> Figure:
    """The figure of a measure in several runs (`{"dpo": ..., "shuffled labels": ...}`), one line per run and series.

    Raises `UserError` for an unknown measure, and for one that no run has logged.
    """
    from interp.results import figures

    frames = [run.series(measure).assign(run=name) for name, run in runs.items()]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if not len(frame):
        raise UserError(f"nothing was logged of {measure!r}", "choose another measure; `measures` lists those of a log")
    about = MEASURES[measure]
    parts_of_label = [frame["run"]] if frame["run"].nunique() > 1 else []
    parts_of_label += [frame["stage"]] if frame["stage"].nunique() > 1 else []
    if measure == "top_gaining":
        return _gaining(frame, parts_of_label, about)
    if measure == "kl" and not parts_of_label:
        return figures.heatmap(
            measure,
            frame,
            x="step",
            y="series",
            z="value",
            title=about.title,
            caption=about.caption,
            y_title="position",
            z_title=about.unit,
        )
    if measure == "kl":
        keys = ["run", "stage", "step"]
        frame = frame.groupby(keys, as_index=False, sort=False)["value"].mean().assign(series="mean")
        parts_of_label = [frame[column] for column in ("run", "stage") if frame[column].nunique() > 1]
    parts_of_label += [frame["series"].astype(str)] if frame["series"].nunique() > 1 else []
    several = len(parts_of_label) > 0
    if several:
        frame["label"] = parts_of_label[0].astype(str).str.cat([part.astype(str) for part in parts_of_label[1:]], sep=", ")
    if about.log:
        frame["value"] = frame["value"].where(frame["value"] > 0, np.nan)
    return figures.lines(
        measure, frame, x="step", y="value", title=about.title, caption=about.caption, colour="label" if several else None,
        y_title=about.unit, log_y=about.log,
    )  # fmt: skip


def _gaining(frame: pd.DataFrame, parts_of_label: Sequence[pd.Series], about: Measure) -> Figure:
    from interp.results import figures
    from interp.data.lexicon import mask

    last = frame[frame["step"] == frame.groupby(["run", "stage"])["step"].transform("max")].copy()
    last["token"] = [mask(repr(str(token))) for token in last["series"]]
    if parts_of_label:
        last["label"] = parts_of_label[0].astype(str).str.cat([part.astype(str) for part in parts_of_label[1:]], sep=", ")[last.index]
    return figures.bars(
        "top_gaining", last, x="token", y="value", title=about.title, caption=about.caption, colour="label" if parts_of_label else None,
        y_title=about.unit, horizontal=True,
    )  # fmt: skip


def read_telemetry(path: str | Path) -> Telemetry:
    """The telemetry at `path`: a log file, the folder of a stage, or the folder of a run with the logs of all its stages.

    Raises `NoLog` where there is no log, and `UserError` for a damaged line that is not the last.
    """
    place = Path(path)
    if place.is_file():
        files = {place.parent.name if place.name == LOG else place.stem: place}
    elif (place / LOG).is_file():
        files = {place.name: place / LOG}
    else:
        files = {file.parent.name: file for file in sorted(place.glob(f"*/{LOG}"))} or {
            file.stem: file for file in sorted(place.glob("*.jsonl"))
        }
    records = tuple({"stage": stage, **record} for stage, file in files.items() for record in read_lines(file))
    if not records:
        raise NoLog(f"there is no training log at {place}", "name a run folder, the folder of one of its stages, or its log.jsonl")
    return Telemetry(records, place)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of one log, with the current names of fields; an incomplete last line is left out.

    Raises `UserError` for a file that cannot be read, and for any other line that is not a record of a step.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"the log {file} cannot be read ({error})", "name a file that `bypass train` wrote") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            # Only the last line, without a line break after it, can be one that is still being written.
            if number == len(lines):
                break
            raise UserError(f"line {number} of the log {file} is damaged ({error})", "remove that line") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f"line {number} of {file} is no record of a step", "name a log that `bypass train` wrote")
        records.append(_current(record))
    return records


def _current(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the current names of fields, without unknown ones, and with infinities as numbers."""
    renamed = {FORMER.get(name, name): value for name, value in record.items()}
    fields = {}
    for name, value in renamed.items():
        if name not in FIELDS:
            continue
        if name in OBJECTS and not isinstance(value, Mapping):
            value = {"all": value}
        fields[name] = value if name in TEXTS else _finite_again(value)
    return fields


def _finite_again(value: Any) -> Any:
    if isinstance(value, str):
        return INFINITIES.get(value, value)
    if isinstance(value, Mapping):
        return {key: _finite_again(item) for key, item in value.items()}
    return value
