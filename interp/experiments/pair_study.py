"""`PairStudy`, the study of a pair of models, and `BaseStudy`, that of its base and of the runs that were made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.experiments.study import Study
from interp.models.digests import model_digests
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.runs.logs import BUNDLED_LOGS


@dataclass(eq=False)
class PairStudy(Study):
    """A study whose models are both sides of a pair."""

    pair: ModelPair

    def models(self) -> Sequence[Model]:
        """Both sides of the pair."""
        return list(self.pair.sides.values())

    def notes(self) -> list[str]:
        """What is to be known of the pair before any result."""
        return self.pair.notes()

    def manifest(self) -> dict[str, Any]:
        """The pair's manifest: the source, shape and digest of both sides."""
        return self.pair.manifest()


@dataclass(eq=False)
class BaseStudy(PairStudy):
    """A study about the base model, which runs that are logged started from.

    Attributes:
        logs: the folder of the logs of training; runs are read only where they started from this base.
    """

    logs: Path = BUNDLED_LOGS

    def fingerprint(self) -> list[Any]:
        """The settings, and the base model's weights, tokenizer and forward settings."""
        return [*super().fingerprint(), model_digests(self.pair.base)]
