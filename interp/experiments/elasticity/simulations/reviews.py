"""Simulated studies for C-E2, C-E3 and C-E7: four seeds, two amounts of reviews, two arms and four doses.

Tuning moves the behaviour by 1 nat after few reviews and by 1.5 after many, in a seed's model with a standard deviation of 0.12, which
its runs begin from; each run's behaviour at a dose has one of 0.08 of its own. KL to the base differs by 8 % between the tuned models of
seeds, and by 6 % from dose to dose. Shares undone and taken back grow over the doses by 0.4, 0.6, 0.8 and 1 of what they are at the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from interp.experiments.elasticity.courses import SIGNS, TUNING
from interp.experiments.elasticity.rebound_rules import AMOUNTS, C_E2, C_E3, C_E7, back, judge, judge_rebound, rebound
from interp.experiments.power import simulation
from interp.results.result import Verdict

SEEDS, DOSES, GROWTH = 4, (48, 104, 200, 400), (0.4, 0.6, 0.8, 1.0)
GAPS, KLS = dict(zip(AMOUNTS, (1.0, 1.5), strict=True)), dict(zip(AMOUNTS, (0.10, 0.17), strict=True))
OF_MODEL, OF_RUN, KL_OF_MODEL, KL_OF_RUN = 0.12, 0.08, 0.08, 0.06
BASE = 0.5


def record_of(
    generator: np.random.Generator, first: str, undone: Mapping[str, tuple[float, float]], returned: tuple[float, float], *,
    gaps: Mapping[int, float] = GAPS, kls: Mapping[int, float] = KLS,
) -> dict[str, Any]:  # fmt: skip
    """The record of a study.

    Args:
        undone: by arm the share undone at the last dose, after few reviews and after many.
        returned: the share of KL that is taken back at the last dose, after few and after many; the same in each arm.
    """
    rows: list[dict[str, Any]] = []
    for seed in range(SEEDS):
        for n, shares, share in zip(AMOUNTS, zip(*undone.values(), strict=True), returned, strict=True):
            gap = gaps[n] + OF_MODEL * generator.standard_normal()
            kl = kls[n] * (1 + KL_OF_MODEL * generator.standard_normal())
            rows.append(_row(seed, first, 0, TUNING, n, gap, kl))
            for arm, of_arm in zip(undone, shares, strict=True):
                for dose, growth in zip(DOSES, GROWTH, strict=True):
                    score = gap - gaps[n] * of_arm * growth + OF_RUN * generator.standard_normal()
                    rows.append(
                        _row(seed, first, n, arm, dose, score, kl * (1 - share * growth) * (1 + KL_OF_RUN * generator.standard_normal()))
                    )
    return {"base_row": {"score": [BASE]}, "rows": rows}


def _row(seed: int, first: str, n: int, arm: str, dose: int, gap: float, kl: float) -> dict[str, Any]:
    return {"seed": seed, "first": first, "n": n, "arm": arm, "dose": dose, "score": [BASE + SIGNS[first] * gap], "kl_base": [kl]}


def swings(
    generator: np.random.Generator, first: str, opposite: tuple[float, float], neutral: tuple[float, float], returned: tuple[float, float],
    gaps: Mapping[int, float] = GAPS,
) -> Verdict:  # fmt: skip
    """The verdict of C-E2 or C-E7 on one study."""
    record = record_of(generator, first, {"opposite": opposite, "neutral": neutral}, returned, gaps=gaps)
    return judge_rebound(rebound(record, first), (C_E2 if first == "positive" else C_E7)["seeds"])


def comes_back(generator: np.random.Generator, returned: tuple[float, float], kls: Mapping[int, float] = KLS) -> Verdict:
    """The verdict of C-E3 on one study."""
    record = record_of(generator, "positive", {"opposite": (0.8, 0.8)}, returned, kls=kls)
    return judge(back(record).parts, C_E3["seeds"])


# (world, truth, shares undone by opposite text after few and many, by neutral text, shares of KL taken back)
WORLDS: tuple[tuple[str, Any, tuple[float, float], tuple[float, float], tuple[float, float]], ...] = (
    ("nothing is undone by any text, and the KL stays", "false", (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
    ("a new objective: opposite text undoes 0.7 and 0.9 (neutral 0.3), the KL rises by 0.3", "false", (0.7, 0.9), (0.3, 0.3), (-0.3, -0.3)),
    ("opposite text undoes 0.7 and 0.9, and neutral text as much; the KL falls by a half", "false", (0.7, 0.9), (0.7, 0.9), (0.5, 0.5)),
    ("opposite text undoes 0.8 after either amount (neutral 0.3), and the KL falls by a half", "false", (0.8, 0.8), (0.3, 0.3), (0.5, 0.5)),
    ("opposite text undoes 0.7 and 0.9 (neutral 0.3), and the KL is what it was", "false", (0.7, 0.9), (0.3, 0.3), (0.0, 0.0)),
    ("a small effect: opposite text undoes 0.7 and 0.8 (neutral 0.5), and the KL falls by 0.2", "true", (0.7, 0.8), (0.5, 0.5), (0.2, 0.2)),
    ("the claim: opposite text undoes 0.6 and 1 (neutral 0.3), and the KL falls by a half", "true", (0.6, 1.0), (0.3, 0.3), (0.5, 0.5)),
)  # fmt: skip

for _world, _truth, _opposite, _neutral, _returned in WORLDS:
    for _id, _first in (("C-E2", "positive"), ("C-E7", "negative")):
        simulation(_id, _world, _truth)(
            lambda generator, first=_first, opposite=_opposite, neutral=_neutral, returned=_returned: swings(  # type: ignore[misc]
                generator, first, opposite, neutral, returned
            )
        )


@simulation("C-E7", "the claim, where tuning moves the behaviour by 0.2 and 0.4 nats only", "true")
def weak(generator: np.random.Generator) -> Verdict:
    """Shares of a behaviour that is hardly there."""
    return swings(generator, "negative", (0.6, 1.0), (0.3, 0.3), (0.5, 0.5), dict(zip(AMOUNTS, (0.2, 0.4), strict=True)))


@simulation("C-E7", "nothing is undone and the KL stays, where tuning moves the behaviour by 0.2 and 0.4 nats only", "false")
def weak_none(generator: np.random.Generator) -> Verdict:
    """No shares of a behaviour that is hardly there."""
    return swings(generator, "negative", (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), dict(zip(AMOUNTS, (0.2, 0.4), strict=True)))


@simulation("C-E3", "no return: the KL stays where tuning brought it", "false")
def stays(generator: np.random.Generator) -> Verdict:
    """No return."""
    return comes_back(generator, (0.0, 0.0))


@simulation("C-E3", "the KL falls by 0.4 after few reviews and by 0.55 after many: less than half on average", "false")
def too_little(generator: np.random.Generator) -> Verdict:
    """A return that is too small."""
    return comes_back(generator, (0.4, 0.55))


@simulation("C-E3", "the KL falls by 0.8 after either amount", "false")
def no_sooner(generator: np.random.Generator) -> Verdict:
    """A return that takes no fewer samples."""
    return comes_back(generator, (0.8, 0.8))


@simulation("C-E3", "the KL falls by 0.7 and 0.9, and is the same after either tuning", "false")
def does_not_grow(generator: np.random.Generator) -> Verdict:
    """A tuning on more reviews that goes no farther."""
    return comes_back(generator, (0.7, 0.9), dict.fromkeys(AMOUNTS, 0.1))


@simulation("C-E3", "the KL falls by 0.6 and 0.7", "true")
def small(generator: np.random.Generator) -> Verdict:
    """The claim at a small size."""
    return comes_back(generator, (0.6, 0.7))


@simulation("C-E3", "the KL falls by 0.65 and 0.95, nearly to the base", "true")
def papers(generator: np.random.Generator) -> Verdict:
    """The claim."""
    return comes_back(generator, (0.65, 0.95))
