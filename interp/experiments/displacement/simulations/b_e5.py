"""Simulated studies for B-E5: three sources of pairs with three runs each.

Changes of held-out chosen answers are drawn in nats per token with a standard deviation of 0.008 by run, and effects differ by source by a
third of their size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from interp.experiments.displacement.pair_rules import B_E5, cured, verdict_of
from interp.experiments.power import simulation
from interp.results.result import Verdict

SOURCES, SEEDS, SPREAD, OF_SOURCE = 3, 3, 0.008, 1 / 3


def study(generator: np.random.Generator, fall: float, cure: float, *, apart: float = 0.0) -> Verdict:
    """The verdict on one study in which DPO lowers held-out chosen answers by `fall` and the SFT term gives back `cure`.

    `apart` is the standard deviation by which a source's fall differs from that.
    """
    rows: list[dict[str, Any]] = []
    for source in range(SOURCES):
        scale, shift = 1 + OF_SOURCE * generator.standard_normal(), apart * generator.standard_normal()
        for _ in range(SEEDS):
            ends = {"dpo": -fall * scale - shift, "dpo+sft": (cure - fall) * scale - shift}
            losses = [
                {"loss": name, "course": [{"chosen_per_token": end + SPREAD * generator.standard_normal()}]} for name, end in ends.items()
            ]
            rows.append({"source": str(source), "losses": losses})
    return verdict_of(cured(rows).parts, rows, B_E5)


@simulation("B-E5", "DPO leaves chosen answers where they were, and an SFT term raises them by 0.03 nats per token", "false")
def no_fall(generator: np.random.Generator) -> Verdict:
    """No displacement."""
    return study(generator, 0.0, 0.03)


@simulation("B-E5", "DPO raises chosen answers by 0.03 nats per token, and an SFT term by 0.03 more", "false")
def rises(generator: np.random.Generator) -> Verdict:
    """The opposite of displacement."""
    return study(generator, -0.03, 0.03)


@simulation("B-E5", "DPO lowers chosen answers by 0.03 nats per token, with an SFT term as much", "false")
def no_cure(generator: np.random.Generator) -> Verdict:
    """Displacement that the SFT term does not touch."""
    return study(generator, 0.03, 0.0)


@simulation(
    "B-E5", "DPO lowers or raises chosen answers by source (by 0.04), by nothing on average; an SFT term raises them by 0.03", "false"
)
def of_sources(generator: np.random.Generator) -> Verdict:
    """What runs of one source share is no evidence of another source."""
    return study(generator, 0.0, 0.03, apart=0.04)


@simulation("B-E5", "DPO lowers chosen answers by 0.005 nats per token, and an SFT term gives 0.01 back", "between")
def little(generator: np.random.Generator) -> Verdict:
    """Effects near the bounds."""
    return study(generator, 0.005, 0.01)


@simulation("B-E5", "DPO lowers chosen answers by 0.03 nats per token, and an SFT term gives 0.03 back", "true")
def claimed(generator: np.random.Generator) -> Verdict:
    """The claim."""
    return study(generator, 0.03, 0.03)


@simulation("B-E5", "DPO lowers chosen answers by 0.015 nats per token, and an SFT term gives 0.015 back", "true")
def smaller(generator: np.random.Generator) -> Verdict:
    """The claim at a smaller size."""
    return study(generator, 0.015, 0.015)
