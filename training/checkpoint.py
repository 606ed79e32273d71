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
from safetensors.torch import load_file, save_file
from torch import nn

from interp.errors import UserError


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: a reader sees the old one or the new one, never a mixture."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
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
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, digest: str) -> dict[str, Any] | None:
    """Restore model and optimizer from `folder`; return its state, or None where there is no checkpoint yet.

    Raises `UserError` when the checkpoint was made by another recipe.
    """
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():
        os.replace(old, folder)
    if not folder.exists():
        return None
    state = json.loads((folder / "state.json").read_text())
    if state["digest"] != digest:
        raise UserError(
            f"the checkpoint in {folder} was made by other settings (digest {state['digest']}, the recipe has {digest})",
            "restore the recipe, or remove the checkpoint folder to start again",
        )
    parameters = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameters[name])
    slots: dict[int, dict[str, Any]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    layout = optimizer.state_dict()
    optimizer.load_state_dict({"state": slots, "param_groups": layout["param_groups"]})
    return state
