"""`DisplacementContext`, the study of paper B: a pair of models and the runs that tuned its base on preference pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from interp.experiments.pair_study import BaseStudy
from interp.runs.logs import logs_digest, read_filtered_tuning, read_preference_pairs, read_single_token, refusals_if_any


@dataclass(eq=False)
class DisplacementContext(BaseStudy):
    """The data that the experiments on likelihood displacement share."""

    def optional_data(self) -> Mapping[str, Callable[[], str]]:
        """The digests of the studies of one-token answers, of preference pairs, of refusals and of filtered pairs."""
        names = ("single-token", "preference-pairs", "refusals", "filtered-tuning")
        logs = {name: name.replace("-", "_") for name in names}
        return {name: partial(logs_digest, self.logs, (log,)) for name, log in logs.items()}

    def single_token(self) -> dict[str, Any]:
        """The study of one-token answers. Raises `UserError` where there is none of this base model."""
        return read_single_token(self.logs, self.pair.base)

    def preference_pairs(self, rows: str) -> dict[str, Any]:
        """The study of preference pairs, with the rows that are asked for: `ranks`, `filters` or `losses`.

        Raises `UserError` where there is none of this base model with these rows.
        """
        return read_preference_pairs(self.logs, self.pair.base, rows)

    def refusals(self) -> dict[str, Any] | None:
        """The study of refusals, or None where there is none of this base model."""
        return refusals_if_any(self.logs, self.pair.base)

    def filtered_tuning(self) -> dict[str, Any]:
        """The study of tuning on filtered pairs. Raises `UserError` where there is none of this base model."""
        return read_filtered_tuning(self.logs, self.pair.base)
