"""What a DPO run did to the log-probabilities of both sides, in a sentence, from its telemetry or TRL's `trainer_state.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from interp.errors import UserError
from interp.files import read_json
from interp.results.result import show_number
from interp.runs.telemetry import read_telemetry

STATE = "trainer_state.json"
SIDES = ("logp_chosen", "logp_rejected", "margin")
# TRL's names. Rewards are beta times the log-probability less the reference's, so that it does not matter which pairs a batch holds.
TRL = {
    "logps/chosen": "logp_chosen", "logps/rejected": "logp_rejected", "rewards/margins": "margin", "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
}  # fmt: skip
NAMES = {
    "logp_chosen": "log π(chosen)", "logp_rejected": "log π(rejected)", "margin": "the reward margin",
    "reward_chosen": "the reward of chosen", "reward_rejected": "the reward of rejected",
}  # fmt: skip
# The share of the run that is averaged at its beginning and at its end, and the fewest values of a short run.
ENDS, FEWEST = 0.1, 5


@dataclass(frozen=True)
class Move:
    """How a logged quantity moved: means of the first and the last tenth of the run, and a 95 % interval of their difference.

    Of a short run the ends are five values each, or halves. The interval takes batches as independent (Welch's t); it is NaN where an
    end is one value.
    """

    name: str
    start: float
    end: float
    low: float
    high: float
    n: int

    @property
    def change(self) -> float:
        """The difference of the means."""
        return self.end - self.start

    @property
    def direction(self) -> str:
        """`rose`, `fell`, `stayed` where the interval holds zero, or `unknown` where there is no interval."""
        if math.isnan(self.low):
            return "unknown"
        return "stayed" if self.low <= 0 <= self.high else "rose" if self.change > 0 else "fell"


@dataclass(frozen=True)
class Watched:
    """The moves of a run from its first to its last logged step, by name."""

    source: Path
    steps: tuple[int, int]
    moves: dict[str, Move]

    @property
    def both_fall(self) -> bool:
        """Whether log π of both sides fell."""
        return all(self.moves[name].direction == "fell" for name in SIDES[:2])

    @property
    def sentence(self) -> str:
        """What moved where."""
        chosen, rejected = (self.moves[name] for name in SIDES[:2])
        parts = [_said(move) for name, move in self.moves.items() if name in SIDES]
        verdict = {
            (
                "fell",
                "fell",
            ): "both sides fell, and what grew is the distance between them: likelihood displacement, on the pairs of its batches",
            ("rose", "fell"): "chosen rose and rejected fell",
            ("stayed", "fell"): "rejected fell, and chosen did not move beyond the noise of its batches",
            ("fell", "stayed"): "chosen fell and rejected did not move beyond the noise of its batches",
            ("fell", "rose"): "chosen fell and rejected rose, as if the labels were exchanged",
            ("rose", "rose"): "both sides rose",
            ("unknown", "unknown"): "too few values are logged to tell a move from the noise of batches",
        }.get((chosen.direction, rejected.direction), "chosen did not fall")
        return f"From step {self.steps[0]} to {self.steps[1]} {', '.join(parts)}: {verdict}."

    def to_json(self) -> dict[str, Any]:
        """The moves with their numbers, and the sentence."""
        return {
            "source": str(self.source), "steps": list(self.steps), "both_fall": self.both_fall, "sentence": self.sentence,
            "moves": {name: {"start": move.start, "end": move.end, "change": move.change, "low": move.low, "high": move.high, "n": move.n,
                             "direction": move.direction} for name, move in self.moves.items()},
        }  # fmt: skip


def watch(path: str | Path) -> Watched:
    """What moved in the run at a path: a run folder, one of its logs, a `trainer_state.json` or a folder (of checkpoints) that has one.

    Raises `UserError` where there is no log, or one without the columns that are needed.
    """
    place = Path(path)
    records, source = _records(place)
    steps = [int(record["step"]) for record in records if SIDES[0] in record]
    absent = [name for name in SIDES if sum(name in record for record in records) < 2]
    if absent:
        logged = sorted({name for record in records for name in record} - {"step"})
        raise UserError(
            f"{source} has fewer than two values of {', '.join(absent)}; it logs {', '.join(logged[:12]) or 'nothing'}",
            "log them while training: bypass train dpo does, and TRL's DPOTrainer logs logps/chosen, logps/rejected and rewards/margins "
            "every logging_steps",
        )
    moves = {name: _move(name, [float(record[name]) for record in records if name in record])
             for name in NAMES if sum(name in record for record in records) > 1}  # fmt: skip
    return Watched(source, (min(steps), max(steps)), moves)


def _records(place: Path) -> tuple[list[dict[str, Any]], Path]:
    """The records of the run that name a step, under our names, and the file or folder that they come from."""
    states = (
        [place]
        if place.name == STATE
        else sorted(place.glob(STATE))
        or sorted(place.glob(f"checkpoint-*/{STATE}"), key=lambda file: int("".join(filter(str.isdigit, file.parent.name)) or 0))
    )
    if states:
        history = read_json(states[-1], "name the folder that TRL wrote").get("log_history", [])
        if not isinstance(history, list):
            raise UserError(f"{states[-1]} has no log_history", f"name the {STATE} that TRL wrote")
        # Lines of an evaluation have other names and are left out.
        rows = [{TRL[name]: value for name, value in entry.items() if name in TRL and _finite(value)} | {"step": entry.get("step", 0)}
                for entry in history if isinstance(entry, dict)]  # fmt: skip
        return [row for row in rows if len(row) > 1], states[-1]
    telemetry = read_telemetry(place)
    stages = [stage for stage in telemetry.stages if any(SIDES[0] in record for record in telemetry.of_stage(stage).records)]
    chosen = telemetry.of_stage(stages[-1]) if stages else telemetry
    keep = {*NAMES, "step"}
    return [{name: value for name, value in record.items() if name in keep and _finite(value)} for record in chosen.records], place


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _move(name: str, values: Sequence[float]) -> Move:
    count = max(round(ENDS * len(values)), min(FEWEST, len(values) // 2))
    first, last = np.asarray(values[:count]), np.asarray(values[-count:])
    half = math.nan
    if count > 1:
        spread = np.array([first.var(ddof=1), last.var(ddof=1)])
        # Welch and Satterthwaite's degrees of freedom, for ends of the same number of values.
        freedom = (count - 1) * spread.sum() ** 2 / (spread**2).sum() if spread.any() else math.inf
        half = float(stats.t.ppf(0.975, freedom) * math.sqrt(spread.sum() / count))
    change = float(last.mean() - first.mean())
    return Move(name, float(first.mean()), float(last.mean()), change - half, change + half, len(values))


def _said(move: Move) -> str:
    interval = "" if math.isnan(move.low) else f", {show_number(move.low)} to {show_number(move.high)}"
    unit = " nats" if move.name != "margin" else ""
    return (
        f"{NAMES[move.name]} went from {show_number(move.start)} to {show_number(move.end)} "
        f"({'+' if move.change > 0 else ''}{show_number(move.change)}{unit}{interval})"
    )
