"""Trains the sentiment scorer that ships, on IMDb reviews: `python -m training.sentiment --out FOLDER`.

The reviews are `sentiment/imdb_train.jsonl.xz` and `imdb_test.jsonl.xz` (`text`, and `label` pos or neg) below the folder that
`BYPASS_DATA` names. A logistic regression on which words a review holds is fitted to the one, and its AUC measured on the other: on
whole reviews, and on pieces of twenty words, which are as long as the continuations that it is used for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, diags
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from interp.data.paper import SETTING
from interp.errors import UserError
from interp.evaluation.word_scorer import FILE, FORMAT, WordScorer, words_of
from interp.files import write_json
from interp.stats.intervals import bootstrap_auc
from training.sources import open_text

TRAIN, TEST = "sentiment/imdb_train.jsonl.xz", "sentiment/imdb_test.jsonl.xz"
# Words in fewer reviews are left out, and of the others so many at most are kept; the inverse strength of the ridge penalty.
LEAST_REVIEWS, MOST_WORDS, STRENGTH = 20, 8000, 1.0
PIECE = 20


def read_reviews(file: Path, most: int | None = None) -> tuple[list[str], list[int]]:
    """The texts of a file of reviews and whether each is positive. Raises `UserError` for a file without them."""
    fix = f"set {SETTING} to a folder with {TRAIN} and {TEST}, of rows with `text`, and `label` pos or neg"
    if not file.is_file():
        raise UserError(f"there is no file {file}", fix)
    texts, labels = [], []
    with open_text(file) as stream:
        for number, line in enumerate(stream, 1):
            row = json.loads(line)
            if row.get("label") not in ("pos", "neg") or not isinstance(row.get("text"), str):
                raise UserError(f"{file}, line {number} has no `text` with `label` pos or neg", fix)
            texts.append(row["text"])
            labels.append(int(row["label"] == "pos"))
            if len(texts) == most:
                break
    return texts, labels


def fit(texts: Sequence[str], labels: Sequence[int], *, least: int = LEAST_REVIEWS) -> WordScorer:
    """A word scorer fitted to texts and whether each is positive."""
    counter = CountVectorizer(analyzer=lambda text: sorted(words_of(text)), binary=True, min_df=least, max_features=MOST_WORDS)
    features = scaled(counter.fit_transform(texts).astype(np.float64))
    model = LogisticRegression(C=STRENGTH, max_iter=500).fit(features, labels)
    weights = {str(word): round(float(model.coef_[0, place]), 4) for word, place in counter.vocabulary_.items()}
    return WordScorer("sentiment (words)", "positive", dict(sorted(weights.items())), round(float(model.intercept_[0]), 4))


def scaled(features: csr_matrix) -> csr_matrix:
    """Each row over the square root of how many words it holds."""
    counts = np.asarray(features.sum(axis=1)).ravel()
    return csr_matrix(diags(1 / np.sqrt(np.maximum(counts, 1))) @ features)


def held_out(scorer: WordScorer, texts: Sequence[str], labels: Sequence[int]) -> dict[str, Any]:
    """The AUC with its interval on whole texts, and on a piece of twenty words out of the middle of each."""
    pieces = []
    for text in texts:
        words = text.split()
        start = max(0, (len(words) - PIECE) // 2)
        pieces.append(" ".join(words[start : start + PIECE]))
    return {name: bootstrap_auc(labels, scorer.score(some)["positive"].to_numpy(), draws=500).to_json()
            for name, some in (("reviews", texts), (f"pieces of {PIECE} words", pieces))}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; bad input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser("python -m training.sentiment", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        if SETTING not in os.environ:
            raise UserError(f"{SETTING} names no folder of data", f"set it to a folder with {TRAIN} and {TEST}")
        folder = Path(os.environ[SETTING])
        texts, labels = read_reviews(folder / TRAIN)
        scorer = fit(texts, labels)
        measured = held_out(scorer, *read_reviews(folder / TEST))
    except UserError as error:
        sys.stderr.write(f"sentiment: {error}\n")
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"format": FORMAT, "name": scorer.name, "class": "positive", "trained_on": f"{len(texts)} IMDb reviews", "auc": measured,
              "offset": scorer.offset, "weights": scorer.weights}  # fmt: skip
    write_json(options.out / FILE, record)
    sys.stdout.write(f"{options.out / FILE}: {json.dumps(measured)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
