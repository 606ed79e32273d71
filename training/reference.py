"""The reference's log-probabilities of every pair, computed once by TRL and kept on disk.

They depend on nothing but the reference and the token ids, so a file is named by the hash of both: a second seed, SFT on the
same pairs or a resumed run reuse it, and a changed model or pair does not. TRL's own cache is in the user's home and is named by
a fingerprint that differs between processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.files import replacing
from training.controls import COLUMNS

NAMES = ("ref_chosen_logps", "ref_rejected_logps")


def cache_key(reference: str, dataset: Dataset) -> str:
    """The name of the cached values: a hash of the reference's digest and of the token ids of every pair in order."""
    digest = hashlib.sha256(reference.encode())
    for row in dataset.select_columns(list(COLUMNS)):
        digest.update(json.dumps([row[name] for name in COLUMNS]).encode())
    return digest.hexdigest()[:32]


def with_reference(dataset: Dataset, reference: str, folder: Path, compute: Callable[[], tuple[Tensor, Tensor]]) -> Dataset:
    """The pairs with the columns `ref_chosen_logps` and `ref_rejected_logps`, read from `folder` or computed and kept there.

    Args:
        reference: digest of the reference model.
        compute: the summed log-probabilities in nats of all chosen and of all rejected sides, in order.
    """
    file = folder / f"{cache_key(reference, dataset)}.safetensors"
    values = _read(file, len(dataset))
    if values is None:
        values = dict(zip(NAMES, (side.detach().float().cpu().contiguous() for side in compute()), strict=True))
        with replacing(file, shared=True) as temporary:
            save_file(values, temporary)
    columns: dict[str, Any] = {name: values[name].tolist() for name in NAMES}
    return concatenate_datasets([dataset, Dataset.from_dict(columns)], axis=1)


def _read(file: Path, count: int) -> dict[str, Tensor] | None:
    """The cached values, or None where they are absent or damaged: they can always be computed again."""
    if not file.is_file():
        return None
    try:
        columns = load_file(file)
    except (OSError, SafetensorError):
        return None
    whole = columns.keys() == set(NAMES) and all(
        values.shape == (count,) and bool(torch.isfinite(values).all()) for values in columns.values()
    )
    return columns if whole else None
