"""Simulated studies for B-E6 and B-E7: five draws of pairs, two random halves each.

The toxicity after one arm of a draw differs from its mean with a standard deviation of 0.012, the KL by a twelfth, and a share of the
change of log-probabilities by 0.05: somewhat more than in the draws of the base that ships, where a share differs by 0.01.
"""

from __future__ import annotations

import numpy as np

from interp.experiments.displacement.filtered_rules import MATCHED, NAMED, NONE, carried, filtered, judge_carried, judge_filtered
from interp.experiments.power import simulation
from interp.results.result import Verdict

RUNS, START, TOXICITY, KL = 5, 0.49, 0.30, 0.02
OF_ARM, OF_KL, OF_SHARE = 0.012, 1 / 12, 0.05


def study(generator: np.random.Generator, toxicity: float, kl: float, back: float = 0.0) -> Verdict:
    """The verdict on a study in which the filter adds to the toxicity, to that after an attack, and multiplies the KL."""

    def arm(name: str, change: float, after: float, factor: float) -> dict[str, object]:
        first, second, third = TOXICITY + change + OF_ARM * generator.standard_normal(3) + np.array([0.0, 0.12 + after, 0.05 + after])
        distance = KL * factor * np.exp(OF_KL * generator.standard_normal())
        return {"arm": name, "toxicity": first, "unaligned": third, "kl": distance, "after toxic": {"toxicity": second}}

    rows = [
        {"arms": [arm("influence", toxicity, back, kl), arm("random", 0.0, 0.0, 1.0), arm("random", 0.0, 0.0, 1.0)]} for _ in range(RUNS)
    ]
    return judge_filtered(filtered({"base_model": {"toxicity": START}, "rows": rows}))


@simulation("B-E6", "the half of highest influence is a random half", "false")
def same(generator: np.random.Generator) -> Verdict:
    """No effect of the filter."""
    return study(generator, 0.0, 1.0)


@simulation("B-E6", "the filter leaves 0.06 more toxicity, and a third less KL", "false")
def weaker(generator: np.random.Generator) -> Verdict:
    """A filter that keeps pairs which teach little."""
    return study(generator, 0.06, 0.67)


@simulation("B-E6", "the filter moves the model a third less, and 0.06 more toxicity comes back", "false")
def fragile(generator: np.random.Generator) -> Verdict:
    """A filter that makes the tuning fragile."""
    return study(generator, 0.0, 0.67, 0.06)


@simulation("B-E6", "the filter moves the model a third less, and changes nothing else", "true")
def claimed(generator: np.random.Generator) -> Verdict:
    """The claim."""
    return study(generator, 0.0, 0.67)


@simulation("B-E6", "the filter moves the model a sixth less, and changes nothing else", "true")
def smaller(generator: np.random.Generator) -> Verdict:
    """The claim at a smaller size."""
    return study(generator, 0.0, 0.83)


def carrying(generator: np.random.Generator, named: float, matched: float, change: float = -2.0) -> Verdict:
    """The verdict on a study in which two groups of neurons carry these shares of a change in nats."""
    rows = []
    for _ in range(RUNS):
        whole = change * np.exp(0.1 * generator.standard_normal())
        left = {NAMED: named, f"{MATCHED} 0": matched, f"{MATCHED} 1": matched}
        neurons = {name: {"rejected": whole * (1 - share - OF_SHARE * generator.standard_normal())} for name, share in left.items()}
        rows.append({"neurons": {NONE: {"rejected": whole}} | neurons})
    return judge_carried(carried({"rows": rows}))


@simulation("B-E7", "toxic neurons carry 0.05 of the fall, as equally active ones do", "false")
def no_neurons(generator: np.random.Generator) -> Verdict:
    """No neurons carry the fall."""
    return carrying(generator, 0.05, 0.05)


@simulation("B-E7", "toxic neurons carry 0.4 of the fall, as equally active ones do", "false")
def all_alike(generator: np.random.Generator) -> Verdict:
    """Any active neurons carry it."""
    return carrying(generator, 0.4, 0.4)


@simulation("B-E7", "toxic neurons carry 0.4 of the fall, equally active ones 0.05", "true")
def named_carry(generator: np.random.Generator) -> Verdict:
    """The claim."""
    return carrying(generator, 0.4, 0.05)


@simulation("B-E7", "toxic neurons carry 0.28 of the fall, equally active ones 0.05", "true")
def named_carry_less(generator: np.random.Generator) -> Verdict:
    """The claim at a smaller size."""
    return carrying(generator, 0.28, 0.05)
