"""Simulated studies for the rule of each experiment on paper C: `c_e8`, and `reviews` for those that read one study of reviews."""

from __future__ import annotations

from interp.experiments.power import Simulation, simulations_in


def simulations() -> list[Simulation]:
    """The simulated studies of all files of this folder, in the order of their names."""
    return simulations_in(__name__, __path__, "C")
