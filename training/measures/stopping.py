"""`StopRule`: ends a run early once a field of its measurements has fallen far enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interp.errors import UserError
from training.measures.measure import Measure
from training.sections import DpoSettings


@dataclass(frozen=True)
class StopRule:
    """End a run once a measured field is at most `most`, which is `ratio` of what it was."""

    field: str
    most: float
    reason: str

    @classmethod
    def of(cls, settings: DpoSettings, measure: Measure, before: Mapping[str, Any]) -> StopRule | None:
        """The rule of `stop_at_ratio`; None for a control of equal steps, and where it is negative or not set.

        Raises `UserError` where the measure has no target, its target is no field that it gives, or is 0 from the start.
        """
        ratio, target = float(settings.stop_at_ratio), measure.target
        if ratio < 0 or settings.equal_steps:
            return None
        if target is None:
            raise UserError(f"the measure {settings.measure!r} has nothing that stop_at_ratio could ask for", "set max_steps alone")
        if target.field not in measure.fields or target.field not in before:
            problem = f"the measure {settings.measure!r} gives no {target.field!r}, by which stop_at_ratio would end the run"
            raise UserError(problem, f"set max_steps alone, or name one of {', '.join(measure.fields)} as the measure's target")
        if not before[target.field]:
            problem = f"{target.absent}, so stop_at_ratio has nothing to fall from"
            raise UserError(problem, "set max_steps alone, or use another scorer or base model")
        return cls(target.field, ratio * before[target.field], f"{target.title} is at most {ratio} of what it was")

    def reached(self, fields: Mapping[str, Any]) -> bool:
        """Whether a measurement ends the run."""
        return bool(fields[self.field] <= self.most)
