"""`ElasticityContext`, the study of paper C: a base model and the runs that tuned it on reviews and then on other text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from interp.experiments.pair_study import BaseStudy
from interp.runs.logs import (
    BUNDLED_LOGS,
    log_file,
    logs_digest,
    read_elasticity,
    read_elasticity_methods,
    read_elasticity_slices,
    read_elasticity_theory,
)


@dataclass(eq=False)
class ElasticityContext(BaseStudy):
    """The data that the experiments on elasticity share."""

    def optional_data(self) -> Mapping[str, Callable[[], str]]:
        """The digests of the runs on reviews, of the slices, of the tunings by several methods, and of the models of the theory."""
        return {
            "elasticity": partial(logs_digest, self.logs, ("elasticity",)),
            "elasticity-slices": partial(logs_digest, self.logs, ("elasticity_slices",)),
            "elasticity-methods": partial(logs_digest, self.logs, ("elasticity_methods",)),
            "elasticity-theory": lambda: logs_digest(self._theory_logs(), ("elasticity_theory",)),
        }

    def courses(self) -> dict[str, Any]:
        """The study of tuning on reviews. Raises `UserError` where there is none of this base model."""
        return read_elasticity(self.logs, self.pair.base)

    def slices(self) -> dict[str, Any]:
        """The study of slices of a tuning. Raises `UserError` where there is none of this base model."""
        return read_elasticity_slices(self.logs, self.pair.base)

    def methods(self) -> dict[str, Any]:
        """The study of tuning by several methods. Raises `UserError` where there is none of this base model."""
        return read_elasticity_methods(self.logs, self.pair.base)

    def theory(self) -> dict[str, Any]:
        """The study of the theory, which is about no model of the report: that of the logs, or the one that ships."""
        return read_elasticity_theory(self._theory_logs())

    def _theory_logs(self) -> Path:
        return self.logs if log_file(self.logs, "elasticity_theory") else BUNDLED_LOGS
