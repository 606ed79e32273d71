"""Simulated studies for the rule of each experiment on paper A, one file each, named by the experiment's id."""

from __future__ import annotations

import importlib
import pkgutil

from interp.experiments.power import SIMULATIONS, Simulation


def simulations() -> list[Simulation]:
    """The simulated studies of all files of this folder, in the order of their names."""
    for module in sorted(item.name for item in pkgutil.iter_modules(__path__)):
        if module != "__main__":
            importlib.import_module(f"{__name__}.{module}")
    return list(SIMULATIONS)
