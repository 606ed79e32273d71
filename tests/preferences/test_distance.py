"""Edit similarity against the textbook recursion."""

from __future__ import annotations

import functools
import random

import pytest

from interp.preferences.distance import edit_similarity, length_difference, levenshtein
from interp.preferences.pairs import TokenPair


def by_recursion(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    @functools.cache
    def of(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (first[i - 1] != second[j - 1]))

    return of(len(first), len(second))


@pytest.mark.oracle
def test_the_distance_is_that_of_the_recursion() -> None:
    draw = random.Random(0)
    for _ in range(300):
        first, second = (tuple(draw.randrange(3) for _ in range(draw.randrange(9))) for _ in range(2))
        assert levenshtein(first, second) == by_recursion(first, second) == levenshtein(second, first)


def test_edit_similarity_is_a_share_of_the_longer_answer() -> None:
    assert edit_similarity(TokenPair((1,), (5, 3, 9, 3, 0), (5, 7, 0))) == pytest.approx(1 - 3 / 5)
    assert edit_similarity(TokenPair((1,), (5, 7), (5, 7))) == 1.0
    assert edit_similarity(TokenPair((1,), (5, 7), (8, 9, 4))) == 0.0
    # Tokens that begin and end alike, and overlap.
    assert levenshtein((1, 2, 1), (1, 1)) == 1
    assert length_difference(TokenPair((1,), (5, 3, 9), (5,))) == -2


def test_the_distance_is_exact_for_long_answers() -> None:
    draw = random.Random(1)
    text = [draw.randrange(50) for _ in range(1500)]
    changed = list(text)
    for place in range(100, 1400, 100):
        changed[place] = 50 + place
    del changed[1000:1007]
    assert levenshtein(text, changed) == 13 - 1 + 7
