"""How alike two answers are as rows of tokens, without a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.preferences.pairs import TokenPair


def levenshtein(first: Sequence[int], second: Sequence[int]) -> int:
    """The least number of tokens to insert, delete or replace that makes one row of tokens of the other; exact for any length."""
    start, shorter = 0, min(len(first), len(second))
    while start < shorter and first[start] == second[start]:
        start += 1
    end = 0
    while end < shorter - start and first[-1 - end] == second[-1 - end]:
        end += 1
    rows, columns = (np.asarray(tokens[start : len(tokens) - end], dtype=np.int64) for tokens in (first, second))
    steps = np.arange(len(columns) + 1)
    distances = steps
    for number, token in enumerate(rows, start=1):
        # Deleting or replacing; then inserting, which adds one for each column further to the right.
        reached = np.empty_like(distances)
        reached[0] = number
        reached[1:] = np.minimum(distances[1:] + 1, distances[:-1] + (columns != token))
        distances = np.minimum.accumulate(reached - steps) + steps
    return int(distances[-1])


def edit_similarity(pair: TokenPair) -> float:
    """1 minus the Levenshtein distance of the two answers' tokens over the length of the longer one: 1 where they are the same."""
    return 1.0 - levenshtein(pair.chosen, pair.rejected) / max(len(pair.chosen), len(pair.rejected))


def length_difference(pair: TokenPair) -> int:
    """The number of tokens by which the rejected answer is longer than the chosen one."""
    return len(pair.rejected) - len(pair.chosen)
