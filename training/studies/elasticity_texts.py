"""The texts of the study of tuning on reviews, as rows of token ids of equal length.

They are read from below the folder that `BYPASS_DATA` names: IMDb reviews (`sentiment/`), Wikipedia articles and Reddit posts (`pretrain/`,
of which the base that ships has read a part). What is measured on is never trained on: reviews of the test set, and articles and posts
that the training chain holds out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp.elasticity.compression import start_token, started_rows
from interp.errors import UserError
from interp.models.model import Model
from training.sentiment import TEST, TRAIN, read_reviews
from training.sources import held_out, rows

FILES = {"neutral": "pretrain/wikipedia-00.jsonl.xz", "pretraining": "pretrain/reddit-00.jsonl.xz"}
CLASSES = ("negative", "positive")
# The source whose held-out texts verdicts on the KL rest on: posts, as in pretraining.
COMPARED = "pretraining"
# Characters that are read of a text before it is cut into tokens, and of a text on which bits per byte are measured.
CHARACTERS, MEASURED = 1500, 400
# Tokens of a held-out text on which models are compared.
KL_TOKENS = 48
BATCH = 500
SHUFFLE = 23


@dataclass(frozen=True, eq=False)
class Texts:
    """Rows to train on by source, each of as many tokens, and what is measured on.

    Attributes:
        compared: rows of held-out articles and posts, on which the KL of two models is measured.
        compressed: held-out reviews and posts, on which bits per byte are measured.
    """

    trained: Mapping[str, list[list[int]]]
    compared: Mapping[str, list[list[int]]]
    compressed: Mapping[str, list[str]]

    @property
    def digest_of_measured(self) -> str:
        """A hash of what is measured on."""
        whole = [dict(self.compared), dict(self.compressed)]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:12]

    def stretch(self, source: str, seed: int, size: int, start: int, count: int) -> list[list[int]]:
        """Rows of a source that belong to a seed, which has `size` of them. Raises `UserError` where there are fewer."""
        first = seed * size
        some = self.trained[source][first : first + size][start : start + count]
        if len(some) < count:
            needed = first + start + count
            raise UserError(
                f"seed {seed} needs {needed} texts of {source}, of which there are {len(self.trained[source])}", "take fewer seeds"
            )
        return some


def read_texts(folder: Path, model: Model, needed: Mapping[str, int], tokens: int, measured: int) -> Texts:
    """The texts below a folder.

    Args:
        needed: rows to train on, by source: `positive`, `negative` and those of `FILES`.
        tokens: of each row, the start token among them; shorter texts are left out.
        measured: held-out posts that models are compared on; of articles, and of each kind that is compressed, there is a quarter of them.

    Raises `UserError` for files that are missing or too small.
    """
    trained: dict[str, list[list[int]]] = {}
    compressed: dict[str, list[str]] = {}
    compared: dict[str, list[list[int]]] = {}
    reviews, test = shuffled_reviews(folder / TRAIN), shuffled_reviews(folder / TEST)
    fewer = -(-measured // 4)
    for name in CLASSES:
        trained[name] = enough(_whole_rows(model, iter(reviews[name]), tokens, needed[name]), needed[name], name)
        compressed[name] = enough([text[:MEASURED] for text in test[name] if len(text) >= MEASURED][:fewer], fewer, name)
    for name, file in FILES.items():
        if not (folder / file).is_file():
            raise UserError(f"there is no file {folder / file}", "set BYPASS_DATA to the folder that holds it")
        kept = [text for text in _documents(folder / file, True, measured) if len(text) >= MEASURED]
        count = measured if name == COMPARED else fewer
        compared[name] = enough(started_rows(model, kept, max_tokens=KL_TOKENS)[:count], count, name)
        compressed[name] = [text[:MEASURED] for text in kept[:fewer]]
        trained[name] = enough(_whole_rows(model, _documents(folder / file, False), tokens, needed[name]), needed[name], name)
    return Texts(trained, compared, compressed)


def shuffled_reviews(file: Path) -> dict[str, list[str]]:
    """The reviews of a file by class, in a fixed random order, with line breaks as blanks."""
    texts, labels = read_reviews(file)
    order = np.random.default_rng(SHUFFLE).permutation(len(texts))
    by_class: dict[str, list[str]] = {name: [] for name in CLASSES}
    for place in order:
        by_class[CLASSES[labels[place]]].append(" ".join(texts[place].replace("<br />", " ").split()))
    return by_class


def enough(items: list[Any], count: int, name: str) -> list[Any]:
    """The items. Raises `UserError` where there are fewer than `count`."""
    if len(items) < count:
        raise UserError(
            f"there are {len(items)} texts of {name} that are long enough, and {count} are needed", "take fewer seeds, or more data"
        )
    return items


def _documents(file: Path, kept_apart: bool, most: int | None = None) -> Iterator[str]:
    """The documents of a file that the training chain holds out, or the others, at most so many of them that are long enough."""
    count = 0
    for row in rows(file):
        text = str(row.get("text") or "").strip()
        if held_out(text) == kept_apart:
            short = " ".join(text[:CHARACTERS].split())
            yield short
            count += len(short) >= MEASURED
            if count == most:
                return


def _whole_rows(model: Model, texts: Iterator[str], tokens: int, count: int) -> list[list[int]]:
    """The first `count` rows of exactly `tokens` tokens."""
    start = start_token(model)
    whole: list[list[int]] = []
    batch: list[str] = []
    for text in texts:
        if not text:
            continue
        batch.append(text[:CHARACTERS])
        if len(batch) == BATCH:
            whole += [row for row in started_rows(model, batch, max_tokens=tokens) if len(row) == tokens]
            batch = []
            if len(whole) >= count:
                break
    if batch:
        whole += [row for row in started_rows(model, batch, max_tokens=tokens) if len(row) == tokens]
    assert all(row[0] == start for row in whole)
    return whole[:count]
