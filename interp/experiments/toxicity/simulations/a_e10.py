"""Simulated studies for A-E10: mean cosines and a fall in firing with the errors of 280 prompts, and the toxicity of 120, planted.

The cosines are those of the pair that ships (0.83) and of its control runs (0.62, 0.74 and 0.78), or of a pair that stands apart from
them. Intervals are 1.96 standard errors wide to each side; the standard errors are those of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.criteria import CRITERIA
from interp.experiments.toxicity.offset_region import both_parts, leaves_region, one_offset
from interp.experiments.toxicity.simulations.x_c1 import shares_of
from interp.results.result import Verdict
from interp.stats.intervals import Interval

ALIKE_ERROR, FALL_ERROR = 0.003, 0.02
SHIPPED_CONTROLS = (0.62, 0.74, 0.78)
RANDOM, MATCHED = 0.46, 0.02
LAYERS = 5


def measured(generator: np.random.Generator, truth: float, error: float) -> Interval:
    """An estimate with a normal error, and its 95 % interval."""
    value = float(generator.normal(truth, error))
    return Interval(value, value - 1.96 * error, value + 1.96 * error, 280)


def study(
    cosine: float, trained: Sequence[float], fall: float, later: float, controls: float = 0.0
) -> Callable[[np.random.Generator], Verdict]:  # fmt: skip
    """A study with these true cosines, this fall in firing and these shares of the fall in toxicity through later blocks."""
    thresholds = CRITERIA["A-E10"][-1].thresholds

    def draw(generator: np.random.Generator) -> Verdict:
        alike = measured(generator, cosine, ALIKE_ERROR)
        runs = [measured(generator, truth, ALIKE_ERROR) for truth in trained]
        random = [measured(generator, RANDOM, ALIKE_ERROR).value for _ in range(5)]
        # At the offset's layer and at others, then the controls: six vectors and the offsets of three control runs.
        shares, others = shares_of(generator, [later] * LAYERS, [controls] * 9)
        region = leaves_region(
            measured(generator, fall, FALL_ERROR), MATCHED, shares[0], max(share.high for share in shares), others, bool(runs), thresholds
        )
        return both_parts(one_offset(alike, runs, random, thresholds), region)

    return draw


simulation("A-E10", "random changes: cosine 0.46 as in them, no fall in firing, nothing through later blocks", "false")(
    study(RANDOM, (0.4, 0.4, 0.4), 0.0, 0.0)
)
simulation("A-E10", "any training does it: cosine 0.83, in the control runs too; 80 % through later blocks", "false")(
    study(0.83, (0.83, 0.83, 0.83), 0.09, 0.8)
)
simulation("A-E10", "as the pair that ships: cosine 0.83, 0.62 to 0.78 in the control runs; 20 % through later blocks", "false")(
    study(0.83, SHIPPED_CONTROLS, 0.09, 0.2)
)
simulation("A-E10", "the offset steers the logits: cosine 0.95 against 0.62 to 0.78, firing falls, nothing through later blocks", "false")(
    study(0.95, SHIPPED_CONTROLS, 0.09, 0.0)
)
simulation("A-E10", "any vector acts through later blocks as much: cosine 0.95, 70 % there, as in its controls", "false")(
    study(0.95, SHIPPED_CONTROLS, 0.09, 0.7, 0.7)
)
simulation("A-E10", "one offset, of this tuning, through later blocks: cosine 0.95 against 0.62 to 0.78, 80 % there", "true")(
    study(0.95, SHIPPED_CONTROLS, 0.3, 0.8)
)
simulation("A-E10", "the same without logged control runs", "between")(study(0.95, (), 0.3, 0.8))
