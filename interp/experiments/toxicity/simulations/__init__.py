"""Simulated studies for the rule of each experiment on paper A, one file each, named by the experiment's id."""

from __future__ import annotations

from interp.experiments.power import Simulation, simulations_in


def simulations() -> list[Simulation]:
    """The simulated studies of all files of this folder, in the order of their names."""
    return simulations_in(__name__, __path__, "A")
