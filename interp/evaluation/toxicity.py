"""Toxicity scorers with one interface: the bundled classifier, detoxify's models, a word list.

Scorers are called thousands of times in loops, from several threads and often for the same text, so a classifier scorer has its own
batching, cache and lock, and returns scores in the order of the texts. Classifiers run through detoxify's own `predict`; only its
loading, which needs a pickle and a network, is replaced: models are read from safetensors folders, which `convert_detoxify` writes
from a detoxify checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import MutableMapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.bundled import BUNDLED
from interp.data.lexicon import HOSTILE_KINDS, LEXICON_FILE, lexicon, word_pattern
from interp.errors import UserError
from interp.evaluation.detoxify import load_detector
from interp.models.digests import config_entries, tokenizer_digest
from interp.models.offloading import weights_digest

CLASSES = ("toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack")
BUNDLED_SCORER = BUNDLED / "scorer"
CACHE_SIZE = 100_000
WINDOW_SLACK = 8
# The keys of scorers without a digest, and the lock for them.
_KEYS: MutableMapping[Scorer, str] = WeakKeyDictionary()
_LOCK = threading.Lock()


@runtime_checkable
class Scorer(Protocol):
    """The interface of a toxicity scorer."""

    @property
    def name(self) -> str:
        """The scorer's name, as reports show it."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the columns of `score`, "toxicity" first."""
        ...

    def score(self, texts: Sequence[str]) -> pd.DataFrame:
        """Scores in [0, 1]: one row per text in the order given, one float32 column per class, "toxicity" first."""
        ...


def checked_texts(texts: Sequence[Any]) -> list[str]:
    """The texts as a list of strings that a tokenizer accepts (lone surrogates replaced); raises `UserError` otherwise."""
    if isinstance(texts, str | bytes):
        raise UserError("a single text was given where a list of texts is expected", "wrap it in a list: scorer.score([text])")
    strings = list(texts)
    for number, text in enumerate(strings):
        if not isinstance(text, str):
            raise UserError(f"text {number} is of type {type(text).__name__}, not str", "give every text as a string")
    return [text.encode("utf-8", "replace").decode("utf-8") for text in strings]


class LexiconScorer:
    """Toxicity by a word list: whether a text contains listed words.

    Columns: `toxicity` is 1.0 when any whole word is profanity, a slur or an insult of the lexicon, else 0.0; `share`
    is the share of such words among the words of the text; then one any-hit column (0.0 or 1.0) per kind of the
    lexicon. Threats and sexual words alone do not make a text toxic: "kill" and "sex" are mostly used harmlessly.
    """

    name = "lexicon"

    @property
    def digest(self) -> str:
        """A hash of the word list."""
        return hashlib.blake2b(LEXICON_FILE.read_bytes(), digest_size=16).hexdigest()

    def __init__(self) -> None:
        self.classes: tuple[str, ...] = ("toxicity", "share", *lexicon())

    def score(self, texts: Sequence[Any]) -> pd.DataFrame:
        """One row per text, as described for the class; an empty text scores 0 everywhere."""
        hostile = word_pattern(HOSTILE_KINDS)
        table = []
        for text in checked_texts(texts):
            hits = len(hostile.findall(text))
            words = len(re.findall(r"\w+", text))
            kinds = [float(word_pattern((kind,)).search(text) is not None) for kind in lexicon()]
            table.append([float(hits > 0), min(1.0, hits / max(words, 1)), *kinds])
        return _frame(np.array(table, dtype=np.float32).reshape(len(table), len(self.classes)), self.classes)


