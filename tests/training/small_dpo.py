"""What tests of preference tuning share: a scorer that a random model moves, the log of a run, its weights, and its end at a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from training.preference_trainer import TokenPairTrainer
from training.recipe import Recipe


class WordScorer:
    """Calls a text toxic that holds an even number of letters: what a random model writes is then toxic about half the time."""

    name = "letters"

    def score(self, texts: list[str]) -> pd.DataFrame:
        return pd.DataFrame({"toxicity": [float(len(text) % 2 == 0) for text in texts]})


def lines(recipe: Recipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (recipe.run / "dpo" / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def steps_of(recipe: Recipe) -> list[dict[str, Any]]:
    return [record for record in lines(recipe) if "loss" in record]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    whole, taken = TokenPairTrainer.training_step, []

    def failing(self: Any, *args: Any) -> Any:
        taken.append(1)
        if len(taken) == step:
            raise KeyboardInterrupt
        return whole(self, *args)

    monkeypatch.setattr(TokenPairTrainer, "training_step", failing)
