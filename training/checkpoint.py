"""Checkpoints that survive being killed: written beside, then moved into place; safetensors and JSON only.

A checkpoint folder holds `model.safetensors`, `optimizer.safetensors` and `state.json` (step, recipe digest, anything
the loop must remember). Data order is a function of seed and step, so no generator state has to be stored.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.errors import UserError
from interp.loading import quiet

MEND = "restore the checkpoint folder from a copy, or remove it to start again"


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: a reader sees the old one or the new one, never a mixture."""
    temporary = _beside(folder)
    temporary.mkdir(parents=True)
    parameters = {name: tensor.detach().contiguous() for name, tensor in model.named_parameters()}
    save_file(parameters, temporary / "model.safetensors")
    moments = {
        f"{index}.{key}": value.contiguous() if torch.is_tensor(value) else torch.tensor(value)
        for index, slots in optimizer.state_dict()["state"].items()
        for key, value in slots.items()
        if value is not None
    }
    save_file(moments, temporary / "optimizer.safetensors")
    (temporary / "state.json").write_text(json.dumps(state, indent=1))
    _move(temporary, folder)


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a model with its tokenizer as `load_model` reads it, as a whole or not at all."""
    temporary = _beside(folder)
    with quiet():
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    _move(temporary, folder)


def _beside(folder: Path) -> Path:
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    return temporary


def _move(temporary: Path, folder: Path) -> None:
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, digest: str) -> dict[str, Any] | None:
    """Restore model and optimizer from `folder`; return its state, or None where there is no checkpoint yet.

    Raises `UserError` when the checkpoint was made by another recipe, is cut off, or does not fit the model; model and
    optimizer are then as they were.
    """
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():
        os.replace(old, folder)
    if not folder.exists():
        return None
    state = _state(folder / "state.json")
    if state["digest"] != digest:
        raise UserError(
            f"the checkpoint in {folder} was made by other settings (digest {state['digest']}, the recipe has {digest})",
            "restore the recipe, or remove the checkpoint folder to start again",
        )
    parameters, moments = _tensors(folder / "model.safetensors"), _tensors(folder / "optimizer.safetensors")
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    if {name: tensor.shape for name, tensor in parameters.items()} != wanted:
        raise UserError(f"the tensors in {folder / 'model.safetensors'} are not those of the recipe's model", MEND)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameters[name])
    slots: dict[int, dict[str, Any]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    layout = optimizer.state_dict()
    optimizer.load_state_dict({"state": slots, "param_groups": layout["param_groups"]})
    return state


def _state(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"the checkpoint file {file} cannot be read ({error})", MEND) from error
    if not isinstance(state, dict) or "digest" not in state or "step" not in state:
        raise UserError(f"the checkpoint file {file} holds no step and digest", MEND)
    return state


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the checkpoint file {file} is missing or cut off ({error})", MEND) from error
