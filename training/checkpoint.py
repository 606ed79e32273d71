"""Reads and writes checkpoints atomically: each is written to a temporary folder and moved into place; safetensors and JSON only.

A checkpoint folder holds `model.safetensors`, `optimizer.safetensors` and `state.json`: step, digest of the run's inputs,
the loop's own state, and the hashes of all three files, so that a truncated or damaged file is
recognised. Data order is a function of seed and step, so no generator state has to be stored. Tensors that are sharded
over processes are gathered when written and sharded again when read, so a run may continue with another number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.errors import UserError
from interp.files import replacing
from interp.models.difference import save_difference, take_difference
from interp.models.libraries import quiet
from interp.models.loading import load_model
from interp.models.offloading import weights_digest
from training.stamps import differences, file_hash

FIX = "restore the checkpoint folder from a copy, or remove it to start again"
FILES = ("model.safetensors", "optimizer.safetensors")


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, on every process, where it is sharded over processes; every process must make this call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(value: Tensor, model: Tensor) -> Tensor:
    """A whole tensor sharded as `model` is."""
    return distribute_tensor(value.to(model.device), model.device_mesh, model.placements) if isinstance(model, DTensor) else value


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], state: dict[str, Any], *, writer: bool = True
) -> None:
    """Write a checkpoint atomically: a reader sees the old one or the new one, never a mixture.

    Every process of a run calls this, and the one that is `writer` writes.
    """
    parameters = {name: gathered(tensor.detach()).cpu().contiguous() for name, tensor in model.named_parameters()}
    moments = {
        f"{index}.{key}": gathered(value).cpu().contiguous() if torch.is_tensor(value) else torch.tensor(value)
        for index, slots in _slots(_several(optimizer)).items()
        for key, value in slots.items()
        if value is not None
    }
    if not writer:
        return
    temporary = _beside(folder)
    temporary.mkdir(parents=True)
    for name, tensors in zip(FILES, (parameters, moments), strict=True):
        save_file(tensors, temporary / name)
    whole = {**state, "files": {name: file_hash(temporary / name) for name in FILES}}
    (temporary / "state.json").write_text(json.dumps({**whole, "hash": _hash(whole)}, indent=1))
    _move(temporary, folder)


def _several(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    return [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)


def _slots(optimizers: list[Optimizer]) -> dict[int, dict[str, Any]]:
    """The optimizer state of each parameter, numbered through all the optimizers."""
    by_index: dict[int, dict[str, Any]] = {}
    first = 0
    for optimizer in optimizers:
        by_index |= {first + index: slots for index, slots in optimizer.state_dict()["state"].items()}
        first += _count(optimizer)
    return by_index


def _count(optimizer: Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _hash(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a model with its tokenizer as `load_model` reads it, atomically."""
    with replacing(folder) as temporary, quiet():
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def save_as_difference(folder: Path, model: PreTrainedModel, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a tuned model as its difference from the base in `source` (a folder or a hub id), atomically.

    The changes are rounded to bfloat16, in `model` too, so that it equals the model that will be loaded.
    """
    base = load_model(source).hf
    changes = take_difference(base, model)
    base_path = os.path.relpath(source, folder) if Path(source).is_dir() else source
    with replacing(folder) as temporary, quiet():
        temporary.mkdir()
        model.config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        save_difference(changes, temporary, base=base_path, base_digest=weights_digest(base), digest=weights_digest(model))


def _beside(folder: Path) -> Path:
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    return temporary


def _move(temporary: Path, folder: Path) -> None:
    """Put a checkpoint in its place.

    Unlike with `interp.files.replacing`, a kill between the two moves leaves the old one under a known name, where `recover` finds it.
    """
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], digest: str, made: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Restore model and optimizers from `folder`; return its state, or None where there is no checkpoint yet.

    Raises `UserError` when the checkpoint was made from other inputs (named, where the state has `made_from` and `made` has
    the present ones), is damaged, or does not fit the model; model and optimizers are then unchanged.
    """
    if not folder.exists() and not recover(folder):
        return None
    state = _state(folder / "state.json")
    if state["digest"] != digest:
        changes = differences(state["made_from"], made) if made is not None and "made_from" in state else []
        problem = "; ".join(changes) or f"digest {state['digest']}, the recipe has {digest}"
        fix = "restore what it was made from, or remove the checkpoint folder (`bypass train --again` does) to start again"
        raise UserError(f"the checkpoint in {folder} was made by other settings or data ({problem})", fix)
    parameters, moments = (_tensors(folder / name, state.get("files", {}).get(name)) for name in FILES)
    optimizers = _several(optimizer)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    if {name: tensor.shape for name, tensor in parameters.items()} != shapes:
        raise UserError(f"the tensors in {folder / FILES[0]} are not those of the recipe's model", FIX)
    slots: dict[int, dict[str, Any]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    if slots and max(slots) >= sum(map(_count, optimizers)):
        raise UserError(f"the tensors in {folder / FILES[1]} are not those of the recipe's optimizer", FIX)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_like(parameters[name], parameter))
    first = 0
    for one in optimizers:
        owned = [parameter for group in one.param_groups for parameter in group["params"]]
        entries = {
            index: {
                name: _like(value, owned[index]) if value.shape == owned[index].shape else value
                for name, value in slots[first + index].items()
            }
            for index in range(len(owned))
            if first + index in slots
        }
        one.load_state_dict({"state": entries, "param_groups": one.state_dict()["param_groups"]})
        first += len(owned)
    return state


def recover(folder: Path) -> bool:
    """Restore the old checkpoint that a kill between the two moves of `_move` left aside; return whether there is a checkpoint."""
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():
        os.replace(old, folder)
    return folder.exists()


def _state(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"the checkpoint file {file} cannot be read ({error})", FIX) from error
    if not isinstance(state, dict) or not {"digest", "step"} <= state.keys():
        raise UserError(f"the checkpoint file {file} holds no step and digest", FIX)
    # Checkpoints from before hashes were written are accepted without one.
    if "hash" in state and state.pop("hash") != _hash(state):
        raise UserError(f"the checkpoint file {file} is damaged: its content is not what was written", FIX)
    return state


def _tensors(file: Path, expected: str | None) -> dict[str, Tensor]:
    try:
        if expected is not None and file_hash(file) != expected:
            size = file.stat().st_size
            raise UserError(f"the checkpoint file {file} ({size} bytes) is cut off or damaged: its content is not what was written", FIX)
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the checkpoint file {file} is missing or cut off ({error})", FIX) from error
