"""Simulated studies for A-E9: falls of 5 toxic neurons on 240 prompts, and of 16 equally active neurons for each of them."""

from __future__ import annotations

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.a_e9_activations import THRESHOLDS, TOP, judge
from interp.results.result import Verdict
from interp.stats.nulls import NEAREST

PROMPTS, DRAWS, MATCHED, CHANGES = 240, 100, 200, 8


def _study(generator: np.random.Generator, fall: float, usual: float, spread: float, noise: tuple[float, float] = (0.02, 0.02)) -> Verdict:
    """The verdict where toxic neurons fall by `fall` and equally active ones by `usual`, each neuron by its own amount around it.

    `noise` is the mean and the spread of the fall of the toxic neurons under random changes of equal KL.
    """
    toxic = generator.normal(fall, spread, TOP)
    others = generator.normal(usual, spread, (TOP, NEAREST))
    picks = generator.integers(0, NEAREST, (MATCHED, TOP))
    null = others[np.arange(TOP), picks].mean(axis=1)
    return judge(
        toxic + generator.normal(0.0, 0.3, (PROMPTS, TOP)),
        null.tolist(),
        THRESHOLDS["p"],
        generator.normal(*noise, CHANGES).tolist(),
        draws=DRAWS,
    )


@simulation("A-E9", "toxic neurons change as equally active ones do: by 0.006 ± 0.05", "false")
def nothing(generator: np.random.Generator) -> Verdict:
    """The verdict where tuning changes activations, and those of toxic neurons like any."""
    return _study(generator, 0.006, 0.006, 0.05)


@simulation("A-E9", "tuning lowers every active neuron, toxic or not: by 0.12 ± 0.05", "false")
def all_active_neurons_fall(generator: np.random.Generator) -> Verdict:
    """The verdict where the fall goes with being active."""
    return _study(generator, 0.12, 0.12, 0.05)


@simulation("A-E9", "toxic neurons fall by 0.12 ± 0.05, equally active ones by 0.006 ± 0.05, as on the shipped pair", "true")
def toxic_neurons_fall(generator: np.random.Generator) -> Verdict:
    """The verdict where the toxic neurons fall and others do not."""
    return _study(generator, 0.12, 0.006, 0.05)


@simulation("A-E9", "noise: toxic neurons fall by 0.2 ± 0.05 as under any change of equal KL, equally active ones by 0.04", "false")
def any_change_lowers_them(generator: np.random.Generator) -> Verdict:
    """The verdict where the most active neurons fall under whatever changes the weights."""
    return _study(generator, float(generator.normal(0.2, 0.05)), 0.04, 0.0, noise=(0.2, 0.05))
