"""The rules of C-E2, C-E3 and C-E7, as functions of one number for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.errors import UserError
from interp.experiments.elasticity.courses import Course, course_of, of_seeds
from interp.experiments.elasticity.criteria import CRITERIA
from interp.experiments.elasticity.theory_rules import Answer
from interp.results.result import Verdict
from interp.stats.intervals import Interval
from interp.stats.repeats import repeats_mean

C_E2, C_E3, C_E7 = (CRITERIA[name][-1].thresholds for name in ("C-E2", "C-E3", "C-E7"))
AMOUNTS = (int(C_E2["few"]), int(C_E2["many"]))


@dataclass(frozen=True)
class Part:
    """One of the things that a claim asks for: its mean over seeds with Student's interval, and the bound that it is held against."""

    mean: Interval
    bound: float = 0.0

    @property
    def answer(self) -> Answer:
        """Whether the interval shows it, refutes it, or leaves it open."""
        return "yes" if self.mean.low > self.bound else "no" if self.mean.high < self.bound else "open"


@dataclass(frozen=True)
class Rebound:
    """The numbers of C-E2 and C-E7.

    Attributes:
        faster: the share undone by opposite text, as a mean over the doses, after many reviews minus after few.
        text: the share undone at the last dose by opposite text minus that by encyclopedic text, mean over both amounts.
        returned: `1 - KL/KL_0` under opposite text at the last dose, mean over both amounts.
        gaps: by amount how far tuning moved the behaviour, in nats.
    """

    faster: Part
    text: Part
    returned: Part
    gaps: Mapping[int, Interval]

    @property
    def parts(self) -> tuple[Part, ...]:
        """All three."""
        return self.faster, self.text, self.returned

    @property
    def has_behaviour(self) -> bool:
        """Whether both tunings moved the behaviour beyond chance."""
        return all(gap.low > 0 for gap in self.gaps.values())


def rebound(record: Mapping[str, Any], first: str) -> Rebound:
    """The numbers of C-E2 (`positive` first) or of C-E7 (`negative` first). Raises `UserError` where no seed has all runs."""
    opposite, neutral = _courses(record, first, ("opposite", "neutral"))
    few, many = (course.share for course in opposite)
    text = np.mean([one.share[:, -1] - null.share[:, -1] for one, null in zip(opposite, neutral, strict=True)], axis=0)
    returned = np.mean([course.returned[:, -1] for course in opposite], axis=0)
    return Rebound(
        Part(repeats_mean(many.mean(axis=1) - few.mean(axis=1))), Part(repeats_mean(text)), Part(repeats_mean(returned)),
        {course.n: repeats_mean(course.gap) for course in opposite},
    )  # fmt: skip


@dataclass(frozen=True)
class Back:
    """The numbers of C-E3, all of KL to the base on held-out posts.

    Attributes:
        grows: KL after the tuning on many reviews minus that on few, in nats a token.
        best: the largest `1 - KL/KL_0` over the doses of opposite text, mean over both amounts.
        sooner: `1 - KL/KL_0` as a mean over the doses, after many reviews minus after few.
    """

    grows: Part
    best: Part
    sooner: Part

    @property
    def parts(self) -> tuple[Part, ...]:
        """All three."""
        return self.grows, self.best, self.sooner


def back(record: Mapping[str, Any]) -> Back:
    """The numbers of C-E3. Raises `UserError` where no seed has all runs."""
    (opposite,) = _courses(record, "positive", ("opposite",))
    few, many = (course.returned for course in opposite)
    before = [course.kls_before for course in opposite]
    # The best dose is chosen by the means over seeds, so that a lucky seed chooses none.
    best = np.mean([values[:, int(values.mean(axis=0).argmax())] for values in (few, many)], axis=0)
    sooner = many.mean(axis=1) - few.mean(axis=1)
    return Back(Part(repeats_mean(before[1] - before[0])), Part(repeats_mean(best), C_E3["back"]), Part(repeats_mean(sooner)))


def judge(parts: Sequence[Part], seeds: float, *, is_testable: bool = True) -> Verdict:
    """`fails` where a part is refuted, `holds` where all are shown; `inconclusive` with fewer seeds or where nothing can be tested."""
    if not is_testable or any(part.mean.n < seeds for part in parts):
        return "inconclusive"
    answers = {part.answer for part in parts}
    return "fails" if "no" in answers else "holds" if answers == {"yes"} else "inconclusive"


def judge_rebound(numbers: Rebound, seeds: float) -> Verdict:
    """The verdict of C-E2 or C-E7."""
    return judge(numbers.parts, seeds, is_testable=numbers.has_behaviour)


def _courses(record: Mapping[str, Any], first: str, arms: Sequence[str]) -> list[list[Course]]:
    """By arm the courses of both amounts, of the seeds that all of them have. Raises `UserError` where there is none."""
    courses = [[course_of(record, first, n, arm) for n in AMOUNTS] for arm in arms]
    known = [course for both in courses for course in both if course is not None]
    seeds = set(known[0].seeds).intersection(*(course.seeds for course in known)) if known else set()
    if len(known) < len(AMOUNTS) * len(arms) or not seeds:
        raise UserError(
            f"the study of tuning on reviews has no seed with all runs that began with {first} reviews",
            "python -m training.studies.elasticity reviews makes them",
        )
    return [[of_seeds(course, seeds) for course in both if course is not None] for both in courses]
