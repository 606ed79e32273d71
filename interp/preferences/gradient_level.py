"""The exact first-order scores of a sample of pairs, as `interp.preferences.influence` has them, by blocks that a later run goes on from.

Two readings of the pairs: the first gives what belongs to a pair alone and adds up the sums `D` and `G` over pairs, the second multiplies
each pair's gradients with these sums. After every block of the first the sums are stored beside its values, two tensors of the size of
each weight, and removed when all is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from interp.files import replacing
from interp.models.model import Model
from interp.preferences.forward_level import Blocks, in_blocks
from interp.preferences.influence import Sums, no_sums, read_alone, read_with, trainable_copy
from interp.preferences.pairs import TokenPair

# Pairs between two writings.
BLOCK = 16
Tell = Callable[[int, int], None]


def gradient_level(model: Model, pairs: Sequence[TokenPair], blocks: Blocks, *, tell: Tell = lambda done, total: None) -> pd.DataFrame:
    """The columns of `GradientScores` of each pair, with respect to these pairs together. `tell` counts readings of pairs, two each."""
    whole = blocks.of("gradient")
    stored = whole.read(pairs)
    if stored is not None or not pairs:
        return pd.DataFrame(stored or {})
    hf, file = trainable_copy(model), _sums_file(whole, pairs)
    sums, done = _read_sums(file, hf)
    own = blocks.of("own")
    # Sums without the values of their pairs, or the other way round, cannot be gone on from.
    if any(own.read(pairs[start : start + BLOCK]) is None for start in range(0, done, BLOCK)):
        sums, done = no_sums(hf), 0
    frames = [pd.DataFrame(own.read(pairs[start : start + BLOCK])) for start in range(0, done, BLOCK)]
    for start in range(done, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        columns = _columns([read_alone(hf, pair, sums) for pair in block])
        own.write(block, columns)
        frames.append(pd.DataFrame(columns))
        done = start + len(block)
        _write_sums(file, sums, done)
        tell(done, 2 * len(pairs))
    # What a pair does to others depends on who the others are.
    name = "" if file is None else file.stem
    second = in_blocks(
        blocks.of(f"with-{name}"), pairs, lambda _, block: _columns([read_with(hf, pair, sums) for pair in block]), size=BLOCK,
        tell=lambda read, total: tell(total + read, 2 * total),
    )  # fmt: skip
    frame = pd.concat(frames, ignore_index=True).join(second)
    whole.write(pairs, {str(column): frame[column].tolist() for column in frame})
    if file is not None:
        file.unlink(missing_ok=True)
    return frame


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _sums_file(blocks: Blocks, pairs: Sequence[TokenPair]) -> Path | None:
    path = blocks.path(pairs)
    return None if path is None else path.with_suffix(".safetensors")


def _read_sums(file: Path | None, hf: PreTrainedModel) -> tuple[Sums, int]:
    """The stored sums and the number of pairs in them; zeros where there is no file, or none of this model."""
    sums = no_sums(hf)
    if file is None or not file.is_file():
        return sums, 0
    try:
        with safe_open(file, framework="pt") as stored:
            done = int(json.loads(stored.metadata()["done"]))
            for name, tensors in ((item.name, getattr(sums, item.name)) for item in fields(Sums)):
                for number, tensor in enumerate(tensors):
                    tensor.copy_(stored.get_tensor(f"{name}.{number}"))
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError, TypeError):
        return no_sums(hf), 0
    return sums, done


def _write_sums(file: Path | None, sums: Sums, done: int) -> None:
    if file is None:
        return
    tensors = {
        f"{name}.{number}": tensor.contiguous()
        for name, part in ((item.name, getattr(sums, item.name)) for item in fields(Sums))
        for number, tensor in enumerate(part)
    }
    with replacing(file) as temporary:
        save_file(tensors, temporary, {"done": json.dumps(done)})
