"""Whether the base that is given for an adapter is the one that it was trained on, as its configuration names it.

The two are the same where they are one folder or one hub id; else, where the named one is on this machine too, where their stored
tensors are equal (those of adapters, and of their bases, down the chain). A folder that was moved or renamed is therefore no other
base. Where the named one is not here, only names are left to compare: two hub ids that differ are refused; anything else is a
`Notice`, because a path of another machine says nothing.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch
from safetensors import safe_open

from interp.errors import Notice, UserError
from interp.models.checkpoints import IGNORED_TENSORS, Checkpoint, open_checkpoint
from interp.models.gguf import is_gguf
from interp.models.hub import snapshot
from interp.models.named import NAMED, base_file, installed
from interp.models.overlays import ADAPTER_NOTE, named_base

# The names of quantised copies, on which adapters are trained to save memory; the merged model is made from the original.
QUANTISED = re.compile(r"[-_](unsloth[-_])?(bnb[-_]4bit|4bit|gptq|awq|int4|int8)\b.*$", re.IGNORECASE)
# Prefixes that some files of one model have and others do not.
PREFIXES = ("transformer.", "model.")


def check_base(checkpoint: Checkpoint, base: str | Path) -> None:
    """Raise `UserError` where an adapter was made for another model than `base`; warn with a `Notice` where that cannot be told."""
    named = named_base(checkpoint.folder)
    if named is None or checkpoint.adapter_base is None or _same_name(named, str(base)):
        return
    base_checkpoint = open_checkpoint(base)
    place = _place(named)
    if place is not None and place.resolve() == (base_checkpoint.file or base_checkpoint.folder).resolve():
        return
    try:
        other = None if place is None else open_checkpoint(place)
    except UserError:  # one that is quantised, say, or pickled
        other = None
    if other is None:
        _check_names(checkpoint, base_checkpoint, named)
    elif not _same_weights(other, base_checkpoint):
        raise _another(checkpoint, base_checkpoint, named)


def _check_names(checkpoint: Checkpoint, base_checkpoint: Checkpoint, named: str) -> None:
    """The comparison that is left where the named base cannot be read on this machine."""
    adapted_too = base_checkpoint.adapter_base is not None and _same_name(base_checkpoint.adapter_base, named)
    tail, own = (QUANTISED.sub("", Path(name).name).lower() for name in (named, base_checkpoint.source))
    looks_like_a_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", named) is not None
    if adapted_too or (base_checkpoint.on_hub and looks_like_a_hub_id and tail != own):
        raise _another(checkpoint, base_checkpoint, named)
    unread = f"the adapter {checkpoint.source} was made for {named}, which cannot be read here"
    warnings.warn(f"{unread}: that {base_checkpoint.source} is the same model is not checked", Notice, stacklevel=4)


def _another(checkpoint: Checkpoint, base_checkpoint: Checkpoint, named: str) -> UserError:
    return UserError(
        f"the adapter {checkpoint.source} was made for {named}, and not for {base_checkpoint.source}",
        f"give {named} as the base; or, if it was trained on {base_checkpoint.source}, "
        f"write that under base_model_name_or_path in {checkpoint.folder / ADAPTER_NOTE}",
    )


def _same_name(first: str, second: str) -> bool:
    one, other = (str(Path(text.strip()).expanduser()) for text in (first, second))
    return one == other


def _place(source: str) -> Path | None:
    """The folder or GGUF file on this machine of a path, a hub id or a named model, or None; nothing is downloaded."""
    if source in NAMED:
        return base_file(source) if installed(source) else None
    path = Path(source).expanduser()
    return path if path.is_dir() or is_gguf(path) else snapshot(source)


def _same_weights(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether two checkpoints store the same tensors, and adapters the same over the same base."""
    if (first.adapter_base is None) != (second.adapter_base is None):
        return False
    files = [_tensor_files(checkpoint) for checkpoint in (first, second)]
    # A tied unembedding is stored by some and left out by others.
    if {name for name in files[0].keys() ^ files[1].keys() if not name.endswith("lm_head.weight")}:
        return False
    if not all(_same_tensor(*(place[name] for place in files)) for name in sorted(files[0].keys() & files[1].keys())):
        return False
    if first.adapter_base is None or second.adapter_base is None or _same_name(first.adapter_base, second.adapter_base):
        return True
    places = [_place(base) for base in (first.adapter_base, second.adapter_base)]
    return None not in places and _same_weights(open_checkpoint(first.adapter_base), open_checkpoint(second.adapter_base))


def _tensor_files(checkpoint: Checkpoint) -> dict[str, tuple[Path, str]]:
    """The file and the stored name of every tensor, by its name without the prefix that not every file has."""
    places = {}
    for file in checkpoint.weight_files():
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if not name.endswith(IGNORED_TENSORS):
                    short = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
                    places[short] = (file, name)
    return places


def _same_tensor(first: tuple[Path, str], second: tuple[Path, str]) -> bool:
    """Whether two stored tensors are equal, in the coarser of their precisions."""
    values = []
    for file, name in (first, second):
        with safe_open(file, framework="pt") as tensors:
            values.append(tensors.get_tensor(name))
    one, other = values
    if one.shape != other.shape or one.is_floating_point() != other.is_floating_point():
        return False
    coarser = min((one.dtype, other.dtype), key=lambda dtype: (dtype.itemsize, dtype == torch.float16))
    return torch.equal(one.to(coarser), other.to(coarser))
