"""The cells of the study of one-token answers, how many runs each has, and the learning rates that are tried."""

from __future__ import annotations

from dataclasses import dataclass

from training.single_token import Objective

# RMSprop's are those that the paper's authors tried; Adam's first step is a tenth of RMSprop's at one rate.
RATES = {
    "rmsprop": (1e-7, 5e-7, 1e-6, 5e-6, 1e-5),
    "adam": (1e-6, 5e-6, 1e-5, 5e-5, 1e-4),
    "sgd": tuple(value * 10.0**power for power in range(-6, 1) for value in (1, 5)),
}
OBJECTIVES: tuple[Objective, ...] = ("dpo", "ipo", "dpo+sft")
STAGES, ORDER = ("sft", "base"), ("rmsprop", "sgd", "adam")


@dataclass(frozen=True)
class Design:
    """How many runs are made and how long they are; the paper's cell has `seeds`, the others `other_seeds`."""

    seeds: int = 6
    other_seeds: int = 3
    steps: int = 100
    epochs: int = 4
    batch: int = 8
    draws: int = 100
    statement_seed: int = 548


@dataclass(frozen=True)
class Cell:
    """One kind of run: the stage that it starts from, its objective and its optimizer."""

    stage: str
    objective: Objective
    optimizer: str

    @property
    def name(self) -> str:
        """The name of the cell, as in the names of rows."""
        return f"{self.stage},{self.objective},{self.optimizer}"


PAPER = Cell("sft", "dpo", "rmsprop")
EVERY = [Cell(stage, objective, optimizer) for objective in OBJECTIVES for optimizer in ORDER for stage in STAGES]
# The paper's first.
CELLS = (PAPER, *(cell for cell in EVERY if cell != PAPER))
