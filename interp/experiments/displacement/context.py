"""`DisplacementContext`, the study of paper B: a pair of models and the runs that tuned its base on preference pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from interp.experiments.study import Study
from interp.models.digests import model_digests
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.runs.logs import BUNDLED_LOGS, logs_digest, read_preference_pairs, read_single_token


@dataclass(eq=False)
class DisplacementContext(Study):
    """The data that the experiments on likelihood displacement share. They are about the base model, which the runs start from.

    Attributes:
        logs: the folder of the logs of training; runs are read only where they started from this base.
    """

    pair: ModelPair
    logs: Path = BUNDLED_LOGS

    def fingerprint(self) -> list[Any]:
        """The settings, and the base model's weights, tokenizer and forward settings."""
        return [*super().fingerprint(), model_digests(self.pair.base)]

    def optional_data(self) -> Mapping[str, Callable[[], str]]:
        """The digests of the studies of one-token answers and of preference pairs."""
        logs = {"single-token": "single_token", "preference-pairs": "preference_pairs"}
        return {name: partial(logs_digest, self.logs, (log,)) for name, log in logs.items()}

    def notes(self) -> list[str]:
        """What is to be known of the pair before any result."""
        return self.pair.notes()

    def models(self) -> Sequence[Model]:
        """Both sides of the pair."""
        return list(self.pair.sides.values())

    def manifest(self) -> dict[str, Any]:
        """The pair's manifest: the source, shape and digest of both sides."""
        return self.pair.manifest()

    def single_token(self) -> dict[str, Any]:
        """The study of one-token answers. Raises `UserError` where there is none of this base model."""
        return read_single_token(self.logs, self.pair.base)

    def preference_pairs(self, rows: str) -> dict[str, Any]:
        """The study of preference pairs, with the rows that are asked for: `ranks`, `filters` or `losses`.

        Raises `UserError` where there is none of this base model with these rows.
        """
        return read_preference_pairs(self.logs, self.pair.base, rows)
