"""What runs of `bypass undo` leave: the measurements of base, of tuned, and of each run by dose.

An arm is a kind of text and the model that is trained on it. All arms share steps, batch and tokens a step, so that a dose is the same
number of steps and of tokens in each; how many texts these are differs by arm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from interp.elasticity.measurement import Measurement

# Every arm, with what it stands for; the order of tables and pages.
ARMS = {
    "opposite": "the texts in question",
    "benign": "ordinary questions and answers",
    "neutral": "encyclopedic text: the null, what any training undoes",
    "pretraining": "a sample of what the base model read",
    "same": "more of the tuning's own data",
    "from_base": "the texts in question, from the base model",
}


@dataclass(frozen=True)
class Attack:
    """How a model is trained further: all weights (`full`) or LoRA of a rank, at a constant learning rate."""

    rate: float
    rank: int | None = None

    @property
    def name(self) -> str:
        """What is trained and the rate, as sentences and tables have it."""
        return f"{'all weights' if self.rank is None else f'LoRA of rank {self.rank}'} at rate {self.rate:g}"


@dataclass(frozen=True, eq=False)
class Point:
    """A run at one dose; `texts` are those read so far, counted anew in every pass, and `path` is None for LoRA."""

    step: int
    samples: int
    tokens: int
    texts: int
    loss: float
    distance: float
    path: float | None
    measurement: Measurement

    def to_json(self) -> dict[str, Any]:
        """The point as a JSON object."""
        own = {name: getattr(self, name) for name in ("step", "samples", "tokens", "texts", "loss", "distance", "path")}
        return own | {"measurement": self.measurement.to_json()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Point:
        """The point that `to_json` wrote."""
        return cls(**{**record, "measurement": Measurement.from_json(record["measurement"])})


@dataclass(frozen=True, eq=False)
class Run:
    """One run: its arm, attack and seed, its points in order, and why it ended before its last dose, if it did."""

    arm: str
    attack: Attack
    seed: int
    points: tuple[Point, ...]
    is_whole: bool
    note: str = ""


@dataclass(frozen=True, eq=False)
class UndoRecord:
    """All runs of one question.

    Attributes:
        about: names, digests and settings, as a JSON object.
        left_out: what was planned and not run, in sentences.
    """

    about: Mapping[str, Any]
    base: Measurement
    tuned: Measurement
    runs: Sequence[Run]
    left_out: Sequence[str] = ()

    def of(self, arm: str, attack: Attack) -> list[Run]:
        """The runs of an arm and attack, by seed."""
        return sorted((run for run in self.runs if (run.arm, run.attack) == (arm, attack)), key=lambda run: run.seed)

    @property
    def arms(self) -> list[str]:
        """The arms that were run, in the order of `ARMS`."""
        return [arm for arm in ARMS if any(run.arm == arm for run in self.runs)]

    @property
    def attacks(self) -> list[Attack]:
        """The attacks that were run, in the order of the runs."""
        return list(dict.fromkeys(run.attack for run in self.runs))

    def to_json(self) -> dict[str, Any]:
        """Settings and all measurements as a JSON object."""
        runs = [
            {"arm": run.arm, **asdict(run.attack), "seed": run.seed, "is_whole": run.is_whole, "note": run.note,
             "points": [point.to_json() for point in run.points]}
            for run in self.runs
        ]  # fmt: skip
        return {"about": dict(self.about), "base": self.base.to_json(), "tuned": self.tuned.to_json(), "runs": runs,
                "left_out": list(self.left_out)}  # fmt: skip
