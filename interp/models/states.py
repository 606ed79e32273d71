"""Reading the tensors of a checkpoint of another tool by name, and matching their names to those of a model.

Trainers wrap a model in others, and each adds a name of its own: at the front, or before every block. What is taken off is what
makes the names those of the model, and an error says which prefixes were met.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from interp.errors import UserError
from interp.files import read_json
from interp.models.folders import check_safetensors

# What a checkpoint holds its weights under.
KEYS = ("state", "state_dict", "model", "module", "model_state_dict")
# The names of wrappers that stand anywhere in a tensor's name: torch.compile, FSDP, activation checkpointing, DDP and DeepSpeed.
INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "module")
# Prefixes that stand in front of every name: PEFT, TRL's models with a value head, preference trainers, Lightning.
FRONT = ("base_model.model.", "pretrained_model.", "policy.", "actor.", "transformer.", "model.")
# Tensors beside a language model's own that may be left out: the heads of PPO and of reward models.
VALUE_HEADS = ("v_head.", "value_head.")
# Names of the parts of a quantised matrix, and of adapters that were not merged.
QUANTISED = (
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".absmax",
    ".quant_map",
    ".SCB",
    ".weight_packed",
    ".weight_scale",
    ".weight_format",
)
UNMERGED = (".lora_", ".base_layer.", ".modules_to_save.", ".original_module.")
FOLDER_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")


def read_state(source: Path) -> dict[str, Tensor]:
    """The tensors of a file, of the shards that an index names, or of a folder with either, by the names they are stored under.

    Raises `UserError` for anything missing, damaged or quantised, and for pickles that hold more than weights.
    """
    if source.is_dir():
        present = [name for name in FOLDER_FILES if (source / name).is_file()]
        if not present:
            raise UserError(f"{source} holds none of {', '.join(FOLDER_FILES)}", "give the file itself")
        same = [name for name in present if name.removesuffix(".index.json") == present[0].removesuffix(".index.json")]
        if len(same) > 1:
            raise UserError(f"{source} holds both {' and '.join(same)}", "give the one that is meant, as a file")
        source = source / present[0]
    if not source.is_file():
        raise UserError(f"there is no file {source}", "give the path of a policy.pt")
    state = _shards(source) if source.name.endswith(".index.json") else _one_file(source)
    packed = next((name for name in state if name.endswith(QUANTISED) or ".quant_state" in name), None)
    if packed is not None:
        raise UserError(f"the weights in {source} are quantised ({packed})", "give the model that they were made from, in 16 or 32 bit")
    unmerged = next((name for name in state if any(piece in name for piece in UNMERGED)), None)
    if unmerged is not None:
        raise UserError(
            f"{source} holds an adapter that is not merged ({unmerged})", "merge it first (merge_and_unload), or load its own folder"
        )
    return state


def without_prefixes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state under the names of the model as far as taking prefixes off gives them, and the prefixes that were taken off."""
    met: list[str] = []
    names = {name: name for name in state}
    inside = {name: ".".join(part for part in name.split(".") if part not in INSIDE) for name in state}
    if _fit(inside.values(), expected) >= _fit(names.values(), expected) and inside != names:
        parts = Counter(part for name in state for part in set(name.split(".")) if part in INSIDE)
        met += [f"{part}." for part in INSIDE if parts[part]]
        names = inside
    while True:
        prefix = next((front for front in FRONT if _fit(_stripped(names, front).values(), expected) > _fit(names.values(), expected)), None)
        if prefix is None:
            break
        met.append(prefix)
        names = _stripped(names, prefix)
    # A backbone was saved alone: its names lack the model's own prefix.
    for front in FRONT:
        added = {old: name if name in expected else f"{front}{name}" for old, name in names.items()}
        if _fit(added.values(), expected) > _fit(names.values(), expected):
            names = added
    # A wrapper's name may hide another one.
    if (inner := next((f for f in FRONT if all(name.startswith(f) for name in names.values())), None)) and not _fit(
        names.values(), expected
    ):
        deeper, more = without_prefixes({name.removeprefix(inner): state[old] for old, name in names.items()}, expected)
        if _fit(deeper, expected):
            return deeper, [*met, inner, *more]
    return {name: state[old] for old, name in names.items()}, met


def odd_prefix(name: str, expected: Mapping[str, Tensor]) -> str:
    """What stands in front of a name of the model in a foreign name, or an empty string."""
    return next((name[: -len(known)] for known in sorted(expected, key=len, reverse=True) if name.endswith(f".{known}")), "")


def _stripped(names: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {old: name.removeprefix(prefix) for old, name in names.items()}


def _fit(names: Iterable[str], expected: Mapping[str, Tensor]) -> int:
    """How many of the names are names of the model."""
    return sum(name in expected for name in names)


def _shards(index: Path) -> dict[str, Tensor]:
    """All tensors of the files that an index names; raises `UserError` for one that is missing or lies outside of the folder."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise UserError(f"{index} names no weights", "download it again")
    files = sorted({str(name) for name in named.values()})
    outside = [name for name in files if Path(name).name != name]
    missing = [name for name in files if not (index.parent / name).is_file()]
    if outside or missing:
        raise UserError(f"{index.parent} lacks weight files that its index names: {', '.join(outside or missing)}", "download them again")
    state: dict[str, Tensor] = {}
    for name in files:
        state |= _one_file(index.parent / name)
    lacking = sorted(named.keys() - state.keys())
    if lacking:
        raise UserError(
            f"the shards in {index.parent} lack {len(lacking)} tensors of their index, first {lacking[0]}", "download them again"
        )
    return state


def _one_file(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        check_safetensors(file)
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is corrupt or truncated ({error})", "copy or download it again") from error
    return _unpickled(file)


def _unpickled(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{file} {_why_not_plain(error)}", _fix_of(error)) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{file} is not a checkpoint of torch, or is damaged: {reason}", "copy or download it again") from error
    state = content
    for key in KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            state = content[key]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        is_mapping = isinstance(content, Mapping)
        keys = f"the keys {', '.join(map(str, list(content)[:5]))}" if is_mapping else f"a {type(content).__name__}"
        raise UserError(
            f"{file} holds {keys}, and no weights by name under `state`", "save it as torch.save({'state': model.state_dict()}, FILE)"
        )
    return dict(state)


def _why_not_plain(error: Exception) -> str:
    text = str(error)
    if "numpy" in text or "_codecs" in text:
        return "holds numpy values beside the weights (trainers store their metrics so), and reading those could run code"
    if "Unsupported global" in text or "Unsupported class" in text or "GLOBAL" in text:
        return "holds objects beside the weights, and reading those could run code"
    return f"is not a checkpoint of torch, or is damaged: {text.strip().splitlines()[0] if text.strip() else type(error).__name__}"


def _fix_of(error: Exception) -> str:
    if "not a checkpoint" in _why_not_plain(error):
        return "copy or download it again"
    return (
        'where you trust the file, save its weights alone: python -c "import torch; '
        "torch.save({'state': torch.load('FILE', weights_only=False)['state']}, 'clean.pt')\""
    )
