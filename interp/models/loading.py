"""`load_model`: a model from a folder, a hub id or memory, with the right weights or an error that says why not.

Libraries load a missing tensor as random numbers, a folder without a tokenizer as an empty one, and a bf16 checkpoint as a bf16
model. Each of these would silently change conclusions, so each is an error here or is set explicitly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.errors import UserError
from interp.files import read_json
from interp.models.architectures import check_model_type
from interp.models.checkpoints import Checkpoint, open_checkpoint, read_weights
from interp.models.lineage import check_base
from interp.models.model import Model
from interp.models.modes import freeze
from interp.models.offloading import Placement
from interp.models.tokenizer import check_tokenizer, read_tokenizer


def load_model(
    source: str | Path | PreTrainedModel, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu",
    base: str | Path | None = None, tokenizer: PreTrainedTokenizerBase | None = None, name: str | None = None, device_map: Any = None,
    offload_folder: str | Path | None = None, bos: bool | None = None,
) -> Model:  # fmt: skip
    """Load one model from a local folder (safetensors), a PEFT LoRA folder, or a Hugging Face hub id, or wrap one that is in memory.

    Args:
        source: the folder or id; or a Hugging Face model, which is then used as it is, in its own dtype and on its own device, and
            needs `tokenizer`.
        dtype: what the weights are computed in, whatever they are stored in: float32 unless given. For a model in memory, its own.
        base: the model that a LoRA folder adapts, where the one that its configuration names lies elsewhere now. Another model
            than that is refused where it can be told (`interp.models.lineage`).
        tokenizer: to be used in place of the folder's own.
        device_map: for a model larger than one device: `auto`, or a mapping from module names to devices, `cpu` or `disk`, as
            accelerate takes it (in place of `device`). Reading and edits work as ever; a model with offloaded layers must not be
            used by several threads at once.
        bos: whether texts begin with the BOS token: unless given, where the tokenizer adds one by default.
        offload_folder: where layers go that `device_map` puts on disk.

    Raises:
        UserError: anything missing, mismatched, foreign, truncated or not finite, with its fix.
    """
    if isinstance(source, PreTrainedModel):
        unused = {"base": base, "device_map": device_map, "offload_folder": offload_folder}
        return _wrapped(source, dtype, device, tokenizer, name, bos, [key for key, value in unused.items() if value is not None])
    checkpoint = open_checkpoint(source, base)
    _check_type(checkpoint)
    if base is not None:
        check_base(checkpoint, base)
    if device_map is not None and torch.device(device).type != "cpu":
        raise UserError(f"both device ({device}) and device_map are given", "give one of them")
    placement = None if device_map is None else Placement(device_map, None if offload_folder is None else Path(offload_folder))
    hf = read_weights(checkpoint, dtype or torch.float32, placement)
    if tokenizer is not None:
        check_tokenizer(tokenizer, hf)
    words = tokenizer if tokenizer is not None else read_tokenizer(checkpoint, hf)
    return Model(freeze(hf.to(device) if placement is None else hf), words, name or checkpoint.label, checkpoint, bos)


def _check_type(checkpoint: Checkpoint) -> None:
    """Raise `UserError` for a folder whose model is not of a type that loads, before its weights are read."""
    if checkpoint.adapter_base is None:
        model_type = read_json(checkpoint.folder / "config.json").get("model_type")
        # transformers has its own rules for a file that names no type; `Model` checks what they lead to.
        if model_type is not None:
            check_model_type(model_type, checkpoint.label)


def _wrapped(
    hf: PreTrainedModel, dtype: torch.dtype | None, device: str | torch.device, tokenizer: PreTrainedTokenizerBase | None, name: str | None,
    bos: bool | None, unused: Sequence[str],
) -> Model:  # fmt: skip
    """The `Model` around a Hugging Face model in memory; raises `UserError` for arguments that ask for another one."""
    if tokenizer is None:
        raise UserError("a model in memory was given without its tokenizer", "give it as tokenizer=")
    first = next(hf.parameters())
    # The default device does not count as a request.
    if torch.device(device).type not in ("cpu", first.device.type):
        unused = ["device", *unused]
    if dtype not in (None, first.dtype):
        unused = ["dtype", *unused]
    if unused:
        raise UserError(f"{', '.join(unused)} cannot be given for a model in memory", "it is used as it is; change it first, with model.to")
    check_tokenizer(tokenizer, hf)
    return Model(hf, tokenizer, name or str(hf.config.name_or_path or type(hf).__name__), bos=bos)
