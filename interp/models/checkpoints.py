"""Reading checkpoints from disk or hub, with an error wherever a library would silently load wrong weights.

`open_checkpoint` checks the files before any library reads them; `read_weights` loads strictly. Files of a hub id are looked up in
the local cache or downloaded into it, and from there on the folder that holds them is treated like any other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from interp.errors import UserError
from interp.files import not_allowed
from interp.models.folders import check_folder, check_no_code, check_safetensors, weight_files
from interp.models.gguf import cached_gguf, gguf_note, is_gguf
from interp.models.hub import hub_folder
from interp.models.libraries import listening
from interp.models.named import NAMED, base_file
from interp.models.offloading import Placement, parameters_of
from interp.models.overlays import apply_difference, is_difference, merge_adapter, overlay_in
from interp.models.tying import record_tying

# Errors that transformers raises for a wrong config.json, and those of reading a file.
LOADING_FAULTS = (
    OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ArithmeticError, SafetensorError, StrictDataclassError,
)  # fmt: skip
IGNORED_TENSORS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Checkpoint:
    """The origin of weights: a local folder or a hub id, where its files lie, and the base of a LoRA adapter or a difference.

    `folder` is the folder itself, or the snapshot of a hub id in the local cache; `source` is the path or the id as it was given.
    Of a GGUF file, `folder` is that of its conversion in the cache, and `file` the file itself.
    """

    source: str
    folder: Path
    adapter_base: str | None = None
    on_hub: bool = False
    file: Path | None = None

    @property
    def label(self) -> str:
        """The folder's name, that of a GGUF file without its ending, or the hub id."""
        if self.file is not None:
            return self.file.stem
        return self.source if self.on_hub else self.folder.name

    def weight_files(self) -> list[Path]:
        """The safetensors files that loading reads, sorted; for an adapter or a difference its own."""
        return weight_files(self.folder)

    def stored_dtypes(self) -> set[str]:
        """The dtypes of the floating-point tensors on disk; of a converted GGUF file the types that its tensors were stored in."""
        note = gguf_note(self.folder)
        if note is not None:
            return set(note["tensors"])
        dtypes: set[str] = set()
        for file in self.weight_files():
            with safe_open(file, framework="pt") as tensors:
                dtypes |= {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        return {name for name in dtypes if name.startswith(("F", "BF"))}

    def describe(self) -> dict[str, Any]:
        """Path or hub id with the commit, stored dtypes, base of an adapter, SHA-256 of every weight file, quantisation of a GGUF file."""
        hashes: dict[str, str] = {}
        for file in self.weight_files():
            with file.open("rb") as stream:
                hashes[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
        origin = {"path": str(self.file or self.source), **({"commit": self.folder.name} if self.on_hub else {})}
        note = gguf_note(self.folder)
        return {
            **origin, "files": hashes, "stored_dtype": sorted(self.stored_dtypes()), "adapter_base": self.adapter_base,
            **({"gguf": note} if note is not None else {}),
        }  # fmt: skip


def open_checkpoint(source: str | Path, base: str | Path | None = None) -> Checkpoint:
    """The checkpoint at `source`, after checking its files.

    Raises `UserError` where there is none, or where files are missing, truncated, pickled or may not be read.
    """
    try:
        return _open(source, base)
    except PermissionError as error:
        # This is a folder that may not be entered; a file that may not be read is caught where it is opened.
        raise not_allowed(error.filename or source) from error


def _open(source: str | Path, base: str | Path | None) -> Checkpoint:
    text = str(source).strip()
    if not text or "\0" in text:
        raise UserError(f"{text!r} names no model", "give a folder or a hub id such as openai-community/gpt2-medium")
    folder = base_file(text) if text in NAMED else Path(text).expanduser()
    if is_gguf(folder):
        cached = cached_gguf(folder)
        check_folder(cached)
        return Checkpoint(text, cached, file=folder)
    if folder.is_file():
        fix = (
            "convert it first: bypass convert FILE.pt --like MODEL"
            if folder.suffix in {".pt", ".bin", ".pth"}
            else "give the folder that holds it"
        )
        raise UserError(f"{folder} is a file, and a model is a folder with config.json and safetensors", fix)
    on_hub = not folder.is_dir()
    if on_hub:
        folder = hub_folder(text)
    source = text if on_hub else str(folder)
    check_no_code(folder)
    overlay = overlay_in(folder, base)
    if overlay is not None:
        check_safetensors(overlay.weights)
        return Checkpoint(source, folder, overlay.base, on_hub)
    check_folder(folder)
    return Checkpoint(source, folder, None, on_hub)


def read_weights(checkpoint: Checkpoint, dtype: torch.dtype, placement: Placement | None = None) -> PreTrainedModel:
    """The Hugging Face model, loaded strictly in the given dtype.

    Raises `UserError` for missing, foreign, mismatched or non-finite tensors.
    """
    device_options = {} if placement is None else placement.arguments()
    if checkpoint.adapter_base is not None:
        if placement is not None:
            problem = f"{checkpoint.source} holds what changes a base, and that cannot be spread over devices"
            raise UserError(problem, "save the whole tuned model and load that")
        base = open_checkpoint(checkpoint.adapter_base)
        if is_difference(checkpoint.folder):
            return apply_difference(read_weights(base, torch.float32), checkpoint.folder, checkpoint.adapter_base).to(dtype)
        return merge_adapter(read_weights(base, dtype), checkpoint.folder, checkpoint.adapter_base)
    try:
        with listening(checkpoint.source):
            config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
            hf, report = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True,
                local_files_only=True, trust_remote_code=False, **device_options,
            )  # fmt: skip
    except LOADING_FAULTS as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{checkpoint.source} could not be loaded ({first})", "check config.json against the weights") from error
    _check_report(checkpoint, report)
    tensors = hf.state_dict().items() if placement is None else parameters_of(hf)
    broken = [name for name, tensor in tensors if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())]
    if broken:
        raise UserError(
            f"{checkpoint.source}: {len(broken)} tensors hold NaN or infinity, first {broken[0]}",
            "use a checkpoint from before the training diverged",
        )
    hf.config._name_or_path = checkpoint.source
    record_tying(hf)
    return hf


def _check_report(checkpoint: Checkpoint, report: dict[str, Any]) -> None:
    where = checkpoint.source
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{where} lacks {len(missing)} tensors of its architecture, first {missing[0]}",
            "save the whole model again; they would be random",
        )
    mismatched = sorted(str(item[0]) for item in report["mismatched_keys"])
    if mismatched:
        raise UserError(
            f"{where}: {len(mismatched)} tensors have another shape than config.json says, first {mismatched[0]}", "correct config.json"
        )
    foreign = sorted(key for key in report["unexpected_keys"] if not key.endswith(IGNORED_TENSORS))
    if foreign:
        raise UserError(
            f"{where} holds {len(foreign)} tensors that its architecture does not have, first {foreign[0]}",
            "correct config.json or convert it",
        )
