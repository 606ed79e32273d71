"""A corpus as one row of token ids, and the batches of windows that a step reads from it.

The ids are stored once and read by memory map. The order of windows is a permutation drawn from (seed, epoch), so the batch
of a step is a function of seed and step, and a resumed run needs no record of what it has read.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp.errors import UserError
from interp.files import replacing, write_json
from training.stamps import file_hash
from training.tokenizer import corpus_texts


def pack(path: Path, tokenizer: PreTrainedTokenizerFast, target: Path) -> np.ndarray:
    """The documents of a corpus file as one row of token ids, each followed by the end-of-text token.

    The row is stored at `target` and read from there as long as the contents of corpus and tokenizer are the same.
    """
    if not path.is_file():
        raise UserError(f"there is no corpus at {path}", "run the stage corpus first")
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    sources, note = {"corpus": file_hash(path), "tokenizer": vocabulary}, target.with_suffix(".json")
    if not target.exists() or not note.exists() or json.loads(note.read_text(encoding="utf-8")) != sources:
        note.unlink(missing_ok=True)
        _write(path, tokenizer, target)
        write_json(note, sources)
    return np.load(target, mmap_mode="r")


def _write(path: Path, tokenizer: PreTrainedTokenizerFast, target: Path) -> None:
    end = tokenizer.eos_token_id
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    parts: list[np.ndarray] = []
    batch: list[str] = []

    def flush() -> None:
        for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            parts.append(np.asarray([*ids, end], dtype=dtype))
        batch.clear()

    for text in corpus_texts(path):
        batch.append(text)
        if len(batch) == 2000:
            flush()
    if batch:
        flush()
    if not parts:
        raise UserError(f"{path} holds no document", "run the stage corpus again, with larger sources")
    with replacing(target) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.concatenate(parts))


def steps_of(tokens: int, settings: dict[str, Any]) -> int:
    """The number of steps of a run: `steps`, or that of `epochs` over so many tokens."""
    if "steps" in settings:
        return int(settings["steps"])
    return int(settings["epochs"] * (tokens // settings["context"] // settings["batch"]))


def check_size(train: int, heldout: int, settings: dict[str, Any]) -> None:
    """Raise `UserError` when the corpus, in tokens, makes no batch, or the epochs no step."""
    needed = settings["context"] * settings["batch"]
    if train < needed or heldout < settings["context"]:
        problem = (
            f"the corpus has {train} tokens and {heldout} held out, but one step reads {needed} and a measurement {settings['context']}"
        )
        raise UserError(problem, "name larger sources, or lower batch or context")
    if steps_of(train, settings) < 1:
        raise UserError(f"{settings.get('epochs', 0)} epochs of this corpus are less than one step", "raise epochs")


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def window(tokens: np.ndarray, step: int, settings: dict[str, Any], seed: int) -> Int[Tensor, "batch pos"]:
    """The batch of windows that belongs to a step."""
    length, batch = settings["context"], settings["batch"]
    count = len(tokens) // length
    epoch, index = divmod(step, count // batch)
    order = _order(count, seed, epoch)[index * batch : (index + 1) * batch]
    return torch.from_numpy(np.stack([tokens[i * length : (i + 1) * length] for i in order]).astype(np.int64))
