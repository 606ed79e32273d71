"""Simulated studies for B-E2: three sources of pairs with three runs each.

A run's rank correlations are drawn about their mean with a standard deviation of 0.12, that of 64 pairs; a source's differ by 0.05.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from interp.experiments.displacement.pair_rules import B_E2, RIVALS, ranked, verdict_of
from interp.experiments.power import simulation
from interp.results.result import Verdict

SOURCES, SEEDS, BETWEEN_RUNS, BETWEEN_SOURCES = 3, 3, 0.12, 0.05


def study(generator: np.random.Generator, ches: float, partial: float, rival: float) -> Verdict:
    """The verdict on one study.

    Args:
        ches, partial: the mean rank correlation of CHES with the falls, and that given the lengths.
        rival: that of the difference of lengths; the other rivals have none.
    """
    rows: list[dict[str, Any]] = []
    for source in range(SOURCES):
        shift = BETWEEN_SOURCES * generator.standard_normal()
        for _ in range(SEEDS):
            draw = lambda mean, shift=shift: mean + shift + BETWEEN_RUNS * generator.standard_normal()  # noqa: E731
            ranks = {name: {"plain": draw(rival if name == "length_difference" else 0.0)} for name in RIVALS}
            ranks["ches"] = {"plain": draw(ches), "given_length": draw(partial)}
            rows.append({"source": str(source), "correlations": {"epoch": ranks}})
    return verdict_of(ranked(rows).parts, rows, B_E2)


@simulation("B-E2", "CHES ranks the falls as a random order does", "false")
def none(generator: np.random.Generator) -> Verdict:
    """No score ranks pairs."""
    return study(generator, 0.0, 0.0, 0.0)


@simulation("B-E2", "CHES ranks the falls (0.5) by the lengths alone, which rank them as well", "false")
def lengths(generator: np.random.Generator) -> Verdict:
    """CHES stands for the difference of lengths."""
    return study(generator, 0.5, 0.0, 0.5)


@simulation("B-E2", "CHES ranks the falls (0.4), given the lengths too (0.3), and no better than a rival", "false")
def no_better(generator: np.random.Generator) -> Verdict:
    """A measure without a model does as well."""
    return study(generator, 0.4, 0.3, 0.4)


@simulation("B-E2", "CHES ranks the falls a little (0.25; given the lengths 0.15; the best rival 0.1)", "between")
def little(generator: np.random.Generator) -> Verdict:
    """An effect near the bounds."""
    return study(generator, 0.25, 0.15, 0.1)


@simulation("B-E2", "CHES ranks the falls (0.7, given the lengths 0.6), and rivals hardly do (0.1)", "true")
def claimed(generator: np.random.Generator) -> Verdict:
    """The claim."""
    return study(generator, 0.7, 0.6, 0.1)


@simulation("B-E2", "CHES ranks the falls (0.45, given the lengths 0.35), and rivals less (0.15)", "true")
def smaller(generator: np.random.Generator) -> Verdict:
    """The claim at a smaller size."""
    return study(generator, 0.45, 0.35, 0.15)
