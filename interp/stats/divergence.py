"""How far one model's next-token distributions are from another's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits.edit import Edit
from interp.edits.transforms import transforms_of
from interp.errors import UserError
from interp.models.hooks import Work, working
from interp.models.model import Model
from interp.models.modes import check_no_dropout
from interp.models.tokens import Tokens, batches, logit_tokens, pad, token_rows


@torch.no_grad()
def kl_to(
    model: Model, other: Model, texts: Sequence[str] | Sequence[Sequence[int]], *, edits: Sequence[Edit] = (),
    max_tokens: int | None = None, batch_size: int = 16, known: Sequence[Tensor] | None = None,
) -> Float[np.ndarray, " text"]:  # fmt: skip
    """KL(model || other) of the next token in nats, averaged over the positions of each text; `edits` are applied to `model`.

    Args:
        texts: strings, or rows of token ids.
        max_tokens: read only the first so many tokens of each text.
        known: `other`'s log-probabilities on the same texts, with the same `max_tokens` and `batch_size`, from `log_probabilities`, for
            callers that compare many models with one.

    Raises `UserError` for models of different vocabularies, active dropout, and texts that the model cannot read.
    """
    if model.d_vocab != other.d_vocab:
        raise UserError("the two models have different vocabularies", "compare models with one tokenizer")
    for side in (model, other):
        check_no_dropout(side)
    rows = token_rows(model, texts, max_tokens=max_tokens)
    transforms = transforms_of(edits, model)
    divergences = np.zeros(len(rows))
    for place, (group, tokens) in enumerate(_batches(model, rows, batch_size)):
        with working(model.hf, Work(transforms, rows=tuple(group)), tokens.lengths):
            mine = model.hf(**tokens.inputs(), use_cache=False).logits.float().log_softmax(dim=-1)
        theirs = _log_probabilities(other, tokens) if known is None else known[place]
        each = (mine.exp() * (mine - theirs)).sum(dim=-1) * tokens.mask
        divergences[group] = (each.sum(dim=1) / tokens.mask.sum(dim=1)).cpu().numpy()
    return divergences


@torch.no_grad()
def log_probabilities(
    model: Model, texts: Sequence[str] | Sequence[Sequence[int]], *, max_tokens: int | None = None, batch_size: int = 16
) -> list[Float[Tensor, "text longest vocab"]]:
    """The log-probabilities of the next token at every position, one tensor for each batch of texts, for `kl_to` to compare with.

    Raises `UserError` for active dropout and texts that the model cannot read.
    """
    check_no_dropout(model)
    rows = token_rows(model, texts, max_tokens=max_tokens)
    return [_log_probabilities(model, tokens) for _, tokens in _batches(model, rows, batch_size)]


def _batches(model: Model, rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[tuple[list[int], Tokens]]:
    """The batches in which rows are read: the numbers of their rows, and their tokens."""
    for group in batches([len(row) for row in rows], batch_size=batch_size, batch_tokens=logit_tokens(model)):
        yield group, pad([rows[i] for i in group], model.tokenizer.pad_token_id or 0, "right").to(model.device)


def _log_probabilities(model: Model, tokens: Tokens) -> Float[Tensor, "text longest vocab"]:
    return model.hf(**tokens.inputs(), use_cache=False).logits.float().log_softmax(dim=-1)
