"""A run of pretraining that is short, and one that is stopped at a step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from training.packing import window
from training.recipe import Recipe


def short(built: Recipe, folder: Path, **changes: Any) -> Recipe:
    """Eight steps of pretraining in a folder of its own, with a checkpoint every three."""
    for part in ("corpus", "tokenizer"):
        shutil.copytree(built.run / part, folder / part, dirs_exist_ok=True)
    few = {"steps": 8, "checkpoint_every": 3, "evaluate_every": 8, "warmup_steps": 2, "evaluate_kilobytes": 2, "sample_prompts": ["The"]}
    return replace(built, run=folder, settings={**built.settings, "pretrain": {**built.settings["pretrain"], **few, **changes}})


def stopping(step: int) -> Callable[..., torch.Tensor]:
    def failing(tokens: Any, at: int, *rest: Any) -> torch.Tensor:
        if at == step:
            raise KeyboardInterrupt
        return window(tokens, at, *rest)

    return failing
