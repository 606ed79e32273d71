"""Measurements of a language model during training: held-out loss, bits per byte by source, and sample continuations.

Bits per byte can be compared between models of different vocabularies; the loss per token cannot.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from interp.errors import UserError
from interp.models.tokens import next_token_losses
from training.sections import PretrainSettings, SourceSettings
from training.sources import source_rows


@dataclass(frozen=True)
class Passages:
    """Held-out text of one source: rows of token ids that predict each token of it once, and its size in UTF-8 bytes."""

    rows: tuple[tuple[int, ...], ...]
    size: int


def passages(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, length: int, kilobytes: float = PretrainSettings.evaluate_kilobytes
) -> Passages:
    """The first texts, up to so many kilobytes, as rows of at most `length` tokens.

    Each document starts after the end-of-text token, as in training, and each further row of it after the last token before.
    """
    rows: list[tuple[int, ...]] = []
    size = 0
    for text in texts:
        room = int(kilobytes * 1000) - size
        if room <= 0:
            break
        piece = text.encode("utf-8", "replace")[:room].decode("utf-8", "ignore")
        ids = [tokenizer.eos_token_id, *tokenizer(piece, add_special_tokens=False)["input_ids"]]
        rows += [tuple(ids[start : start + length]) for start in range(0, len(ids) - 1, length - 1)]
        size += len(piece.encode())
    return Passages(tuple(rows), size)


def held_out_passages(corpus: Path, settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Passages]:
    """Passages of each source of `heldout.jsonl`, and of the further sources that the recipe names under `held_out`."""
    limit, length = settings.get("evaluate_kilobytes", PretrainSettings.evaluate_kilobytes), settings["context"]
    texts: dict[str, list[str]] = {}
    with (corpus / "heldout.jsonl").open(encoding="utf-8") as stream:
        for line in stream:
            record = json.loads(line)
            texts.setdefault(record["source"], []).append(record["text"])
    by_source = {name: passages(some, tokenizer, length, limit) for name, some in texts.items()}
    for source in settings.get("held_out", []):
        field, name = source.get("field", SourceSettings.field), source["name"]
        if name in by_source:
            raise UserError(f"the held-out source {name!r} has the name of a source of the corpus", "give it a name of its own")
        by_source[name] = passages((str(row.get(field) or "").strip() for _, row in source_rows(source)), tokenizer, length, limit)
        if not by_source[name].rows:
            raise UserError(f"the held-out source {name!r} has no text in its field {field!r}", "correct its path or field")
    return by_source


@torch.no_grad()
def bits_per_byte(model: nn.Module, text: Passages, end: int, device: torch.device | str = "cpu") -> float:
    """The negative log-likelihood of the text in bits, over its size in UTF-8 bytes."""
    total = 0.0
    for start in range(0, len(text.rows), 16):
        rows = text.rows[start : start + 16]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[end] * (width - len(row))] for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        losses = next_token_losses(model(input_ids=ids).logits, ids)
        total += losses[torch.arange(1, width, device=device) < lengths[:, None]].double().sum().item()
    return total / math.log(2) / text.size


@torch.no_grad()
def held_out_loss(model: nn.Module, tokens: np.ndarray, length: int, windows: int = 64, device: torch.device | str = "cpu") -> float:
    """Mean loss in nats per token on the first held-out windows."""
    usable = min(windows, len(tokens) // length)
    rows = torch.from_numpy(np.asarray(tokens[: usable * length]).astype(np.int64)).view(usable, length).to(device)
    losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in rows.split(16)]
    return sum(losses) / usable


@torch.no_grad()
def samples(model: Any, tokenizer: PreTrainedTokenizerFast, prompts: Iterable[str], device: torch.device | str = "cpu") -> list[list[str]]:
    """Greedy continuations of 20 tokens, raw words included: [prompt, continuation]; prompts without room for them are left out."""
    pairs = []
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].to(device)
        length = ids.shape[1]
        if not 0 < length < model.config.n_positions:
            continue
        for _ in range(min(20, model.config.n_positions - length)):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        pairs.append([prompt, tokenizer.decode(ids[0, length:], skip_special_tokens=True)])
    return pairs