class ClassifierScorer:
    """A sequence classifier run through detoxify's `predict`, batched, cached and safe to share between threads.

    A text longer than the model reads is scored in windows that overlap by half, and each class takes its maximum over
    them. Scores are cached by text hash (least recently used dropped first); a score may differ by rounding, about
    1e-7, with the texts that it shared a batch with.
    """

    def __init__(self, detector: Any, name: str, *, batch_size: int = 64, cache_size: int = CACHE_SIZE) -> None:
        if batch_size < 1:
            raise UserError(f"a batch of {batch_size} texts was asked for", "give a batch size of at least 1")
        self.name = name
        self.classes: tuple[str, ...] = tuple(detector.class_names)
        self.detector = detector
        self.batch_size = batch_size
        self.cache_size = cache_size
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()
        # One lock for cache and model: a fast tokenizer must not be used by two threads at once.
        self._lock = threading.Lock()

    def score(self, texts: Sequence[Any]) -> pd.DataFrame:
        """Toxicity and its classes, each in [0, 1]: one row per text in the order given; `[]` gives an empty frame.

        Raises `UserError` when an item is not a string (hence the wide annotation).
        """
        strings = checked_texts(texts)
        keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in strings]
        with self._lock:
            answers: dict[bytes, np.ndarray] = {}
            missing: dict[bytes, str] = {}
            for key, text in zip(keys, strings, strict=True):
                if key in self._cache:
                    self._cache.move_to_end(key)
                    answers[key] = self._cache[key]
                else:
                    missing[key] = text
            for key, row in zip(missing, self._compute(list(missing.values())), strict=True):
                answers[key] = self._cache[key] = row
            while len(self._cache) > self.cache_size:
                self._cache.popitem(last=False)
        table = np.stack([answers[key] for key in keys]) if keys else np.empty((0, len(self.classes)), dtype=np.float32)
        return _frame(table, self.classes)

    @cached_property
    def digest(self) -> str:
        """A hash of the classifier's weights, tokenizer, configuration and classes, part of the cache key of results scored with it."""
        tokenizer, model = self.detector.tokenizer, self.detector.model
        settings = [tokenizer_digest(tokenizer), tokenizer.model_max_length, self.classes, config_entries(model.config)]
        words = json.dumps(settings, sort_keys=True, default=str)
        return f"{weights_digest(model)}-{hashlib.blake2b(words.encode(), digest_size=16).hexdigest()}"

    def _compute(self, texts: list[str]) -> Float[np.ndarray, "texts classes"]:
        """Scores of distinct texts: cut into windows, sorted by length, in batches of at most `batch_size`."""
        pieces: list[str] = []
        owners: list[int] = []
        lengths: list[int] = []
        for owner, text in enumerate(texts):
            for piece, length in self._windows(text):
                pieces.append(piece)
                owners.append(owner)
                lengths.append(length)
        table = np.zeros((len(texts), len(self.classes)), dtype=np.float32)
        order = sorted(range(len(pieces)), key=lengths.__getitem__)
        # Grad mode belongs to a thread, so it is set here and not at import.
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                scores = self.detector.predict([pieces[i] for i in batch])
                columns = np.stack([np.atleast_1d(np.asarray(scores[name], dtype=np.float32)) for name in self.classes], axis=1)
                for index, row in zip(batch, columns, strict=True):
                    table[owners[index]] = np.maximum(table[owners[index]], row)
        return table

    def _windows(self, text: str) -> list[tuple[str, int]]:
        """The text, or pieces of it that the model can read whole, each with its number of tokens."""
        tokenizer = self.detector.tokenizer
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
        offsets, words = encoded["offset_mapping"], encoded.word_ids()
        room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
        if len(offsets) <= room:
            return [(text, len(offsets))]
        # A piece is cut out of the text and tokenised again, which may split its edges differently: hence the slack.
        size = max(1, room - WINDOW_SLACK)
        windows: list[tuple[str, int]] = []
        start = 0
        while True:
            stop = min(start + size, len(offsets))
            windows.append((text[offsets[start][0] : offsets[stop - 1][1]], stop - start))
            if stop == len(offsets):
                return windows
            middle = start + max(1, size // 2)
            # Start the next piece at a word where one starts nearby; text without spaces is cut where it is.
            near = range(middle, max(start, middle - size // 4), -1)
            start = next((i for i in near if words[i] != words[i - 1]), middle)


def _frame(table: Float[np.ndarray, "texts classes"], classes: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(np.asarray(table, dtype=np.float32), columns=list(classes))


def scorer_digest(scorer: Scorer) -> str:
    """A key of a scorer for caches: its digest.

    A user's own scorer may have none. Its name does not say what it computes, so its key is that of this object alone, and what is
    scored with it is computed anew in every session.
    """
    digest = getattr(scorer, "digest", None)
    if digest is not None:
        return str(digest)
    key = f"{scorer.name}-{secrets.token_hex(8)}"
    try:
        with _LOCK:
            return _KEYS.setdefault(scorer, key)
    except TypeError:  # an object without a hash, such as a dataclass, cannot be looked up
        return key


def load_scorer(source: str | Path = "bundled", *, device: str = "cpu", batch_size: int = 64) -> Scorer:
    """A scorer by name: `bundled`, `lexicon`, or a folder that `convert_detoxify` wrote.

    Raises `UserError` when the folder is missing, incomplete, damaged or of other classes than it says, and when
    detoxify is not installed.
    """
    if str(source) == "lexicon":
        return LexiconScorer()
    folder = BUNDLED_SCORER if str(source) == "bundled" else Path(source)
    detector, name = load_detector(folder, device)
    return ClassifierScorer(detector, name, batch_size=batch_size)
