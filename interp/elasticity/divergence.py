"""The KL divergence of a model from others by position, over the whole vocabulary, in double precision.

By position because tuning may change the first tokens of a response alone (Qi et al. 2025, "shallow alignment").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.models.model import Model
from interp.models.modes import check_no_dropout
from interp.models.tokens import batches, check_rows, pad

# Positions whose distributions exist in double precision at a time.
CHUNK = 256


@dataclass(frozen=True, eq=False)
class PositionDivergence:
    """KL(model || other) of the next token in nats, after each position of each row; NaN beyond the end of a row."""

    values: Float[np.ndarray, "row pos"]

    @property
    def of_row(self) -> Float[np.ndarray, " row"]:
        """The mean over the positions of each row."""
        return np.asarray(np.nanmean(self.values, axis=1))

    @property
    def mean(self) -> float:
        """The mean over all positions of all rows."""
        return float(np.nanmean(self.values))

    def by_position(self, first: int) -> Float[np.ndarray, " pos"]:
        """The mean over rows after each of the first positions, as many as the longest row has and at most `first`."""
        return np.asarray(np.nanmean(self.values[:, :first], axis=0))


@torch.no_grad()
def kl_by_position(
    model: Model, others: Mapping[str, Model], rows: Sequence[Sequence[int]], *, batch_size: int = 16
) -> dict[str, PositionDivergence]:
    """KL(model || other) in nats after each position of each row of token ids, for each of the other models.

    Raises `UserError` for models of different vocabularies, active dropout, and rows that a model cannot read.
    """
    for other in others.values():
        if model.d_vocab != other.d_vocab:
            raise UserError("the two models have different vocabularies", "compare models with one tokenizer")
        check_no_dropout(other)
    check_no_dropout(model)
    if not len(rows):
        raise UserError("no texts were given to compare the models on", "give at least one")
    check_rows(model, rows)
    tables = {name: np.full((len(rows), max(map(len, rows))), np.nan) for name in others}
    for group in batches([len(row) for row in rows], batch_size=batch_size, batch_tokens=2048):
        tokens = pad([rows[index] for index in group], model.tokenizer.pad_token_id or 0, "right").to(model.device)
        mine = model.hf(**tokens.inputs(), use_cache=False).logits[tokens.mask]
        theirs_by_name = {}
        for name, other in others.items():
            theirs = other.hf(**tokens.inputs(), use_cache=False).logits[tokens.mask].to(mine.device)
            theirs_by_name[name] = theirs
        for name, values in kls_of_logits(mine, theirs_by_name).items():
            part = np.full(tuple(tokens.mask.shape), np.nan)
            part[tokens.mask.cpu().numpy()] = values.cpu().numpy()
            tables[name][group, : part.shape[1]] = part
    return {name: PositionDivergence(table) for name, table in tables.items()}


def kls_of_logits(first: Float[Tensor, "row vocab"], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """KL(first || other) in nats by row, for the logits of each of the others, computed in double precision."""
    pieces: dict[str, list[Tensor]] = {name: [] for name in others}
    for start in range(0, len(first), CHUNK):
        rows = slice(start, start + CHUNK)
        mine = first[rows].double().log_softmax(dim=-1)
        shares = mine.exp()
        for name, other in others.items():
            pieces[name].append((shares * (mine - other[rows].double().log_softmax(dim=-1))).sum(dim=-1))
    return {name: torch.cat(parts) for name, parts in pieces.items()}
