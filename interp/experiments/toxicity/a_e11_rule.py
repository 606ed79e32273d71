"""The rule of A-E11: which layers' value updates are antipodal beyond what gradient steps of equal norm do, and the verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp.diffing.antipodes import Antipodes
from interp.experiments.toxicity.criteria import CRITERIA
from interp.results.result import Verdict
from interp.stats.intervals import Interval
from interp.stats.repeats import lower_bound

PLAIN, SHUFFLED, RANDOM = (
    "one plain fine-tuning step (null)",
    "one preference step on shuffled labels (null)",
    "random change of equal norm (null)",
)
THRESHOLDS = CRITERIA["A-E11"][-1].thresholds


@dataclass(frozen=True)
class Layer:
    """The value updates of one layer: their median cosine with the offset, and what gradient steps of equal norm give there.

    Attributes:
        lowest: the lowest median of a step; bound: what a further step of either kind lies below with the criterion's chance, divided
            by the number of layers; NaN where too few steps were made to say.
    """

    median: Interval
    lowest: float
    bound: float

    @property
    def tested(self) -> bool:
        """Whether there are enough steps of each kind for a bound."""
        return bool(np.isfinite(self.bound))

    @property
    def beyond(self) -> bool:
        """Whether the updates are antipodal, and beyond what any gradient step does."""
        # Comparisons with NaN are false.
        return self.median.value < THRESHOLDS["antipodal"] and self.median.high < self.bound


def judge_1(median: Interval, lowest: float, trend: float, inactive: Interval) -> Verdict:
    """The verdict under version 1 of the criterion, which looks at the last layer below the offset alone."""
    if median.value > -0.1 or median.value >= lowest:
        return "fails"
    return "holds" if median.value < -0.3 and median.high < lowest and trend <= -0.8 and inactive.low > 0.5 else "inconclusive"


def judge(layers: Sequence[Layer], inactive: Interval, mlp: Interval) -> Verdict:
    """The verdict from every layer, the share that changed values of inactive neurons write, and the share that MLP weights alone give."""
    written = THRESHOLDS["written"]
    if all(layer.median.value >= layer.lowest for layer in layers) or (inactive.high < written and mlp.high < written):
        return "fails"
    most = sum(layer.beyond for layer in layers) > THRESHOLDS["layers"] * len(layers)
    return "holds" if most and inactive.low > written and mlp.low > written else "inconclusive"


def layers_of(medians: Sequence[Interval], nulls: Sequence[tuple[str, Antipodes]]) -> list[Layer]:
    """Each layer's median beside the steps' medians in the same layer; the bound is the lower one of the two kinds of step."""
    chance = THRESHOLDS["chance"] / max(1, len(medians))
    rows = []
    for below, median in enumerate(medians):
        by_kind = [[null.medians[below] for name, null in nulls if name == kind] for kind in (PLAIN, SHUFFLED)]
        # Fisher's z, since cosines are bounded; `min` of Python passes over a NaN that does not come first.
        bound = float(np.tanh(np.min([lower_bound(np.arctanh(values), chance) for values in by_kind])))
        rows.append(Layer(median, min(min(values) for values in by_kind if values), bound))
    return rows


def chance_beyond(nulls: Sequence[tuple[str, Antipodes]], layer: int) -> float:
    """The share of layers that pass the same test in a gradient step, each step against all others; NaN for too few steps."""
    passed = []
    for place, (kind, step) in enumerate(nulls):
        others = [*nulls[:place], *nulls[place + 1 :]]
        if kind != RANDOM and all(sum(name == each for name, _ in others) > 1 for each in (PLAIN, SHUFFLED)):
            point = [Interval(value, value, value, 1) for value in step.medians]
            passed += [one.beyond for one in layers_of(point, others)]
    return float(np.mean(passed)) if passed else float("nan")
