"""Folders that turn a base model into the tuned one: a LoRA adapter, or a difference of weights.

Such a folder holds no whole model. `overlay_in` finds it and the base that it belongs to; `merge_adapter` and
`apply_difference` turn the loaded base into the tuned model, and raise an error where they do not fit it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedModel

from interp.errors import UserError
from interp.files import read_json
from interp.models.difference import FIX, FORMAT, NOTE, WEIGHTS, add_difference
from interp.models.offloading import weights_digest

ADAPTER_NOTE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Overlay:
    """The weights file of an adapter or a difference, and its base: a folder or a hub id."""

    weights: Path
    base: str


def overlay_in(folder: Path, base: str | Path | None) -> Overlay | None:
    """The overlay that a folder holds, over `base` or else over the model that it names; None for any other folder.

    Raises `UserError` where it names no base, or files are missing or foreign.
    """
    if (folder / ADAPTER_NOTE).is_file():
        return _adapter_in(folder, base)
    return _difference_in(folder, base) if is_difference(folder) else None


def is_difference(folder: Path) -> bool:
    """Whether the folder holds a difference of weights."""
    return (folder / NOTE).is_file()


def _adapter_in(folder: Path, base: str | Path | None) -> Overlay:
    named = read_json(folder / ADAPTER_NOTE).get("base_model_name_or_path")
    parent = base if base is not None else named
    if not parent:
        raise UserError(
            f"the LoRA folder {folder} does not say which model it adapts", "give base=, or load it as the tuned side of a pair"
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"the LoRA folder {folder} has no {ADAPTER_WEIGHTS}", "save the adapter with safe_serialization")
    return Overlay(folder / ADAPTER_WEIGHTS, str(parent))


def _difference_in(folder: Path, base: str | Path | None) -> Overlay:
    note = read_json(folder / NOTE)
    if note.get("format") != FORMAT or not {"base", "base_digest", "digest"} <= note.keys():
        raise UserError(f"{folder / NOTE} is no note of a difference", "write the difference again")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has a {NOTE} but no {WEIGHTS}", "copy the whole folder again")
    beside = folder / str(note["base"])
    parent = base if base is not None else beside if beside.is_dir() else note["base"]
    return Overlay(folder / WEIGHTS, str(parent))


def merge_adapter(hf: PreTrainedModel, folder: Path, base: str) -> PreTrainedModel:
    """The base model with a LoRA adapter merged into its weights; raises `UserError` where the adapter does not fit it."""
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise UserError("a LoRA folder needs the library peft", "pip install 'bypass-workbench[train]'") from error
    try:
        wrapped = PeftModel.from_pretrained(hf, str(folder))
        # peft only warns of adapter tensors without a parameter, and leaves parameters without a tensor at zero: no change.
        expected = set(get_peft_model_state_dict(wrapped))
        stored = {name for file in folder.glob("*.safetensors") for name in _tensor_names(file)}
        if expected != stored:
            odd = sorted(expected ^ stored)
            raise ValueError(f"{len(odd)} tensors are missing or foreign, first {odd[0]}")
        merged = wrapped.merge_and_unload()
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"the LoRA folder {folder} does not fit {base} ({str(error).splitlines()[0]})", "load it over its own base"
        ) from error
    if not all(bool(parameter.isfinite().all()) for parameter in merged.parameters()):
        raise UserError(f"the LoRA folder {folder} makes weights that are not finite", "use an earlier adapter")
    return merged


def apply_difference(hf: PreTrainedModel, folder: Path, base: str) -> PreTrainedModel:
    """The base model, in float32, turned in place into the tuned one; raises `UserError` where the difference is of another base."""
    note = read_json(folder / NOTE)
    if weights_digest(hf) != note["base_digest"]:
        raise UserError(f"the difference in {folder} was taken from another base than {base}", FIX)
    add_difference(hf, folder)
    if weights_digest(hf) != note["digest"]:
        raise UserError(f"the difference in {folder} does not give the weights that it was written from", "copy it again")
    return hf


def _tensor_names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())
