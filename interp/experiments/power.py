"""How often the rule of each experiment says holds, fails and inconclusive when the truth is known.

A `Simulation` draws the data of one study out of a world in which the claim is true, or false, and gives the verdict that the rule
in force reads off it. `rates` counts the verdicts. A rule is usable if it says "holds" in at most `AT_MOST` of the studies where
the claim is false, and "fails" in at most as many where it is true.
`python -m interp.experiments.verdicts_page` writes docs/verdicts.md.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from interp.results.groups import REPORTED_WITH
from interp.results.result import Verdict

# `true`: the claim is true in this world; `false`: it is not; `between`: the effect is there and too small for the criterion.
Truth = Literal["true", "false", "between"]
Draw = Callable[[np.random.Generator], Verdict]
AT_MOST = 0.05
DRAWS = 400


@dataclass(frozen=True)
class Simulation:
    """One world of one experiment.

    Attributes:
        world: what is so in it, in words, with the size of the effect and of the study.
        draw: the verdict of the rule on one study's data, drawn with the generator.
    """

    id: str
    world: str
    truth: Truth
    draw: Draw


SIMULATIONS: list[Simulation] = []


def simulation(id: str, world: str, truth: Truth) -> Callable[[Draw], Draw]:
    """Register a function from a generator to the verdict on one simulated study of experiment `id`."""

    def register(draw: Draw) -> Draw:
        if any((item.id, item.world) == (id, world) for item in SIMULATIONS):
            raise ValueError(f"{id} has two simulations of the world {world!r}")
        SIMULATIONS.append(Simulation(id, world, truth, draw))
        return draw

    return register


def simulations_in(package: str, folders: Iterable[str], paper: str) -> list[Simulation]:
    """The simulated studies that the modules of a package register, in the order of the modules' names.

    Args:
        folders: the package's `__path__`.
        paper: the letter of the paper whose experiments they are of.
    """
    for module in sorted(item.name for item in pkgutil.iter_modules(folders)):
        importlib.import_module(f"{package}.{module}")
    return [item for item in SIMULATIONS if REPORTED_WITH[item.id[0]] == paper]


def rates(simulations: Sequence[Simulation], draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """The share of each verdict in `draws` simulated studies: one row for each world."""
    rows = []
    for item in simulations:
        generator = np.random.default_rng(seed)
        verdicts = [item.draw(generator) for _ in range(draws)]
        shares = {verdict: verdicts.count(verdict) / draws for verdict in ("holds", "fails", "inconclusive")}
        rows.append({"experiment": item.id, "world": item.world, "claim is": item.truth, **shares, "studies": draws})
    return pd.DataFrame(rows)


def wrong(row: pd.Series) -> float:
    """The share of wrong verdicts in a row of `rates`: "holds" where the claim is false, "fails" where it is true, else 0."""
    return float(row["holds"] if row["claim is"] == "false" else row["fails"] if row["claim is"] == "true" else 0.0)
