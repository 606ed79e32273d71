"""Token ids of texts in padded batches, with positions that are right under any padding.

Hugging Face models shift the positions of left-padded rows unless position ids are passed, and tokenizers differ in
whether they add a BOS token. Everything in `interp` therefore uses `token_rows` and `pad`. A text begins with a BOS token where
the model's tokenizer adds one by default (see `adds_bos`), and no other special token is added. Position ids are counted from the
first real token of each row.
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
WhichEnd = Literal["first", "last"]


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
    model: Any, texts: Sequence[str] | Sequence[Sequence[int]], *, bos: bool | None = None, max_tokens: int | None = None,
    keep: WhichEnd = "first",
) -> list[list[int]]:  # fmt: skip
    """The token ids of each text, at most `max_tokens` of them: the first ones, or the last ones after the BOS token.

    Raises `UserError` as `uncut_rows`, and for a text without tokens, ids outside the vocabulary, or a text beyond the context.
    """
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}", "give at least 1")
    rows = uncut_rows(model, texts, bos=bos)
    if max_tokens is not None:
        rows = [_cut(row, max_tokens, keep, model.tokenizer.bos_token_id) for row in rows]
    check_rows(model, rows)
    return rows


def _cut(row: list[int], most: int, keep: WhichEnd, bos: int | None) -> list[int]:
    if len(row) <= most or keep == "first":
        return row[:most]
    lead = int(row[0] == bos and most > 1)
    return [*row[:lead], *row[lead - most :]]


def uncut_rows(model: Any, texts: Sequence[str] | Sequence[Sequence[int]], *, bos: bool | None = None) -> list[list[int]]:
    """The token ids of each text, of any length: the one place where text becomes tokens.

    Args:
        texts: strings, or rows of token ids, which are taken as they are unless `bos` is True.
        bos: whether a row begins with the BOS token, exactly once, also where the text spells it; unless given, as `adds_bos` says.

    Raises `UserError` for something that is neither a list of strings nor of rows, and for a BOS token that the tokenizer lacks.
    """
    if isinstance(texts, str):
        raise UserError("one string was given where a list of texts is expected", "put it into a list: [text]")
    if not len(texts):
        return []
    rows = _rows_of(model, texts)
    if bos or (bos is None and any(isinstance(text, str) for text in texts) and adds_bos(model)):
        first = model.tokenizer.bos_token_id
        if first is None:
            raise UserError("a BOS token was asked for, but the tokenizer has none", "leave it off: bos=False, or --no-bos")
        rows = [row if row[:1] == [first] else [first, *row] for row in rows]
    check_vocabulary(model, rows)
    return rows


def decoded_rows(model: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """The text of each row, without special tokens and with its spaces as they are."""
    return [model.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in rows]


def adds_bos(model: Any) -> bool:
    """Whether a text begins with the BOS token: as the model was loaded (`Model.bos`), or else as its tokenizer does by default."""
    return default_bos(model.tokenizer) if model.bos is None else bool(model.bos)


def default_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer begins a text with its BOS token by default."""
    first = tokenizer.bos_token_id
    return first is not None and tokenizer("a")["input_ids"][:1] == [first]


def end_tokens(model: Any) -> tuple[int, ...]:
    """The tokens that end a continuation, as in Hugging Face's `generate`: `eos_token_id` of the generation config, one or several.

    Where that names none of this vocabulary, the tokenizer's own.
    """
    ids = getattr(model.hf.generation_config, "eos_token_id", None)
    named = [] if ids is None else list(ids) if isinstance(ids, (list, tuple)) else [ids]
    known = tuple(dict.fromkeys(int(token) for token in named if 0 <= int(token) < model.d_vocab))
    own = model.tokenizer.eos_token_id
    return known or (() if own is None else (int(own),))


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
            raise UserError(f"text {number} is empty: it has no tokens", "give at least one character, or set bos=True")
        if len(row) > model.context:
            raise UserError(
                f"text {number} has {len(row)} tokens, but the model reads at most {model.context}",
                "shorten it, or set max_tokens (a prompt: max_prompt_tokens, --max-prompt-tokens, which keep its end)",
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


def logit_tokens(model: Any) -> int:
    """How many tokens are read at a time, padding included, where the logits of all of them are wanted."""
    # Fewer on a CPU where the vocabulary is large: their logits are read again while they are near, and less is padded.
    return min(8192, max(256, 2**24 // model.d_vocab)) if model.device.type == "cpu" else 8192


def next_token_losses(logits: Float[Tensor, "batch pos vocab"], ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos-1"]:
    """Negative log-likelihood, in nats, of every token but the first, given the tokens before it; always in single precision."""
    # The vocabulary is kept as the last, contiguous axis: cross_entropy over a middle axis sums less exactly.
    flat = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return flat.view(len(ids), -1)


def predicted(tokens: Tokens, context: Sequence[int]) -> Bool[Tensor, "batch step"]:
    """A mask on `next_token_losses`: the tokens after each row's first `context` tokens. Rows are padded on the right."""
    first = torch.tensor(list(context), device=tokens.mask.device).unsqueeze(1) - 1
    return tokens.mask[:, 1:] & (torch.arange(tokens.mask.shape[1] - 1, device=tokens.mask.device) >= first)
