"""What is measured of a policy while it is trained, apart from the loop that trains it.

A training loop is given a `Measure` and knows nothing of what it measures: the measure names the fields of the telemetry schema
that it gives, and the one that a stop rule may ask for. A new measure is a module here and a row of `MEASURES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from interp.errors import UserError
from interp.models.model import Model
from training.parallel import Processes
from training.recipe import Recipe
from training.sections import DpoSettings

# By the name that a recipe's `measure` gives: the module here whose `MEASURE` it is, read when it is asked for.
MEASURES = {"toxicity": "training.measures.toxicity"}


@dataclass(frozen=True)
class Target:
    """The field by whose fall a run can be stopped.

    Attributes:
        field: one of the measure's fields, a number that training is to lower.
        title: what it is, in words, as the reason for stopping has it.
        absent: what is said where it is 0 from the start, so that it cannot fall.
    """

    field: str
    title: str
    absent: str


class Prepared(Protocol):
    """A measure that has been set up with a policy before its first step, which is the reference of all that follow."""

    @property
    def start(self) -> dict[str, Any]:
        """What `measure` gave for the reference."""

    def measure(self, policy: Model) -> dict[str, Any]:
        """The policy now, as fields of the telemetry schema; its weights and mode stay as they are."""


class Measure(Protocol):
    """What a run measures.

    Attributes:
        fields: of the telemetry schema, that `Prepared.measure` gives.
        summary: those of them, numbers, that stand in the run's summary before and after.
        target: what the setting `stop_at_ratio` asks for; None where the measure has nothing to stop by.
    """

    fields: tuple[str, ...]
    summary: tuple[str, ...]
    target: Target | None

    def prepare(self, policy: Model, recipe: Recipe, settings: DpoSettings) -> Prepared:
        """Set up on the policy as it stands."""


def measure_named(name: str) -> Measure:
    """The measure of this name. Raises `UserError` for one that there is not."""
    if name not in MEASURES:
        raise UserError(f"there is no measure {name!r}", f"set measure to one of {', '.join(MEASURES)}")
    measure: Measure = import_module(MEASURES[name]).MEASURE
    return measure


class Watch:
    """What the writer measures of the policy, told to all processes, so that they decide alike; `before` was measured first."""

    def __init__(self, processes: Processes, policy: Model, prepared: Prepared | None) -> None:
        self.processes, self.policy, self.prepared = processes, policy, prepared
        self.before: dict[str, Any] = processes.from_writer(lambda: prepared.start if prepared else {})

    def measure(self) -> dict[str, Any]:
        """Fields of the telemetry schema; every process asks at once."""
        prepared = self.prepared
        return self.processes.from_writer(lambda: prepared.measure(self.policy) if prepared else {})


@contextmanager
def evaluating(policy: Model) -> Iterator[None]:
    """The policy in evaluation mode, and then in the mode that it was in, by which TRL names what it logs."""
    training = policy.hf.training
    policy.hf.eval()
    try:
        yield
    finally:
        policy.hf.train(training)
