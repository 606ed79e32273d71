"""Texts as windows of equal length: what every arm of `bypass undo` reads, so that arms take the same number of tokens a step.

Texts are read in an order drawn anew in each pass, each followed by the end-of-text token, and the row of tokens is cut into windows,
as pretraining reads documents. So a window may begin within a text and hold several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from interp.errors import UserError


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of an arm in the order in which they are read.

    Attributes:
        ids: token ids, `window pos`.
        texts: how many texts have begun by the end of each window, counted anew in every pass.
        available: how many different texts there are.
    """

    ids: Int[np.ndarray, "window pos"]
    texts: Int[np.ndarray, " window"]
    available: int


def windows_of(rows: Sequence[Sequence[int]], end: int | None, *, length: int, count: int, seed: int) -> Windows:
    """`count` windows of `length` tokens out of rows of token ids, read in as many passes as it takes.

    Raises `UserError` for no tokens.
    """
    if not any(len(row) for row in rows):
        raise UserError("there are no texts to train on", "give at least one")
    tail = [] if end is None else [end]
    tokens: list[int] = []
    starts: list[int] = []
    passes = 0
    while len(tokens) < count * length:
        for place in np.random.default_rng([seed, passes]).permutation(len(rows)):
            starts.append(len(tokens))
            tokens += [*rows[int(place)], *tail]
        passes += 1
    ids = np.array(tokens[: count * length], dtype=np.int64).reshape(count, length)
    ends = np.arange(1, count + 1) * length
    return Windows(ids, np.searchsorted(np.array(starts), ends, side="left").astype(np.int64), len(rows))
