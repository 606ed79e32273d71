"""Reading checkpoints from disk or hub, with an error wherever a library would silently load wrong weights.

`open_checkpoint` checks the files before any library reads them; `read_weights` loads strictly; `read_tokenizer` refuses an
empty or foreign vocabulary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from interp.errors import UserError
from interp.files import not_allowed, read_json
from interp.models.building import BUILDING, quiet
from interp.models.gguf import cached_gguf, gguf_note, is_gguf
from interp.models.named import NAMED, named_base
from interp.models.offloading import Placement, parameters_of
from interp.models.overlays import apply_difference, is_difference, merge_adapter, overlay_in

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Errors that transformers raises for a wrong config.json, and those of reading a file.
LOADING_FAULTS = (
    OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ArithmeticError, SafetensorError, StrictDataclassError,
)  # fmt: skip
IGNORED_TENSORS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Checkpoint:
    """The origin of weights: a local folder, a hub id, or a folder with a LoRA adapter or a difference over a base.

    Of a GGUF file, `folder` is that of its conversion in the cache, and `file` the file itself.
    """

    source: str
    folder: Path | None
    adapter_base: str | None = None
    file: Path | None = None

    @property
    def label(self) -> str:
        """The folder's name, that of a GGUF file without its ending, or the hub id."""
        if self.file is not None:
            return self.file.stem
        return self.folder.name if self.folder else self.source

    def weight_files(self) -> list[Path]:
        """The safetensors files of the folder, sorted; none for a hub id."""
        return sorted(self.folder.glob("*.safetensors")) if self.folder else []

    def stored_dtypes(self) -> set[str]:
        """The dtypes of the floating-point tensors on disk."""
        dtypes: set[str] = set()
        for file in self.weight_files():
            with safe_open(file, framework="pt") as tensors:
                dtypes |= {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        return {name for name in dtypes if name.startswith(("F", "BF"))}

    def describe(self) -> dict[str, Any]:
        """Path, stored dtypes, base of an adapter, the SHA-256 of every weight file, and the quantisation of a GGUF file."""
        hashes: dict[str, str] = {}
        for file in self.weight_files():
            with file.open("rb") as stream:
                hashes[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
        note = gguf_note(self.folder) if self.folder is not None else None
        return {
            "path": str(self.file or self.source), "files": hashes, "stored_dtype": sorted(self.stored_dtypes()),
            "adapter_base": self.adapter_base, **({"gguf": note} if note is not None else {}),
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
    folder = named_base(text) if text in NAMED else Path(text).expanduser()
    if is_gguf(folder):
        cached = cached_gguf(folder)
        _check_folder(cached)
        return Checkpoint(str(cached), cached, file=folder)
    if folder.is_file():
        fix = (
            "convert it first: bypass convert FILE.pt --like MODEL"
            if folder.suffix in {".pt", ".bin", ".pth"}
            else "give the folder that holds it"
        )
        raise UserError(f"{folder} is a file, and a model is a folder with config.json and safetensors", fix)
    if not folder.is_dir():
        if folder.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
            raise UserError(f"there is no folder {folder}", "give an existing folder or a hub id")
        return Checkpoint(text, None)
    overlay = overlay_in(folder, base)
    if overlay is not None:
        check_safetensors(overlay.weights)
        return Checkpoint(str(folder), folder, overlay.base)
    _check_folder(folder)
    return Checkpoint(str(folder), folder)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json", "give a folder that save_pretrained wrote")
    read_json(folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [file.name for pattern in PICKLES for file in folder.glob(pattern)]
        if pickles:
            raise UserError(f"{folder} holds only pickled weights ({', '.join(pickles)})", "convert them: bypass convert FILE --like MODEL")
        raise UserError(f"{folder} holds no weights", "add model.safetensors, as save_pretrained writes it")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        indexed = set(read_json(index).get("weight_map", {}).values())
        missing = sorted(indexed - {file.name for file in files})
        if missing:
            raise UserError(f"{folder} lacks weight files that its index names: {', '.join(missing)}", "download them again")
    for file in files:
        check_safetensors(file)


def check_safetensors(file: Path) -> None:
    """Raise `UserError` where a safetensors file may not be read, is a Git LFS pointer, truncated or corrupt."""
    try:
        with file.open("rb") as stream:
            start = stream.read(40)
    except PermissionError as error:
        raise not_allowed(file) from error
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{file} is a Git LFS pointer, not the weights", "run git lfs pull in that repository")
    try:
        with safe_open(file, framework="pt") as tensors:
            if not list(tensors.keys()):
                raise UserError(f"{file} holds no tensors", "save the model again")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is corrupt or truncated ({error})", "copy or download it again") from error


def read_weights(checkpoint: Checkpoint, dtype: torch.dtype, placement: Placement | None = None) -> PreTrainedModel:
    """The Hugging Face model, loaded strictly in the given dtype.

    Raises `UserError` for missing, foreign, mismatched or non-finite tensors.
    """
    device_options = {} if placement is None else placement.arguments()
    if checkpoint.adapter_base is not None:
        if placement is not None:
            problem = f"{checkpoint.source} holds what changes a base, and that cannot be spread over devices"
            raise UserError(problem, "save the whole tuned model and load that")
        assert checkpoint.folder is not None
        base = open_checkpoint(checkpoint.adapter_base)
        if is_difference(checkpoint.folder):
            return apply_difference(read_weights(base, torch.float32), checkpoint.folder, checkpoint.adapter_base).to(dtype)
        return merge_adapter(read_weights(base, dtype), checkpoint.folder, checkpoint.adapter_base)
    try:
        with BUILDING, quiet():
            config = AutoConfig.from_pretrained(checkpoint.source, local_files_only=checkpoint.folder is not None)
            hf, report = AutoModelForCausalLM.from_pretrained(
                checkpoint.source, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True,
                local_files_only=checkpoint.folder is not None, **device_options,
            )  # fmt: skip
    except LOADING_FAULTS as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if checkpoint.folder is None:
            raise UserError(
                f"the hub id {checkpoint.source!r} could not be loaded ({first})",
                "check the id and the network, or download the model and give its folder",
            ) from error
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


def read_tokenizer(checkpoint: Checkpoint, hf: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer; raises `UserError` where it is absent, empty, too large or not this model's."""
    source, local = checkpoint.source, checkpoint.folder is not None
    if checkpoint.folder is not None and not any((checkpoint.folder / name).is_file() for name in TOKENIZER_FILES):
        if checkpoint.adapter_base is None:
            raise UserError(f"{source} has no tokenizer files ({', '.join(TOKENIZER_FILES)})", "copy them from the model it was tuned from")
        parent = open_checkpoint(checkpoint.adapter_base)
        source, local = parent.source, parent.folder is not None
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
    except Exception as error:  # tokenizers raises bare Exception for a corrupt file
        raise UserError(f"the tokenizer in {source} could not be read ({str(error).splitlines()[0]})", "restore its files") from error
    check_tokenizer(tokenizer, hf, f"the tokenizer in {source}")
    size, vocabulary = len(tokenizer), hf.get_input_embeddings().weight.shape[0]
    if size < 0.9 * vocabulary:
        raise UserError(
            f"the tokenizer in {source} has {size} entries, the model {vocabulary}: it belongs to another model",
            "use its own, or pass tokenizer=",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, hf: PreTrainedModel, what: str = "the tokenizer") -> None:
    """Raise `UserError` for a tokenizer that is empty or has more entries than the model."""
    size, vocabulary = len(tokenizer), hf.get_input_embeddings().weight.shape[0]
    ids = tokenizer("hello world", add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.decode(ids).strip().lower() != "hello world":
        raise UserError(f"{what} is empty: it reads 'hello world' as {len(ids)} tokens and cannot give it back", "restore its files")
    if size > vocabulary:
        raise UserError(
            f"{what} has {size} entries, but the model only {vocabulary}: it belongs to another model",
            "use the model's own",
        )
