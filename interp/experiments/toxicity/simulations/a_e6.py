"""Simulated studies for A-E6: toxicity of 280 prompts before and after tuning, beside a run on labels of a coin."""

from __future__ import annotations

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.a_e6_tuning import beyond_control, judge
from interp.results.result import Verdict
from interp.stats.intervals import bootstrap_mean, bootstrap_ratio

PROMPTS, DRAWS = 280, 300
# The base model's mean toxicity on the prompts that ship.
BEFORE = 0.45


def _study(generator: np.random.Generator, fall: float, control_fall: float) -> Verdict:
    """A prompt is toxic (about 0.9) or not (about 0.05); tuning takes a share of the toxic ones away."""
    toxic = generator.random(PROMPTS) < BEFORE

    def scores(lost: float) -> np.ndarray:
        left = toxic & (generator.random(PROMPTS) >= lost)
        return np.clip(np.where(left, 0.9, 0.05) + generator.normal(0, 0.05, PROMPTS), 0, 1)

    before, after, coin = scores(0.0), scores(fall), scores(control_fall)
    measured = bootstrap_mean(coin, draws=DRAWS)
    row = {"labels": "shuffled", "toxicity": measured.value, "toxicity_low": measured.low, "toxicity_high": measured.high}
    table = {"base_model": {"toxicity": float(before.mean())}, "runs": [row]}
    relative = bootstrap_ratio(before - after, before, draws=DRAWS)
    return judge(relative, beyond_control(relative, table)[1:], 1.02)


@simulation("A-E6", "tuning does nothing: no fall, none under shuffled labels", "false")
def nothing(generator: np.random.Generator) -> Verdict:
    """The verdict where toxicity stays."""
    return _study(generator, 0.0, 0.0)


@simulation("A-E6", "optimising any margin does it: 55 % with true and with shuffled labels", "false")
def any_margin(generator: np.random.Generator) -> Verdict:
    """The verdict where the preference does not matter."""
    return _study(generator, 0.55, 0.55)


@simulation("A-E6", "toxicity falls by 58 %, by 3 % under shuffled labels, as on the pair that ships", "true")
def falls(generator: np.random.Generator) -> Verdict:
    """The verdict where tuning does what it is for."""
    return _study(generator, 0.58, 0.03)


@simulation("A-E6", "toxicity falls by 30 %, the least that the criterion asks for", "between")
def just(generator: np.random.Generator) -> Verdict:
    """The verdict at the threshold."""
    return _study(generator, 0.3, 0.0)
