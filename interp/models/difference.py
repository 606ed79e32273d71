"""A tuned model stored as its difference from the base: half of the bytes or fewer, and exactly the same weights.

Tuning moves weights by less than a 16-bit copy of them can hold, but the changes themselves fit: a bfloat16 number keeps
three digits of however small a change. So the changes are rounded once, when the model is written, and what was written *is*
the model from then on: `base + difference`, added in single precision wherever it is loaded. The hashes of both sides stand
beside the changes, so a difference laid over another base, or one that comes out otherwise, is an error and not a model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from interp.errors import UserError
from interp.files import write_text

NOTE, WEIGHTS = "difference.json", "difference.safetensors"
FORMAT = "bypass-difference"
FIX = "give the base that it was written with, or write the difference again"


@torch.no_grad()
def take_difference(base: PreTrainedModel, tuned: PreTrainedModel, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """What tuning changed, parameter by parameter, rounded to `dtype`; `tuned` becomes `base` plus that.

    Parameters that did not change are left out. Raises `UserError` where the two are not of one shape or not in single precision.
    """
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    if {name: p.shape for name, p in before.items()} != {name: p.shape for name, p in after.items()}:
        raise UserError("base and tuned have parameters of different names or shapes", "give two checkpoints of one model")
    if {p.dtype for p in (*before.values(), *after.values())} != {torch.float32}:
        raise UserError("a difference is taken between weights in float32", "load both sides with dtype=torch.float32")
    found = {}
    for name, parameter in after.items():
        change = (parameter - before[name].to(parameter.device)).to(dtype)
        if bool(change.any()):
            found[name] = change.cpu().contiguous()
        parameter.copy_(before[name] + change.float())
    return found


def save_difference(changes: dict[str, Tensor], folder: Path, *, base: str, base_digest: str, digest: str) -> None:
    """Write the changes into a folder that holds the tuned model's config.json, in place of its weights.

    `base` is where the base is looked for when none is named: a hub id, or a path seen from the folder. The digests are those
    of `interp.models.checkpoints.weights_digest` in float32. The note is written last: without it the folder is no model at all.
    """
    # A file of no tensors is no safetensors file to most readers.
    save_file(changes or {"nothing": torch.zeros(0)}, folder / WEIGHTS, metadata={"format": "pt"})
    write_note(folder, {"format": FORMAT, "base": base, "base_digest": base_digest, "digest": digest})


def write_note(folder: Path, note: dict[str, Any]) -> None:
    """Replace the note of a difference."""
    write_text(folder / NOTE, json.dumps(note, indent=1) + "\n")


@torch.no_grad()
def add_difference(hf: PreTrainedModel, folder: Path) -> None:
    """Turn a base in float32 into the tuned model, in place; raises `UserError` for changes that find no place."""
    parameters = dict(hf.named_parameters())
    changes = {name: tensor for name, tensor in load_file(folder / WEIGHTS).items() if tensor.numel()}
    for name, change in changes.items():
        if name not in parameters or parameters[name].shape != change.shape:
            expected = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise UserError(f"{folder / WEIGHTS} changes {name} of shape {tuple(change.shape)}, the base has {expected}", FIX)
        parameters[name].add_(change.float())
