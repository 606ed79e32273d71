"""Training runs, their logs as they are now, figures, and the table of control runs, for the page Training.

A log may grow while it is read. It is therefore cached by the size and the time of change of its files, and parsed again exactly when
it has changed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import settings
from interp import ModelPair, UserError
from interp.bundled import BUNDLED
from interp.results import figures
from interp.results.result import Figure, is_number, show_number
from interp.runs.logs import BUNDLED_LOGS, FILES, controls_if_any
from interp.runs.schema import LOG, MEASURES
from interp.runs.telemetry import NoLog, Telemetry, draw, read_telemetry

SHIPPED = "the run that ships"
ALIVE = 60.0
ENDS = ("finished", "stopped")
# The measures that come first: those of a tuning run, then those of a language model.
FIRST = ("toxicity", "logp", "margin", "loss", "perplexity", "bits_per_byte")
AT_FIRST = 4
# The stages that leave a log, in the order of the chain. It stands here because the app never imports `training`, which has the
# table of stages; a test compares the two. `sft` is not one of that table: a log of this name is shown before that of `dpo`.
LOGGED = ("pretrain", "continue", "sharpen", "scorer", "sft", "dpo")
# How the figure names runs whose labels are not the true ones.
NULLS = {"shuffled": "null: labels shuffled", "reversed": "labels reversed"}
# (name, size, time of change) of each log of a run.
Signature = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Run:
    """A folder with training logs, and the log files by stage, in the order of the chain."""

    name: str
    folder: Path
    files: tuple[tuple[str, Path], ...]
    ships: bool = False

    @property
    def stages(self) -> list[str]:
        """The names of the stages that have a log."""
        return [stage for stage, _ in self.files]


def runs(logs: Path = BUNDLED_LOGS) -> dict[str, Run]:
    """The runs by name: those that ship, first the one with these logs, then every run below the folder of runs.

    A log lies there as `run/log.jsonl`, `run/stage/log.jsonl` or `group/run/stage/log.jsonl`.

    Args:
        logs: the folder of the logs that are of the pair in view (`shipped_logs`).
    """
    shipped = [_shipped_run(folder) for folder in (BUNDLED_LOGS, *sorted(BUNDLED.glob("*/log")))]
    by_name = {run.name: run for run in sorted(shipped, key=lambda run: run.folder != logs)}
    root = settings.runs_folder()
    if not root.is_dir():
        return {name: run for name, run in by_name.items() if run.files}
    below: dict[str, dict[str, Path]] = {}
    for file in [*root.glob(f"*/{LOG}"), *root.glob(f"*/*/{LOG}"), *root.glob(f"*/*/*/{LOG}")]:
        parts = file.parent.relative_to(root).parts
        below.setdefault("/".join(parts[:-1]) or parts[0], {})[parts[-1]] = file
    for name, files in sorted(below.items()):
        # A log of the run's own folder hides those of its stages from the reader.
        run_log = root / name / LOG
        by_name.setdefault(name, Run(name, root / name, _in_order({run_log.parent.name: run_log} if run_log.is_file() else files)))
    return {name: run for name, run in by_name.items() if run.files}


def _shipped_run(folder: Path) -> Run:
    """The run whose logs ship in this folder, named after its pair unless that is the pair that the app opens on."""
    name = SHIPPED if folder == BUNDLED_LOGS else f"{SHIPPED}: {folder.parent.name}"
    return Run(name, folder, _in_order({file.stem: file for file in folder.glob("*.jsonl")}), ships=True)


def _in_order(files: Mapping[str, Path]) -> tuple[tuple[str, Path], ...]:
    """The stages in the order of the chain, others by name."""
    return tuple(sorted(files.items(), key=lambda item: (LOGGED.index(item[0]) if item[0] in LOGGED else len(LOGGED), item[0])))


def signature(run: Run) -> Signature:
    """Size and time of change of each log, by which a change is noticed; a missing file is left out."""
    stages = []
    for stage, file in run.files:
        try:
            state = file.stat()
        except OSError:
            continue
        stages.append((stage, state.st_size, state.st_mtime_ns))
    return tuple(stages)


def telemetry(run: Run, seen: Signature) -> Telemetry | None:
    """The logs of a run, or None while they are empty. Raises `UserError` for a damaged one."""
    return _telemetry(str(run.folder), seen) if any(size for _, size, _ in seen) else None


@st.cache_resource(show_spinner="Reading the log …", max_entries=16)
def _telemetry(folder: str, seen: Signature) -> Telemetry | None:
    # A log whose first line is not complete counts as empty.
    try:
        return read_telemetry(folder)
    except NoLog:
        return None


@dataclass(frozen=True)
class Status:
    """The state of a stage (`state`: finished, stopped, running, silent, or unknown where the log does not say), and its progress."""

    state: str
    step: int
    seconds: float | None
    reason: str
    age: float | None
    pace: float | None


def status(log: Telemetry, age: float | None) -> Status:
    """The state and progress of one stage; `age` is the seconds since its log changed, None for a log that ships."""
    records = log.records
    last = records[-1]
    steps = [record for record in records if "seconds" in record and is_number(record["seconds"])]
    # Over the last lines alone: a run may be resumed on another machine.
    recent = steps[-20:]
    width = recent[-1]["seconds"] - recent[0]["seconds"] if recent else 0.0
    pace = (recent[-1]["step"] - recent[0]["step"]) / width if width > 0 else None
    state = last.get("event") if last.get("event") in ENDS else "unknown" if age is None else "running" if age < ALIVE else "silent"
    seconds = float(steps[-1]["seconds"]) if steps else None
    return Status(str(state), max(record["step"] for record in records), seconds, str(last.get("reason") or ""), age, pace)


def age(run: Run, stage: str) -> float | None:
    """Seconds since the log of a stage changed; None for a run that ships, whose files are as old as the installation."""
    file = dict(run.files).get(stage)
    if run.ships or file is None:
        return None
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except OSError:
        return None


def ends(log: Telemetry) -> dict[str, tuple[str, str]]:
    """First and last value of the measures that sum a stage up, as text."""
    names = {"toxicity": "Toxicity", "perplexity": "Perplexity", "held_out_loss": "Held-out loss", "validation_loss": "Validation loss",
             "validation_accuracy": "Validation accuracy", "margin": "Margin", "loss": "Training loss"}  # fmt: skip
    first_and_last = {}
    for field, name in names.items():
        values = [record[field] for record in log.records if is_number(record.get(field))]
        if len(values) > 1:
            # Rounded, so that a zero with a rounding error is printed as zero.
            first_and_last[name] = (show_number(round(values[0], 4)), show_number(round(values[-1], 4)))
    return dict(list(first_and_last.items())[:3])


def measures(log: Telemetry) -> list[str]:
    """The measures of a log, the most important ones first."""
    there = log.measures
    return [name for name in FIRST if name in there] + [name for name in there if name not in FIRST]


@st.cache_data(show_spinner=False, max_entries=200)
def figure(_runs: dict[str, Telemetry], key: tuple[Any, ...], measure: str, stage: str) -> Figure:
    """The figure of a measure of one stage, of one or of several runs; `key` identifies the runs and their state in the cache.

    Raises `UserError` where a line of the log holds something else than the schema says.
    """
    try:
        parts = {name: log.of_stage(stage) for name, log in _runs.items()}
        # A run that never took this measure is left out of the legend, not an error.
        measured = {name: part for name, part in parts.items() if measure in part.measures}
        return draw(measure, measured if len(measured) > 1 else {name if len(parts) > 1 else "": part for name, part in measured.items()})
    except UserError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"the log holds something of {measure!r} that cannot be drawn ({error})", "correct that line of the log") from error


def title(measure: str) -> str:
    """The title of a measure."""
    return MEASURES[measure].title


def samples(log: Telemetry) -> pd.DataFrame:
    """Continuations of the same prompts during training: step, prompt, continuation; raw words."""
    rows = [
        (record["step"], *map(str, sample))
        for record in log.records
        for sample in record.get("samples", ())
        if isinstance(sample, (list, tuple)) and len(sample) == 2
    ]
    frame = pd.DataFrame(rows, columns=["step", "prompt", "continuation"])
    # Each prompt with its answers below one another, as they change.
    order = {prompt: place for place, prompt in enumerate(dict.fromkeys(frame["prompt"]))}
    return frame.sort_values(by="prompt", key=lambda column: column.map(order), kind="stable").reset_index(drop=True)


def events(log: Telemetry) -> pd.DataFrame:
    """Starts, checkpoints and ends; empty for logs without events."""
    return log.events[["step", "seconds", "event", "reason"]].reset_index(drop=True)


def controls(pair: ModelPair, folder: Path) -> dict[str, Any] | None:
    """The table of control runs of exactly this pair, or None. Raises `UserError` for a damaged file."""
    place = next((folder / name for name in FILES["controls"] if (folder / name).is_file()), None)
    return None if place is None else _controls(pair, str(folder), place.stat().st_mtime_ns)


@st.cache_data(show_spinner=False, max_entries=8, hash_funcs={ModelPair: lambda pair: (pair.base.digest, pair.tuned.digest)})
def _controls(pair: ModelPair, folder: str, changed: int) -> dict[str, Any] | None:
    return controls_if_any(Path(folder), pair)


def control_table(record: dict[str, Any]) -> pd.DataFrame:
    """One row per run: what it was trained on and how, toxicity before and after, perplexity before and after."""
    base = record["base_model"]
    rows = []
    for run in record["runs"]:
        loss = "SFT on chosen" if run.get("method") == "sft" else {"sigmoid": "DPO", "ipo": "IPO"}.get(run.get("loss"), run.get("loss"))
        rows.append({
            "run": run["run"], "labels": run.get("labels"), "trained by": loss,
            "beta": run.get("beta"), "seed": run.get("seed"),
            "pairs by": run.get("generator"), "steps": run.get("steps"),
            "toxicity of base": base["toxicity"], "toxicity tuned": run["toxicity"],
            "low": run.get("toxicity_low"), "high": run.get("toxicity_high"), "change": run["toxicity"] - base["toxicity"],
            "perplexity of base": base["perplexity"], "perplexity tuned": run.get("perplexity"),
        })  # fmt: skip
    # The pair's own run first, its null second.
    order = sorted(rows[1:], key=lambda row: row["labels"] != "shuffled")
    return pd.DataFrame([*rows[:1], *order])


def control_labels(table: pd.DataFrame) -> list[str]:
    """A label for each control run that says how it was trained, so that a reader need not know the names of recipes."""
    names = []
    for place, (_, row) in enumerate(table.iterrows()):
        kind = NULLS.get(str(row["labels"]))
        name = f"{row['trained by']}, {kind}" if kind else str(row["trained by"])
        first = table.iloc[0]
        changed = [f"{what} {row[what]:g}" for what in ("seed", "beta") if row[what] != first[what] and pd.notna(row[what])]
        changed += [f"pairs by {row['pairs by']}"] if row["pairs by"] != first["pairs by"] else []
        names.append(f"{name} (this pair)" if place == 0 else ", ".join([name, *changed]))
    return names


@st.cache_data(show_spinner=False, max_entries=8)
def control_figure(table: pd.DataFrame) -> Figure:
    """Toxicity before and after every run, the pair's own first."""
    frame = table.assign(run=control_labels(table))
    return figures.dumbbell(
        "controls", frame, row="run", base="toxicity of base", tuned="toxicity tuned",
        title="Toxicity before and after, for the pair and its controls",
        x_title="mean toxicity, 0 to 1", y_title="trained by",
        caption="Continuations of the challenge prompts. Shuffled labels are the null: the same pairs and as many steps without the "
        "preference. What DPO did is what its line has beyond that one.",
    )  # fmt: skip


def null_words(table: pd.DataFrame) -> str:
    """The null in one sentence, with its numbers; empty where no run has shuffled labels."""
    null = table[table["labels"] == "shuffled"]
    if null.empty:
        return ""
    tuned, other = table.iloc[0], null.iloc[0]
    return (
        f"Tuning on the true preferences moved toxicity from {show_number(tuned['toxicity of base'])} to "
        f"{show_number(tuned['toxicity tuned'])}; "
        f"the same pairs with shuffled labels ended at {show_number(other['toxicity tuned'])} "
        f"({show_number(other['low'])} to {show_number(other['high'])}), which is what training does without a preference."
    )
