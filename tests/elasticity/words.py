"""Openings, and the pair of words whose log-odds differ most surely between the sides of a pair."""

from __future__ import annotations

import itertools

from interp.elasticity.behaviour import next_log_probs
from interp.models.pair import ModelPair
from tests.conftest import WORDS

OPENINGS = ["the", "a river", "never with", "the quick", "under a stone", "the sunny"]


def moved_words(pair: ModelPair) -> tuple[str, str]:
    """The two words whose log-odds move most beside how differently they move after the openings."""
    rows = [pair.base.tokenizer(text)["input_ids"] for text in OPENINGS]
    change = next_log_probs(pair.tuned, rows) - next_log_probs(pair.base, rows)
    tokens = {}
    for word in WORDS:
        ids = pair.base.tokenizer(f" {word}")["input_ids"]
        if len(ids) == 1:
            tokens[word] = ids[0]

    def sureness(words: tuple[str, str]) -> float:
        moved = change[:, tokens[words[0]]] - change[:, tokens[words[1]]]
        return abs(float(moved.mean())) / float(moved.std())

    return max(itertools.combinations(sorted(tokens), 2), key=sureness)
