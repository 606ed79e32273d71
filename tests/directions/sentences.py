"""Random sentences of a few words, half of which hold one word more and are labelled by it."""

from __future__ import annotations

import numpy as np

FILLERS = ("the", "quick", "river", "stone", "walks", "sings", "under", "narrow", "sunny", "drith", "oskle", "frabe")


def corpus(count: int = 160, seed: int = 0, word: str = "snarg") -> tuple[list[str], list[int]]:
    """Random sentences; half of them hold `word` at a random place, and are labelled 1."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for number in range(count):
        words = list(rng.choice(FILLERS, rng.integers(4, 9)))
        if number % 2:
            words[int(rng.integers(len(words)))] = word
        texts.append("a " + " ".join(words))
        labels.append(number % 2)
    return texts, labels
