"""Simulated studies for X-U1: 120 held-out prompts, random keys on the same prompts (10 draws of both kinds)."""

from __future__ import annotations

from interp.experiments.toxicity.simulations.worlds import simulate_keys
from interp.experiments.toxicity.unaligning import FREQUENCY, SELECTIVITY
from interp.experiments.toxicity.x_u1_selective import judge

simulate_keys(
    "X-U1", judge, kinds=((FREQUENCY, 10), (SELECTIVITY, 10)), prompts=120,
    more=[("as measured on the bundled pair: the edit adds 0.20 to the tuned and 0.16 to the base model", "between", 0.60, 0.395, 0.0)],
)  # fmt: skip
