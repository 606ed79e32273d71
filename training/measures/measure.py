"""`Measure`: measurements of a policy during training, independent of the training loop.

A measure names the fields of the telemetry schema that it returns, and the one that a stop rule may use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from interp.errors import UserError
from interp.models.model import Model
from training.measures import MEASURES
from training.parallel import Processes
from training.recipe import Recipe


@dataclass(frozen=True)
class Target:
    """The field by whose fall a run can be stopped.

    Attributes:
        field: one of the measure's fields, a number that training is to lower.
        title: its name in the reason for stopping.
        absent: the error's text where it is 0 from the start, so that it cannot fall.
    """

    field: str
    title: str
    absent: str


class Prepared(Protocol):
    """A measure that has been set up with a policy before its first step, which is the reference of all that follow."""

    @property
    def start(self) -> dict[str, Any]:
        """The measurement of the reference."""

    def measure(self, policy: Model) -> dict[str, Any]:
        """The measurement of the policy now, as fields of the telemetry schema; its weights and mode are not changed."""


class Measure(Protocol):
    """A set of measurements of a policy during training.

    Attributes:
        fields: the fields of the telemetry schema that `Prepared.measure` returns.
        summary: those of them, numbers, whose values before and after go into the run's summary.
        target: the field for the setting `stop_at_ratio`; None where the measure has none.
    """

    fields: tuple[str, ...]
    summary: tuple[str, ...]
    target: Target | None

    def prepare(self, policy: Model, recipe: Recipe, settings: Any) -> Prepared:
        """The measure set up with the present policy as its reference; `settings` is of the dataclass that its row names."""


def measure_named(name: str) -> Measure:
    """The measure with this name. Raises `UserError` for an unknown one."""
    if name not in MEASURES:
        raise UserError(f"there is no measure {name!r}", f"set measure to one of {', '.join(MEASURES)}")
    measure: Measure = import_module(MEASURES[name].module).MEASURE
    return measure


class Watch:
    """The writer's measurements of the policy, sent to all processes, so that they decide alike; `before` is the first of them."""

    def __init__(self, processes: Processes, policy: Model, prepared: Prepared | None) -> None:
        self.processes, self.policy, self.prepared = processes, policy, prepared
        self.before: dict[str, Any] = processes.from_writer(lambda: prepared.start if prepared else {})

    def measure(self) -> dict[str, Any]:
        """Fields of the telemetry schema; every process must make this call."""
        prepared = self.prepared
        return self.processes.from_writer(lambda: prepared.measure(self.policy) if prepared else {})


@contextmanager
def evaluating(policy: Model) -> Iterator[None]:
    """A context with the policy in evaluation mode; its mode is then restored, since TRL stores its metrics by it."""
    training = policy.hf.training
    policy.hf.eval()
    try:
        yield
    finally:
        policy.hf.train(training)
