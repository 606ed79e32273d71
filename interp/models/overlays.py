"""Folders that turn a base model into the tuned one: a LoRA adapter, or a difference of weights.

Such a folder holds no whole model. `overlay_in` finds it and the base that it belongs to; `merge_adapter` and
`apply_difference` turn the loaded base into the tuned model, and raise an error where they do not fit it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.errors import UserError
from interp.files import read_json
from interp.models.difference import FIX, FORMAT, NOTE, WEIGHTS, add_difference
from interp.models.folders import INDEX, WHOLE
from interp.models.libraries import listening
from interp.models.offloading import weights_digest
from interp.models.tying import is_tied, retie

ADAPTER_NOTE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Pieces of peft's warnings that `merge_adapter` answers: it counts the tensors itself and compares logits.
CHECKED = ("Found missing adapter keys", "a tied layer is part of the adapter", "tied_target_modules", "no longer tied after merging")
# How many tokens the logits of a merged adapter are compared on, and by how much they may differ, as a share of the largest.
SAMPLE = 16
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


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


def named_base(folder: Path) -> str | None:
    """The model that the adapter in a folder says it was trained on, as written there; None for any other folder, or where it is silent."""
    if not (folder / ADAPTER_NOTE).is_file():
        return None
    named = read_json(folder / ADAPTER_NOTE).get("base_model_name_or_path")
    return str(named) if named else None


def _adapter_in(folder: Path, base: str | Path | None) -> Overlay:
    named = named_base(folder)
    parent = base if base is not None else named
    if not parent:
        raise UserError(
            f"the LoRA folder {folder} does not say which model it adapts", "give base=, or load it as the tuned side of a pair"
        )
    whole = [name for name in (WHOLE, INDEX) if (folder / name).is_file()]
    if whole:
        problem = f"{folder} holds both a LoRA adapter ({ADAPTER_NOTE}) and a whole model ({whole[0]})"
        raise UserError(problem, f"move one of them to a folder of its own: {ADAPTER_NOTE} with {ADAPTER_WEIGHTS}, or {whole[0]}")
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
    """The base model with an adapter merged into its weights, such that its logits are those of the adapter beside them.

    Where the adapter changes the embedding or the unembedding alone and the base has one matrix for both, the merged model has two.
    Raises `UserError` where the adapter does not fit the base, or cannot be merged without changing logits.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise UserError("a LoRA folder needs the library peft", "pip install 'bypass-workbench[train]'") from error
    settings = read_json(folder / ADAPTER_NOTE)
    stored, tied = set(_tensor_names(folder / ADAPTER_WEIGHTS)), is_tied(hf)
    try:
        with listening(f"the LoRA folder {folder}", checked=CHECKED):
            wrapped = PeftModel.from_pretrained(hf, str(folder)).eval()
            if not hasattr(wrapped.base_model, "merge_and_unload"):
                kind = settings.get("peft_type")
                raise UserError(f"the adapter in {folder} is of the type {kind}, which changes no weights", "give a LoRA adapter")
            # peft only warns of adapter tensors without a parameter, and leaves parameters without a tensor at zero: no change.
            # Embeddings may be stored beside what adapts them; left to find that out, it asks the hub for the base's configuration.
            names = [set(get_peft_model_state_dict(wrapped, save_embedding_layers=whole)) for whole in (False, True)]
            if stored not in names:
                odd = min((sorted(expected ^ stored) for expected in names), key=len)
                raise ValueError(f"{len(odd)} tensors are missing or foreign, first {odd[0]}")
            unmerged = _sample_logits(wrapped)
            _separate_embeddings(wrapped)
            merged: PreTrainedModel = wrapped.merge_and_unload()
    except UserError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, OSError) as error:
        saved = f"; its modules_to_save are {', '.join(settings['modules_to_save'])}" if settings.get("modules_to_save") else ""
        one = ", and the base has one matrix for embedding and unembedding" if saved and tied else ""
        problem = f"the LoRA folder {folder} does not fit {base} ({str(error).splitlines()[0]}{saved}{one})"
        raise UserError(problem, "load it over its own base") from error
    if tied:
        retie(merged)
    if not all(bool(parameter.isfinite().all()) for parameter in merged.parameters()):
        raise UserError(f"the LoRA folder {folder} makes weights that are not finite", "use an earlier adapter")
    gap = float((_sample_logits(merged) - unmerged).abs().max())
    if gap > TOLERANCE.get(merged.dtype, 5e-2) * (1 + float(unmerged.abs().max())):
        raise UserError(
            f"merging the LoRA folder {folder} changes its logits by {gap:.1e}",
            "merge it with the program that made it, and load the result",
        )
    return merged


@torch.no_grad()
def _sample_logits(hf: Any) -> Float[Tensor, "pos vocab"]:
    """The logits of a row of tokens that are spread over the vocabulary."""
    rows = hf.get_input_embeddings().weight.shape[0]
    device = next(hf.parameters()).device
    length = min(SAMPLE, getattr(hf.config, "max_position_embeddings", SAMPLE))
    ids = torch.linspace(0, rows - 1, length, device=device).long().unsqueeze(0)
    logits: Tensor = hf(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].float()
    return logits


@torch.no_grad()
def _separate_embeddings(wrapped: Any) -> None:
    """Give the unembedding below an adapter a matrix of its own where the adapter changes it or the embedding; no logit changes."""
    hf = wrapped.get_base_model()
    outer = hf.get_input_embeddings(), hf.get_output_embeddings()
    embedding, head = _adapted(outer[0]), _adapted(outer[1])
    weight = head.weight
    if (embedding, head) != outer and weight is embedding.weight and isinstance(weight, Tensor):
        head.weight = nn.Parameter(weight.clone(), requires_grad=False)
        hf.config.tie_word_embeddings = False


def _adapted(module: Any) -> Any:
    """The module that peft's wrappers adapt, or the module itself."""
    while inner := next((getattr(module, name) for name in ("base_layer", "original_module") if hasattr(module, name)), None):
        module = inner
    return module


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
