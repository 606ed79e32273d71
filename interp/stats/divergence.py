"""How far one model's next-token distributions are from another's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from interp.edits.edit import Edit
from interp.edits.transforms import transforms_of
from interp.errors import UserError
from interp.models.hooks import Work, working
from interp.models.model import Model
from interp.models.modes import check_no_dropout
from interp.models.tokens import Tokens, batches, pad, token_rows


@torch.no_grad()
def kl_to(
    model: Model, other: Model, texts: Sequence[str] | Sequence[Sequence[int]], *, edits: Sequence[Edit] = (),
    max_tokens: int | None = None, batch_size: int = 16,
) -> Float[np.ndarray, " text"]:  # fmt: skip
    """KL(model || other) of the next token in nats, averaged over the positions of each text; `edits` are applied to `model`.

    Args:
        texts: strings, or rows of token ids.
        max_tokens: read only the first so many tokens of each text.

    Raises `UserError` for models of different vocabularies, active dropout, and texts that the model cannot read.
    """
    if model.d_vocab != other.d_vocab:
        raise UserError("the two models have different vocabularies", "compare models with one tokenizer")
    for side in (model, other):
        check_no_dropout(side)
    rows = token_rows(model, texts, max_tokens=max_tokens)
    transforms = transforms_of(edits, model)
    divergences = np.zeros(len(rows))
    for group in batches([len(row) for row in rows], batch_size=batch_size, batch_tokens=8192):
        tokens: Tokens = pad([rows[i] for i in group], model.tokenizer.pad_token_id or 0, "right").to(model.device)
        with working(model.hf, Work(transforms, rows=tuple(group)), tokens.lengths):
            mine = model.hf(**tokens.inputs(), use_cache=False).logits.float().log_softmax(dim=-1)
        theirs = other.hf(**tokens.inputs(), use_cache=False).logits.float().log_softmax(dim=-1)
        each = (mine.exp() * (mine - theirs)).sum(dim=-1) * tokens.mask
        divergences[group] = (each.sum(dim=1) / tokens.mask.sum(dim=1)).cpu().numpy()
    return divergences
