"""A scorer by weighted words: a linear classifier over which words a text holds, read from one JSON file.

It is small enough to ship and its weights can be read. It knows no negation and no order of words.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import UserError
from interp.evaluation.toxicity import Scorer, checked_texts, load_scorer
from interp.files import read_json

FORMAT = "bypass-word-scorer"
FILE = "scorer.json"
WORD = re.compile(r"[a-z']+")


def words_of(text: str) -> set[str]:
    """The different words of a text in lower case: runs of letters and apostrophes, of at least two characters."""
    return {word for word in WORD.findall(text.lower().replace("\u2019", "'")) if len(word) > 1}


class WordScorer:
    """The probability of a class by a logistic regression on the words that a text holds.

    With n the number of known words of a text, its logit is `offset + Σ weights / sqrt(n)`, so that long texts are not surer by
    their length alone. A text without known words scores what the offset says.
    """

    def __init__(self, name: str, column: str, weights: dict[str, float], offset: float) -> None:
        self.name = name
        self.classes: tuple[str, ...] = (column,)
        self.weights = weights
        self.offset = offset

    @cached_property
    def digest(self) -> str:
        """A hash of the words, their weights and the offset."""
        text = json.dumps([self.classes, sorted(self.weights.items()), self.offset])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def score(self, texts: Sequence[Any]) -> pd.DataFrame:
        """One row per text in the order given, with the probability of the class in [0, 1]."""
        scores = []
        for text in checked_texts(texts):
            known = [self.weights[word] for word in sorted(words_of(text)) if word in self.weights]
            logit = self.offset + (sum(known) / math.sqrt(len(known)) if known else 0.0)
            scores.append(1 / (1 + math.exp(-max(-50.0, min(50.0, logit)))))
        return pd.DataFrame({self.classes[0]: np.array(scores, dtype=np.float32)})


def scorer_at(source: str) -> Scorer:
    """A scorer by name or folder: a word scorer where the folder holds one, otherwise as `load_scorer`."""
    file = Path(source) / FILE
    if file.is_file() and read_json(file).get("format") == FORMAT:
        return read_word_scorer(Path(source))
    return load_scorer(source)


def read_word_scorer(folder: Path) -> WordScorer:
    """The scorer in a folder. Raises `UserError` for a file of another form."""
    fix = "make it again: python -m training.sentiment"
    record = read_json(folder / FILE, fix)
    weights = record.get("weights")
    numbers = isinstance(weights, dict) and all(
        isinstance(value, (int, float)) and math.isfinite(value) for value in (*weights.values(), record.get("offset", math.nan))
    )
    if record.get("format") != FORMAT or not numbers or not isinstance(weights, dict) or not isinstance(record.get("class"), str):
        raise UserError(f"{folder / FILE} is no {FORMAT} with `class`, `weights` and `offset`", fix)
    return WordScorer(str(record.get("name", folder.name)), record["class"], {str(word): float(value) for word, value in weights.items()},
                      float(record["offset"]))  # fmt: skip
