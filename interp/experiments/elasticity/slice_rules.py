"""The rule of C-E1, as functions of one number for each seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.errors import UserError
from interp.experiments.elasticity.criteria import CRITERIA
from interp.experiments.elasticity.rebound_rules import Part
from interp.stats.repeats import repeats_mean

C_E1 = CRITERIA["C-E1"][-1].thresholds
# The names of the two ways of sampling answers.
PAPER, PLAIN = "paper", "plain"
# The losses of an epoch: before it, as a mean over its steps (the paper's), after it.
LOSSES = ("start", "mean", "end")


@dataclass(frozen=True)
class Resistance:
    """The numbers of C-E1, in nats a token, each by seed a mean over ordered pairs of slices; the last two are shown and decide nothing.

    Attributes:
        raw: the mean loss over an epoch forward minus inverse, the paper's comparison.
        own: the same with each teacher's own loss on its answers taken off.
        form: the same, less what the later slice is ahead on what the writers of the reviews wrote.
        base: as `form`, for the base and each slice.
        random: the last slice's loss on a random change of itself less that on an earlier slice as far away in KL, own losses taken off.
        base_raw, base_own: as `raw` and `own`, for the base and each slice.
    """

    raw: Part
    own: Part
    form: Part
    base: Part
    random: Part
    base_raw: Part
    base_own: Part

    @property
    def parts(self) -> tuple[Part, ...]:
        """The five that decide."""
        return self.raw, self.own, self.form, self.base, self.random


def resistance(record: Mapping[str, Any], *, sampling: str = PAPER, loss: str = "mean") -> Resistance:
    """The numbers of C-E1 by one way of sampling and one of `LOSSES`. Raises `UserError` for a study without rows."""
    rows = [_Epochs(row, sampling, loss) for row in record["rows"]]
    if not rows:
        raise UserError("the study of slices has no seed that is whole", "python -m training.studies.elasticity slices makes them")

    def part(value: Any) -> Part:
        return Part(repeats_mean([float(np.mean(list(value(row)))) for row in rows]))

    return Resistance(
        part(lambda row: (row.gap(*pair, is_own=False) for pair in row.pairs)),
        part(lambda row: (row.gap(*pair) for pair in row.pairs)),
        part(lambda row: (row.gap(*pair) - row.ahead(*pair) for pair in row.pairs)),
        part(lambda row: (row.gap(0, later) - row.ahead(0, later) for later in row.slices[1:])),
        part(lambda row: row.random_gaps()) if sampling == PAPER else Part(repeats_mean([])),
        part(lambda row: (row.gap(0, later, is_own=False) for later in row.slices[1:])),
        part(lambda row: (row.gap(0, later) for later in row.slices[1:])),
    )


class _Epochs:
    """The epochs of one seed by kind, student and teacher: the student's loss, and the teacher's own."""

    def __init__(self, row: Mapping[str, Any], sampling: str, loss: str) -> None:
        runs = [run for run in row["runs"] if run["sampling"] in ("", sampling)]
        self.of = {(run["kind"], run["student"], run["teacher"]): (run[loss], run["own"]) for run in runs}
        self.slices = sorted({run["student"] for run in runs if run["kind"] == "third"})

    @property
    def pairs(self) -> Sequence[tuple[int, int]]:
        """The pairs of slices without the base, the earlier first."""
        return [(first, later) for first in self.slices[1:] for later in self.slices if later > first]

    def excess(self, kind: str, student: int, teacher: int) -> float:
        """A student's loss less the teacher's own."""
        value, own = self.of[kind, student, teacher]
        return float(value - own)

    def gap(self, earlier: int, later: int, *, is_own: bool = True) -> float:
        """The loss of the earlier slice on the later one's answers (forward) less the reverse (inverse)."""
        if is_own:
            return self.excess("slice", earlier, later) - self.excess("slice", later, earlier)
        return float(self.of["slice", earlier, later][0] - self.of["slice", later, earlier][0])

    def ahead(self, earlier: int, later: int) -> float:
        """How far the later slice is ahead on what people wrote."""
        return float(self.of["third", earlier, None][0] - self.of["third", later, None][0])

    def random_gaps(self) -> Iterator[float]:
        """For each earlier slice: the last slice's excess on a random change of itself less that on this slice."""
        last = self.slices[-1]
        for earlier in self.slices[:-1]:
            yield self.excess("random", last, earlier) - self.excess("slice", last, earlier)
