"""`ElasticityContext`, the study of paper C: a base model and the runs that tuned it on reviews and then on other text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from interp.experiments.study import Study
from interp.models.digests import model_digests
from interp.models.pair import ModelPair
from interp.runs.logs import BUNDLED_LOGS, log_file, logs_digest, read_elasticity, read_elasticity_theory


@dataclass(eq=False)
class ElasticityContext(Study):
    """The data that the experiments on elasticity share. They are about the base model, which the runs start from.

    Attributes:
        logs: the folder of the logs of training; runs are read only where they started from this base.
    """

    pair: ModelPair
    logs: Path = BUNDLED_LOGS

    def fingerprint(self) -> list[Any]:
        """The settings, and the base model's weights, tokenizer and forward settings."""
        return [*super().fingerprint(), model_digests(self.pair.base)]

    def optional_data(self) -> Mapping[str, Callable[[], str]]:
        """The digests of the runs on reviews, and of the models of the theory."""
        return {
            "elasticity": partial(logs_digest, self.logs, ("elasticity",)),
            "elasticity-theory": lambda: logs_digest(self._theory_logs(), ("elasticity_theory",)),
        }

    def notes(self) -> list[str]:
        """What is to be known of the pair before any result."""
        return self.pair.notes()

    def manifest(self) -> dict[str, Any]:
        """The pair's manifest: the source, shape and digest of both sides."""
        return self.pair.manifest()

    def courses(self) -> dict[str, Any]:
        """The study of tuning on reviews. Raises `UserError` where there is none of this base model."""
        return read_elasticity(self.logs, self.pair.base)

    def theory(self) -> dict[str, Any]:
        """The study of the theory, which is about no model of the report: that of the logs, or the one that ships."""
        return read_elasticity_theory(self._theory_logs())

    def _theory_logs(self) -> Path:
        return self.logs if log_file(self.logs, "elasticity_theory") else BUNDLED_LOGS
