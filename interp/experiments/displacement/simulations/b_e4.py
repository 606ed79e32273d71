"""Simulated studies for B-E4: three sources of pairs with three runs each.

Changes of held-out chosen answers are drawn in nats per token with a standard deviation of 0.008 by run and arm, and effects differ by
source by a third of their size; rank correlations have one of 0.12.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from interp.experiments.displacement.pair_rules import B_E4, OTHER_FILTERS, displacers, verdict_of
from interp.experiments.power import simulation
from interp.results.result import Verdict

SOURCES, SEEDS, SPREAD, OF_SOURCE, RANKS = 3, 3, 0.008, 1 / 3, 0.12


def study(
    generator: np.random.Generator, gain: float, loss: float, other: float, total: float, own: float, *, apart: float = 0.0
) -> Verdict:
    """The verdict on one study.

    Args:
        apart: the standard deviation by which a source's gain, and loss, differ from these.
        gain, loss: by how much the influence filter ends above, and the worst half below, random halves.
        other: by how much the filter by lengths ends above them; the other filters do as random halves.
        total, own: the mean rank correlations with the falls.
    """
    rows: list[dict[str, Any]] = []
    for source in range(SOURCES):
        scale, shift = 1 + OF_SOURCE * generator.standard_normal(), apart * generator.standard_normal()
        for _ in range(SEEDS):
            effects = {
                "influence": gain * scale + shift,
                "worst": -loss * scale - shift,
                **dict.fromkeys(OTHER_FILTERS, 0.0),
                "length": other * scale,
            }
            arms = [*effects.items(), ("random", 0.0), ("random", 0.0)]
            drawn = [
                {"arm": name, "held_out": {"chosen_per_token": effect + SPREAD * generator.standard_normal()}} for name, effect in arms
            ]
            ranks = {name: {"plain": mean + RANKS * generator.standard_normal()} for name, mean in (("total", total), ("own", own))}
            rows.append({"source": str(source), "arms": drawn, "correlations": {"epoch": ranks}})
    return verdict_of(displacers(rows).parts, rows, B_E4)


@simulation("B-E4", "no filter does anything, and total ranks as own does (0.3)", "false")
def none(generator: np.random.Generator) -> Verdict:
    """Nothing is so."""
    return study(generator, 0.0, 0.0, 0.0, 0.3, 0.3)


@simulation("B-E4", "total ranks better (0.8 against 0.3), and the influence filter and the worst half do as random halves", "false")
def no_filter(generator: np.random.Generator) -> Verdict:
    """Who displaces whom is known, and of no use."""
    return study(generator, 0.0, 0.0, 0.0, 0.8, 0.3)


@simulation("B-E4", "the influence filter ends 0.03 nats per token higher, and a filter by lengths as much", "false")
def lengths(generator: np.random.Generator) -> Verdict:
    """A filter that costs nothing does as well."""
    return study(generator, 0.03, 0.03, 0.03, 0.8, 0.3)


@simulation("B-E4", "the influence filter ends 0.03 nats per token higher, and a pair's own gradients rank as well as all (0.6)", "false")
def by_themselves(generator: np.random.Generator) -> Verdict:
    """Pairs displace themselves."""
    return study(generator, 0.03, 0.03, 0.0, 0.6, 0.6)


@simulation("B-E4", "the influence filter and the worst half do something in each source (by 0.04) and nothing on average", "false")
def of_sources(generator: np.random.Generator) -> Verdict:
    """What runs of one source share is no evidence of another source."""
    return study(generator, 0.0, 0.0, 0.0, 0.8, 0.3, apart=0.04)


@simulation("B-E4", "an influence filter that ends 0.01 nats per token higher; lengths 0.005; total 0.5, own 0.35", "between")
def little(generator: np.random.Generator) -> Verdict:
    """Effects near the bounds."""
    return study(generator, 0.01, 0.01, 0.005, 0.5, 0.35)


@simulation("B-E4", "the influence filter ends 0.035 higher, the worst half 0.04 lower, lengths 0.01 higher; total 0.8, own 0.2", "true")
def claimed(generator: np.random.Generator) -> Verdict:
    """The claim at the size seen in preparation."""
    return study(generator, 0.035, 0.04, 0.01, 0.8, 0.2)


@simulation("B-E4", "the influence filter ends 0.02 higher, the worst half 0.02 lower, others as random; total 0.6, own 0.3", "true")
def smaller(generator: np.random.Generator) -> Verdict:
    """The claim at a smaller size."""
    return study(generator, 0.02, 0.02, 0.0, 0.6, 0.3)
