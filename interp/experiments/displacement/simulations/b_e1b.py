"""Simulated studies for B-E1b: six seeds, three pairs and two stages.

The rank correlation of a pair is drawn once for all seeds, since they share the unembedding and nearly the prompt; random pairs'
correlations have a standard deviation of 0.1, and seeds differ by 0.02.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from interp.experiments.displacement.single_token_rules import judge_ordered, ordered
from interp.experiments.power import simulation
from interp.results.result import Verdict

SEEDS, RANDOM, BETWEEN_SEEDS, TOP = 6, 0.1, 0.02, 20
# The 97.5 % quantile of random pairs' correlations.
QUANTILE = 1.96 * RANDOM


def study(generator: np.random.Generator, order: float, share: float, squeezing: float) -> Verdict:
    """The verdict on one study.

    Args:
        order: the mean rank correlation with Theorem 5, beside what the pair's unembeddings have by chance.
        share, squeezing: the chance of each of the tokens that gain most to be among Theorem 5's, and among the most probable.
    """
    rows: list[dict[str, Any]] = []
    for stage in ("sft", "base"):
        for role in ("similar", "opposite", "control"):
            own = order + RANDOM * generator.standard_normal()
            rows += [
                {
                    "stage": stage, "role": role, "seed": seed, "order": own + BETWEEN_SEEDS * generator.standard_normal(), "order_random": QUANTILE,
                    "share": generator.binomial(TOP, share) / TOP, "share_squeezing": generator.binomial(TOP, squeezing) / TOP,
                }
                for seed in range(SEEDS)
            ]  # fmt: skip
    return judge_ordered(ordered(rows))


@simulation("B-E1b", "tokens gain in an order that has nothing to do with the pair; most of what gains was probable before", "false")
def unrelated(generator: np.random.Generator) -> Verdict:
    """Neither account of Theorem 5 is so."""
    return study(generator, 0.0, 0.003, 0.4)


@simulation("B-E1b", "tokens gain in no order of the pair's, and Theorem 5 and squeezing name a tenth of the top gains each", "false")
def chance(generator: np.random.Generator) -> Verdict:
    """The order is that of chance, and neither account leads."""
    return study(generator, 0.0, 0.1, 0.1)


@simulation("B-E1b", "the order is Theorem 5's (rank correlation 0.4), but probability goes where it was (a tenth against half)", "false")
def squeezed(generator: np.random.Generator) -> Verdict:
    """Half of the claim."""
    return study(generator, 0.4, 0.1, 0.5)


@simulation("B-E1b", "the order is Theorem 5's (0.6), which names six tenths of the top gains, squeezing two", "true")
def claimed(generator: np.random.Generator) -> Verdict:
    """The claim."""
    return study(generator, 0.6, 0.6, 0.2)


@simulation("B-E1b", "the order is Theorem 5's (0.4), which names four tenths of the top gains, squeezing two", "true")
def weaker(generator: np.random.Generator) -> Verdict:
    """The claim at a smaller size."""
    return study(generator, 0.4, 0.4, 0.2)
