"""Checks of a model folder's files before any library reads them: which weights would be read, and that nothing in it is code.

A library that meets code in a folder asks whether to run it, or runs it; here such a folder is refused, so that loading a model
never runs anything that came with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING

from interp.errors import UserError
from interp.files import not_allowed, read_json

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OVERLAYS = {"adapter_config.json": "adapter_model.safetensors", "difference.json": "difference.safetensors"}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that loading a folder reads, sorted: an adapter's or a difference's, one file, or the shards of an index."""
    for note, weights in OVERLAYS.items():
        if (folder / note).is_file():
            return [folder / weights] if (folder / weights).is_file() else []
    if (folder / INDEX).is_file():
        return [folder / name for name in _shards(folder) if (folder / name).is_file()]
    return [folder / WHOLE] if (folder / WHOLE).is_file() else []


def is_complete(folder: Path) -> bool:
    """Whether a folder holds every file that it says it has: the weights of an adapter, or config, all weights and a tokenizer."""
    if (folder / "adapter_config.json").is_file():
        return bool(weight_files(folder))
    shards = _shards(folder) if (folder / INDEX).is_file() else [WHOLE]
    needed = ["config.json", *shards]
    return all((folder / name).is_file() for name in needed) and any((folder / name).is_file() for name in TOKENIZER_FILES)


def check_folder(folder: Path) -> None:
    """Raise `UserError` where a whole model's folder lacks files, or holds pickles alone, code, quantised or ambiguous weights."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json", "give a folder that save_pretrained wrote")
    check_no_code(folder)
    config = read_json(folder / "config.json")
    _check_precision(folder, config)
    _check_weight_files(folder)
    for file in weight_files(folder):
        check_safetensors(file)


def check_no_code(folder: Path) -> None:
    """Raise `UserError` where a folder's settings name Python code to load it with, its own or the hub's; nothing is run."""
    for name in ("config.json", "tokenizer_config.json", "adapter_config.json"):
        settings = read_json(folder / name) if (folder / name).is_file() else {}
        if settings.get("auto_map"):
            known = str(settings.get("model_type")) in CONFIG_MAPPING or name != "config.json"
            raise UserError(
                f"{folder} brings code of its own ({name} names it under auto_map), and code that comes with a model is never run",
                f"remove auto_map from {name}: transformers has code for it"
                if known
                else "give a model whose architecture is part of transformers",
            )
        for key, value in _settings_within(settings):
            if key.lstrip("_").endswith(("attn_implementation", "experts_implementation")) and "/" in str(value):
                problem = f"{folder} asks for code of the hub ({key} in {name} is {value!r}), and code that comes with a model is never run"
                raise UserError(problem, f"remove {key} from {name}")
        # peft imports the module that this setting names.
        if name == "adapter_config.json" and settings.get("megatron_config"):
            problem = f"{folder} names a module to import (megatron_core in {name}), and code that comes with a model is never run"
            raise UserError(problem, f"remove megatron_config from {name}")


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


def _check_precision(folder: Path, config: dict[str, Any]) -> None:
    for key in ("quantization_config", "compression_config"):
        settings = config.get(key)
        if settings:
            named = settings if isinstance(settings, dict) else {}
            method = named.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in named else "a method that is not named")
            bits = named.get("bits") or (4 if named.get("load_in_4bit") else 8 if named.get("load_in_8bit") else None)
            raise UserError(
                f"the weights in {folder} are quantised ({method}{f', {bits} bit' if bits else ''}), and analyses need them whole",
                "give the model that they were made from, in 16 or 32 bit",
            )


def _check_weight_files(folder: Path) -> None:
    present = sorted(file.name for file in folder.glob("*.safetensors"))
    if (folder / WHOLE).is_file() and (folder / INDEX).is_file():
        raise UserError(
            f"{folder} holds both {WHOLE} and {INDEX} with its shards, and they may be different weights",
            "remove the one that does not belong there: the index, or the single file",
        )
    if not present:
        pickles = [file.name for pattern in PICKLES for file in folder.glob(pattern)]
        if pickles:
            raise UserError(f"{folder} holds only pickled weights ({', '.join(pickles)})", "convert them: bypass convert FILE --like MODEL")
        raise UserError(f"{folder} holds no weights", f"add {WHOLE}, as save_pretrained writes it")
    if (folder / INDEX).is_file():
        missing = [name for name in _shards(folder) if name not in present]
        if missing:
            raise UserError(f"{folder} lacks weight files that its index names: {', '.join(missing)}", "download them again")
    elif not (folder / WHOLE).is_file():
        fix = f"add {INDEX}, which says what is in each" if len(present) > 1 else f"rename it to {WHOLE} if it is the whole model"
        raise UserError(f"{folder} has no {WHOLE}, only {', '.join(present[:3])}", fix)


def _shards(folder: Path) -> list[str]:
    """The names of the files that the index of a folder's shards names, sorted; raises `UserError` for one outside of the folder."""
    named = read_json(folder / INDEX).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise UserError(f"{folder / INDEX} names no weights", "download it again")
    shards = sorted({str(name) for name in named.values()})
    outside = [name for name in shards if Path(name).name != name]
    if outside:
        raise UserError(f"{folder / INDEX} names a file outside of its folder: {outside[0]}", "download it again")
    return shards


def _settings_within(settings: Any) -> Iterator[tuple[str, Any]]:
    """Every setting by name, those of nested configurations too."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield str(key), value
            yield from _settings_within(value)
