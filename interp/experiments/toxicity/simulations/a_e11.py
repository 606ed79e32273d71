"""Simulated studies for A-E11: medians of five layers beside four steps of each kind, and the shares that parts give.

Spreads are those of the pair that ships: medians of steps differ by about 0.02 within a kind, shares have a standard error of 3 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.a_e11_rule import THRESHOLDS, Layer, judge
from interp.results.result import Verdict
from interp.stats.intervals import Interval
from interp.stats.repeats import lower_bound

STEPS, STEP_SPREAD, MEDIAN_ERROR, SHARE_ERROR = 4, 0.02, 0.01, 0.03
# Plain and shuffled steps on the pair that ships, by layer.
PLAIN, SHUFFLED = (0.02, -0.36, -0.38, -0.11, 0.02), (0.02, -0.25, -0.26, -0.05, 0.01)
ANTIPODAL = (-0.45, -0.6, -0.65, -0.6, -0.6)


def _around(generator: np.random.Generator, value: float, error: float) -> Interval:
    drawn = generator.normal(value, error)
    return Interval(drawn, drawn - 1.96 * error, drawn + 1.96 * error, 280)


def _study(generator: np.random.Generator, medians: Sequence[float], written: float, mlp: float, more: float = 0.0) -> Verdict:
    layers = []
    for median, plain, shuffled in zip(medians, PLAIN, SHUFFLED, strict=True):
        kinds = [generator.normal(center, STEP_SPREAD, STEPS) for center in (plain, shuffled)]
        bound = float(np.tanh(min(lower_bound(np.arctanh(kind), THRESHOLDS["chance"] / len(PLAIN)) for kind in kinds)))
        observed = _around(generator, generator.normal(median, more) if more else median, MEDIAN_ERROR)
        layers.append(Layer(observed, float(min(map(np.min, kinds))), bound))
    return judge(layers, _around(generator, written, SHARE_ERROR), _around(generator, mlp, SHARE_ERROR))


@simulation("A-E11", "updates as of a plain gradient step in every layer, attention writes the offset", "false")
def no_effect(generator: np.random.Generator) -> Verdict:
    """Nothing of the claim is so."""
    return _study(generator, PLAIN, 0.02, 0.32, STEP_SPREAD)


@simulation("A-E11", "updates as of a plain gradient step, though changed values write 70 % of the offset", "false")
def as_any_step(generator: np.random.Generator) -> Verdict:
    """The referee's alternative: the pattern says how gradients look."""
    return _study(generator, PLAIN, 0.7, 0.75, STEP_SPREAD)


@simulation("A-E11", "the pair that ships: antipodal beyond any step in two layers of five, attention writes the offset", "false")
def two_layers(generator: np.random.Generator) -> Verdict:
    """What was found on the pair that ships."""
    return _study(generator, (-0.19, -0.49, -0.52, -0.27, 0.06), 0.02, 0.32)


@simulation("A-E11", "antipodal in every layer (-0.45 to -0.65), changed values write 70 %, MLP weights alone give 75 %", "true")
def claimed(generator: np.random.Generator) -> Verdict:
    """The paper's account."""
    return _study(generator, ANTIPODAL, 0.7, 0.75)


@simulation("A-E11", "antipodal in every layer, but attention writes the offset and MLP weights alone give a third", "false")
def writes_nothing(generator: np.random.Generator) -> Verdict:
    """Antipodal updates that do not make the offset."""
    return _study(generator, ANTIPODAL, 0.05, 0.32)
