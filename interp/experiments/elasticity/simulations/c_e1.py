"""Simulated studies for C-E1: five seeds, a base and three slices.

A student's loss on a teacher's answers is the teacher's own loss plus what they are apart: 0.3 nats for one slice between them and 0.1
for each further one, with a standard deviation of 0.02 of its own. Later teachers' own losses, what later slices are ahead on people's texts, how much
nearer the way back is, and how much farther a random change is, differ between worlds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from interp.experiments.elasticity.rebound_rules import judge
from interp.experiments.elasticity.slice_rules import C_E1, PAPER, resistance
from interp.experiments.power import simulation
from interp.results.result import Verdict

SEEDS, SLICES, OWN, WRITTEN, SPREAD = 5, 4, 0.2, 4.0, 0.02


def record_of(
    generator: np.random.Generator, *, back: float = 0.0, own: float = 0.0, ahead: float = 0.0, random: float = 0.0
) -> dict[str, Any]:  # fmt: skip
    """The record of a study.

    Args:
        back: nats a token by which the way back is nearer than the way forward.
        own: by which each slice's own loss lies above that of the slice before it.
        ahead: by which each slice is ahead of the slice before it on any text of the kind, the others' answers too.
        random: by which a random change is farther than an earlier slice.
    """

    def epoch(kind: str, student: int, teacher: int | None, own_loss: float | None, loss: float) -> dict[str, Any]:
        value = loss - ahead * student + SPREAD * generator.standard_normal()
        sampling = "" if kind == "third" else PAPER
        return {"kind": kind, "sampling": sampling, "student": student, "teacher": teacher, "own": own_loss, "mean": value}

    rows = []
    for _ in range(SEEDS):
        runs = [epoch("third", place, None, None, WRITTEN) for place in range(SLICES)]
        for student in range(SLICES):
            for teacher in set(range(SLICES)) - {student}:
                apart = 0.2 + 0.1 * abs(student - teacher) - (back if teacher < student else 0)
                runs.append(epoch("slice", student, teacher, OWN + own * teacher, OWN + own * teacher + apart))
        last = SLICES - 1
        for teacher in range(last):
            apart = 0.2 + 0.1 * (last - teacher) - back + random
            runs.append(epoch("random", last, teacher, OWN, OWN + apart))
        rows.append({"runs": runs})
    return {"rows": rows}


def verdict(generator: np.random.Generator, **world: float) -> Verdict:
    """The verdict on one study."""
    return judge(resistance(record_of(generator, **world)).parts, C_E1["seeds"])


@simulation("C-E1", "both ways are as far, and a random change as far as an earlier slice", "false")
def nothing(generator: np.random.Generator) -> Verdict:
    """No resistance."""
    return verdict(generator)


@simulation("C-E1", "both ways are as far; later teachers' own losses are 0.05 higher by slice, a random change 0.1 farther", "false")
def floor(generator: np.random.Generator) -> Verdict:
    """A difference of the teachers alone, which the paper's comparison takes for resistance."""
    return verdict(generator, own=0.05, random=0.1)


@simulation("C-E1", "both ways are as far; later slices are 0.05 ahead by slice on all such texts, a random change is 0.1 farther", "false")
def practised(generator: np.random.Generator) -> Verdict:
    """A difference of practice alone."""
    return verdict(generator, ahead=0.05, random=0.1)


@simulation("C-E1", "the way back is 0.1 nearer, and so is any random change", "false")
def anywhere(generator: np.random.Generator) -> Verdict:
    """A later slice to which every way is nearer."""
    return verdict(generator, back=0.1, random=0.0)


@simulation("C-E1", "the way back is 0.05 nearer, and a random change 0.05 farther", "true")
def small(generator: np.random.Generator) -> Verdict:
    """The claim at a small size."""
    return verdict(generator, back=0.05, random=0.05)


@simulation("C-E1", "the way back is 0.1 nearer, and a random change 0.1 farther", "true")
def claimed(generator: np.random.Generator) -> Verdict:
    """The claim."""
    return verdict(generator, back=0.1, random=0.1)
