"""Token ids of texts in padded batches, with positions that are right under any padding.

Hugging Face models shift the positions of left-padded rows unless position ids are passed, and tokenizers differ in
whether they add a BOS token. Everything in `interp` therefore uses `token_rows` and `pad`: no special tokens unless they are
asked for, and position ids counted from the first real token of each row.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from interp.errors import UserError

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class Tokens:
    """A batch of token ids: `ids`, which of them are real (`mask`), and each one's absolute position."""

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    positions: Int[Tensor, "batch pos"]

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """The number of real tokens of each row."""
        return self.mask.sum(dim=1)

    def to(self, device: torch.device | str) -> Tokens:
        """The same batch on another device."""
        return Tokens(self.ids.to(device), self.mask.to(device), self.positions.to(device))

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments for a Hugging Face forward."""
        return {"input_ids": self.ids, "attention_mask": self.mask.long(), "position_ids": self.positions}


def positions_of(mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """The absolute position of each real token, counted from the first real one of its row; padding gets 0."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def pad(rows: Sequence[Sequence[int]], filler: int, side: PaddingSide = "left") -> Tokens:
    """A batch of rows of token ids, padded to one length."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), filler, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, where] = torch.tensor(row, dtype=torch.long)
        mask[index, where] = True
    return Tokens(ids, mask, positions_of(mask))


def token_rows(
    model: Any, texts: Sequence[str] | Sequence[Sequence[int]], *, add_bos: bool = False, max_tokens: int | None = None
) -> list[list[int]]:
    """The token ids of each text, without special tokens; with `max_tokens`, only the first ones are kept.

    Rows of token ids may be given in place of texts. Raises `UserError` for something that is neither a list of strings
    nor of rows, a text without tokens, ids outside the vocabulary, or a text beyond the context.
    """
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}", "give at least 1")
    if isinstance(texts, str):
        raise UserError("one string was given where a list of texts is expected", "put it into a list: [text]")
    if not len(texts):
        return []
    rows = _rows_of(model, texts)
    if add_bos:
        bos = model.tokenizer.bos_token_id
        if bos is None:
            raise UserError("a BOS token was asked for, but the tokenizer has none", "leave add_bos off")
        rows = [[bos, *row] for row in rows]
    if max_tokens is not None:
        rows = [row[:max_tokens] for row in rows]
    check_rows(model, rows)
    return rows


def _rows_of(model: Any, texts: Sequence[Any]) -> list[list[int]]:
    if not any(isinstance(text, str) for text in texts):
        try:
            return [[operator.index(token) for token in row] for row in texts]
        except TypeError:
            pass
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"text {number} is of type {type(text).__name__}, not a string", "give strings, or rows of token ids")
        try:
            str(text).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"text {number} is not valid Unicode ({error.reason})", "decode it with errors='replace'") from error
    rows: list[list[int]] = model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return rows


def check_rows(model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Raise `UserError` for a row that is empty, longer than the context, or not of this vocabulary."""
    for number, row in enumerate(rows):
        if not len(row):
            raise UserError(f"text {number} is empty: it has no tokens", "give at least one character, or set add_bos=True")
        if len(row) > model.context:
            raise UserError(
                f"text {number} has {len(row)} tokens, but the model reads at most {model.context}", "shorten it, or set max_tokens"
            )
    check_vocabulary(model, rows)


def check_vocabulary(model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Raise `UserError` for a row with a token that the model has no row for, by its name where the tokenizer knows it."""
    vocabulary = model.d_vocab
    for number, row in enumerate(rows):
        token = max(row, default=0)
        if token >= vocabulary and token < len(model.tokenizer):
            name = model.tokenizer.convert_ids_to_tokens(token)
            problem = f"text {number} holds the token {name!r} ({token}), for which the model has no row"
            raise UserError(problem, "write it otherwise: its tokenizer knows it, but the model cannot read it")
        if token >= vocabulary or min(row, default=0) < 0:
            raise UserError(f"text {number} holds token ids from {min(row)} to {token}", f"use ids from 0 to {vocabulary - 1}")


def batches(lengths: Sequence[int], *, batch_size: int, batch_tokens: int) -> list[list[int]]:
    """Row numbers in batches of similar length that stay within both limits, longest first."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    groups: list[list[int]] = []
    for row in order:
        widest = lengths[groups[-1][0]] if groups else 0
        if groups and len(groups[-1]) < batch_size and (len(groups[-1]) + 1) * widest <= batch_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def next_token_losses(logits: Float[Tensor, "batch pos vocab"], ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos-1"]:
    """Negative log-likelihood, in nats, of every token but the first, given the tokens before it; always in single precision."""
    # The vocabulary is kept as the last, contiguous axis: cross_entropy over a middle axis sums less exactly.
    flat = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return flat.view(len(ids), -1)


def predicted(tokens: Tokens, context: Sequence[int]) -> Bool[Tensor, "batch step"]:
    """A mask on `next_token_losses`: the tokens after each row's first `context` tokens. Rows are padded on the right."""
    first = torch.tensor(list(context), device=tokens.mask.device).unsqueeze(1) - 1
    return tokens.mask[:, 1:] & (torch.arange(tokens.mask.shape[1] - 1, device=tokens.mask.device) >= first)
