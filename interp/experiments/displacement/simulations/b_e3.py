"""Simulated studies for B-E3 on the toy task: five runs of 180 answers to unsafe requests and 90 to benign ones.

A run's share of refusals differs from that of others with a standard deviation of 0.05 on the scale of shares, the same before and
after; each way of tuning adds one of 0.04 of its own. Two random subsets are a run's null.
"""

from __future__ import annotations

import numpy as np

from interp.experiments.displacement.refusal_rules import ALL, BEFORE, BENIGN, LOW, RANDOM, UNSAFE, judge, refusals
from interp.experiments.power import simulation
from interp.results.result import Verdict

RUNS, ANSWERS, OF_BENIGN = 5, 180, 90
START, START_BENIGN, OF_RUN, OF_ARM = 0.72, 0.05, 0.05, 0.04


def study(generator: np.random.Generator, lost: float, filtered: float, over: float = 0.0) -> Verdict:
    """The verdict on one study in which DPO and random pairs lose `lost`, and the filter ends `filtered` above random pairs."""
    rows = []
    for _ in range(RUNS):
        own = OF_RUN * generator.standard_normal()

        def share(mean: float, count: int, own: float = own) -> float:
            chance = np.clip(mean + own + OF_ARM * generator.standard_normal(), 0.01, 0.99)
            return float(generator.binomial(count, chance) / count)

        def arm(name: str, change: float, extra: float = 0.0) -> dict[str, object]:
            benign = share(START_BENIGN + extra, OF_BENIGN)
            return {"arm": name, UNSAFE: share(START + change, ANSWERS), BENIGN: benign, "like_fixed": 0.98}

        # A tenth of the pairs, with 2 steps in place of 15, loses half as much: RMSprop moves furthest in its first steps.
        arms = [arm(BEFORE, 0.0), arm(ALL, -lost), arm(LOW, -lost / 2 + filtered, over), arm(RANDOM, -lost / 2), arm(RANDOM, -lost / 2)]
        rows.append({"arms": arms})
    return judge(refusals({"rows": rows}))


@simulation("B-E3", "DPO leaves refusals where they are, and the filter does no more than random pairs", "false")
def nothing(generator: np.random.Generator) -> Verdict:
    """No effect."""
    return study(generator, 0.0, 0.0)


@simulation("B-E3", "DPO takes 0.3 of the refusals away, and the filter does no more than random pairs", "false")
def no_filter(generator: np.random.Generator) -> Verdict:
    """Refusals fall whatever is filtered."""
    return study(generator, 0.3, 0.0)


@simulation("B-E3", "DPO adds 0.15, as its labels ask, and the filter 0.1 more than random pairs", "false")
def works(generator: np.random.Generator) -> Verdict:
    """DPO does what its labels say."""
    return study(generator, -0.15, 0.1)


@simulation("B-E3", "DPO takes 0.3 away, the filter leaves 0.2 more than random pairs, and benign requests are refused 0.3 more", "false")
def refuses_all(generator: np.random.Generator) -> Verdict:
    """A filter after which everything is refused."""
    return study(generator, 0.3, 0.2, 0.3)


@simulation("B-E3", "DPO takes 0.3 away, and the filter leaves 0.25 more than random pairs", "true")
def claimed(generator: np.random.Generator) -> Verdict:
    """The claim."""
    return study(generator, 0.3, 0.25)


@simulation("B-E3", "DPO takes 0.15 away, and the filter leaves 0.12 more than random pairs", "true")
def smaller(generator: np.random.Generator) -> Verdict:
    """The claim at a smaller size."""
    return study(generator, 0.15, 0.12)
