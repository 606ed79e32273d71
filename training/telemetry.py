"""Writes the log of a run in the schema of `interp.runs.telemetry`, and shows the run on the screen.

A training loop uses one object for both, so that screen and log agree:

    with Monitor(folder / "log.jsonl", "pretrain", total=steps, resumed=state["step"], seconds=state["seconds"]) as monitor:
        for step in range(state["step"] + 1, steps + 1):
            ...
            monitor.show(step, loss=loss)                                # the screen alone, cheap enough for every step
            monitor.write(step, loss=loss, gradient_norm=norms)          # a line of the log, and the screen
            monitor.write(step, bits_per_byte=bits, report=True)         # and a line of plain text where there is no terminal
            save_checkpoint(..., {"step": step, "seconds": monitor.seconds, ...})      # after `write`, never before it

- `resumed` is the step of the checkpoint that the run goes on from, 0 without one. Lines of later steps are dropped from the
  log, since they will be written again; at 0 the log begins anew.
- Each line is flushed when it is written, so that a killed run loses at most half a line, which the reader leaves out.
- Entering writes the event "started" or "resumed"; leaving writes "finished", or "stopped" with the reason: the one given to
  `monitor.stop(step, reason)`, or the error that is on its way out.
- `parameter_groups` and `group_norms` give the norms by group under the schema's names.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor, nn

from interp.errors import UserError
from interp.files import write_text
from interp.models.parameters import parameter_group
from interp.results.result import plain, show_number
from interp.runs.schema import FIELDS

# The numbers that the screen shows, where they are logged.
SHOWN = ("loss", "held_out_loss", "validation_loss", "margin", "accuracy", "toxicity_share", "perplexity")


class TelemetryLog:
    """A log file to which lines are appended, each flushed."""

    def __init__(self, file: Path, resumed: int = 0) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        if resumed:
            forget_after(file, resumed)
        else:
            file.unlink(missing_ok=True)

    def write(self, step: int, **fields: Any) -> None:
        """Append one line. Raises `ValueError` for a field that the schema does not have."""
        unknown = fields.keys() - FIELDS.keys()
        if unknown:
            raise ValueError(f"the schema of interp.runs.telemetry has no field {', '.join(sorted(unknown))}")
        line = json.dumps({"step": step, **{name: plain(value) for name, value in fields.items()}}, allow_nan=False)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def forget_after(file: Path, step: int) -> None:
    """Drop the lines of a log that a resumed run will write again, and a line that was cut off."""
    if not file.exists():
        return
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            if line.strip() and json.loads(line)["step"] <= step:
                lines.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_text(file, "".join(lines))


class Monitor:
    """The log and the screen of one run; see the module's docstring for how a loop uses it."""

    def __init__(
        self, file: Path, title: str, total: int, *, resumed: int = 0, seconds: float = 0.0, console: Console | None = None
    ) -> None:
        self.log = TelemetryLog(file, resumed)
        self.title, self.total, self.resumed, self.step = title, total, resumed, resumed
        self.console = console or Console()
        self.numbers: dict[str, Any] = {}
        self.reason: str | None = None
        self._before, self._start = seconds, time.monotonic()
        self._bar: Progress | None = None

    @property
    def seconds(self) -> float:
        """Seconds spent on the run so far, over all its starts."""
        return round(self._before + time.monotonic() - self._start, 1)

    @property
    def seconds_left(self) -> float:
        """Estimated seconds for the remaining steps at the pace since this start; NaN before the first step."""
        done = self.step - self.resumed
        return (self.total - self.step) * (time.monotonic() - self._start) / done if done else float("nan")

    def __enter__(self) -> Self:
        self.log.write(self.resumed, event="resumed" if self.resumed else "started", seconds=self.seconds)
        if self.console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}")
            self._bar = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=self.console, transient=True)
            self._bar.add_task(self.title, total=self.total, completed=self.resumed, left="", numbers="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if error is not None:
            reason = error.problem if isinstance(error, UserError) else f"{type(error).__name__} {error}".strip()
            self.log.write(self.step, event="stopped", reason=reason, seconds=self.seconds)
        elif self.reason is not None:
            self.log.write(self.step, event="stopped", reason=self.reason, seconds=self.seconds)
        else:
            self.log.write(self.step, event="finished", seconds=self.seconds)

    def stop(self, step: int, reason: str) -> None:
        """Note that the loop ends here before its last step, and why."""
        self.step, self.reason = step, reason
        self.say(f"stopped at step {step}: {reason}")

    def show(self, step: int, **fields: Any) -> None:
        """Update the screen: the bar, the time left, and the latest of each number."""
        self.step = max(step, self.step)
        self.numbers |= {name: fields[name] for name in SHOWN if name in fields}
        if self._bar is not None:
            task = self._bar.tasks[0].id
            self._bar.update(task, completed=step, left=_time(self.seconds_left), numbers=_words(self.numbers))

    def write(self, step: int, *, report: bool = False, **fields: Any) -> None:
        """Write a line of the log with the seconds so far, and show it; with `report` also where there is no terminal."""
        self.log.write(step, seconds=self.seconds, **fields)
        self.show(step, **fields)
        if report:
            self.say(f"step {step}/{self.total}: {', '.join(filter(None, (_words(self.numbers), _time(self.seconds_left))))}")

    def say(self, line: str) -> None:
        """Print a line of text, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


@dataclass
class Speed:
    """The tokens read and the seconds spent in steps since this start, without measurements and checkpoints."""

    tokens: float = 0.0
    seconds: float = 0.0
    begun: float = math.nan

    def step(self, tokens: float, ended: float) -> float:
        """Count a step that began at `begun` and ended now, after which `tokens` have been read in all; return its tokens per second."""
        taken, read = ended - self.begun, tokens - self.tokens
        self.tokens, self.seconds = tokens, self.seconds + taken
        return round(read / taken, 1)

    @property
    def mean(self) -> float | None:
        """Tokens per second over all steps; None before the first."""
        return round(self.tokens / self.seconds, 1) if self.seconds else None


class Mute:
    """Stands in for the monitor in processes that do not write."""

    seconds = 0.0

    def write(self, step: int, *, report: bool = False, **fields: Any) -> None:
        """Do nothing."""

    def show(self, step: int, **fields: Any) -> None:
        """Do nothing."""

    def stop(self, step: int, reason: str) -> None:
        """Do nothing."""


def _words(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {show_number(value, name)}" for name, value in numbers.items())


def _time(seconds: float) -> str:
    if seconds != seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min left" if hours else f"{minutes} min {rest:02d} s left"


def parameter_groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """The trainable parameters of a model by group, each with its name."""
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(parameter_group(name), []).append((name, parameter))
    return groups


def group_norms(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """2-norms of named tensors by parameter group, and of `all` of them; NaN or infinite where a tensor is."""
    squares: dict[str, float] = {}
    for name, tensor in tensors:
        square = float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)) ** 2
        for group in ("all", parameter_group(name)):
            squares[group] = squares.get(group, 0.0) + square
    return {group: math.sqrt(square) for group, square in squares.items()}


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """2-norm of the gradient by parameter group; parameters without one count as zero."""
    return group_norms((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
