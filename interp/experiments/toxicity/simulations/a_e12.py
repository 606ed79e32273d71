"""Simulated studies for A-E12: 280 prompts, random keys on 56 of them (20 draws that fire as often, 10 that are as selective)."""

from __future__ import annotations

from interp.experiments.toxicity.a_e12_unalign import judge
from interp.experiments.toxicity.simulations.worlds import simulate_keys
from interp.experiments.toxicity.unaligning import FREQUENCY, SELECTIVITY

simulate_keys("A-E12", judge, kinds=((FREQUENCY, 20), (SELECTIVITY, 10)), prompts=280, every=5)
