"""A tuned model stored as its difference from the base, in at most half of the bytes and with exactly the same weights.

Tuning changes weights by less than a 16-bit copy of them resolves, but the changes themselves fit into 16 bits: bfloat16 keeps
three digits of a number of any size. The changes are rounded once, when the model is written; from then on the tuned model is
defined as `base + difference`, added in single precision when it is loaded. The digests of both sides are stored with the
changes, so that a difference over another base, or a sum that comes out otherwise, is an error.
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
    """The changes of each parameter from `base` to `tuned`, rounded to `dtype`; `tuned` is set to `base` plus these changes.

    Parameters that did not change are left out. Raises `UserError` where the two are not of one shape or not in single precision.
    """
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    if {name: p.shape for name, p in before.items()} != {name: p.shape for name, p in after.items()}:
        raise UserError("base and tuned have parameters of different names or shapes", "give two checkpoints of one model")
    if {p.dtype for p in (*before.values(), *after.values())} != {torch.float32}:
        raise UserError("a difference is taken between weights in float32", "load both sides with dtype=torch.float32")
    changes = {}
    for name, parameter in after.items():
        change = (parameter - before[name].to(parameter.device)).to(dtype)
        if bool(change.any()):
            changes[name] = change.cpu().contiguous()
        parameter.copy_(before[name] + change.float())
    return changes


def save_difference(changes: dict[str, Tensor], folder: Path, *, base: str, base_digest: str, digest: str) -> None:
    """Write the changes into a folder that holds the tuned model's config.json, in place of its weights.

    `base` is the model to add the changes to when none is named: a hub id, or a path seen from the folder. The digests are those
    of `interp.models.offloading.weights_digest` in float32. The note is written last: without it the folder is no model at all.
    """
    # Most readers refuse a safetensors file without tensors.
    save_file(changes or {"nothing": torch.zeros(0)}, folder / WEIGHTS, metadata={"format": "pt"})
    write_note(folder, {"format": FORMAT, "base": base, "base_digest": base_digest, "digest": digest})


def write_note(folder: Path, note: dict[str, Any]) -> None:
    """Replace the note of a difference."""
    write_text(folder / NOTE, json.dumps(note, indent=1) + "\n")


@torch.no_grad()
def add_difference(hf: PreTrainedModel, folder: Path) -> None:
    """Turn a base in float32 into the tuned model, in place; raises `UserError` for a change whose parameter the base lacks."""
    parameters = dict(hf.named_parameters())
    changes = {name: tensor for name, tensor in load_file(folder / WEIGHTS).items() if tensor.numel()}
    for name, change in changes.items():
        if name not in parameters or parameters[name].shape != change.shape:
            expected = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise UserError(f"{folder / WEIGHTS} changes {name} of shape {tuple(change.shape)}, the base has {expected}", FIX)
        parameters[name].add_(change.float())
