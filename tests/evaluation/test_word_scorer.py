"""The word scorer against scikit-learn, and its file."""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from interp.errors import UserError
from interp.evaluation.word_scorer import FILE, WordScorer, read_word_scorer, scorer_at, words_of
from training.sentiment import STRENGTH, TEST, TRAIN, fit, held_out, main, read_reviews, scaled

GOOD, BAD, FILLER = ["great", "lovely", "fine"], ["awful", "dull", "poor"], ["film", "plot", "actor", "scene", "music"]


def reviews(count: int, seed: int) -> tuple[list[str], list[int]]:
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(count):
        label = int(rng.integers(2))
        words = [*rng.choice(GOOD if label else BAD, 2), *rng.choice(GOOD + BAD, 1), *rng.choice(FILLER, 12)]
        texts.append(" ".join(rng.permutation(words)))
        labels.append(label)
    return texts, labels


@pytest.mark.oracle
def test_scores_are_scikit_learns() -> None:
    texts, labels = reviews(200, 0)
    scorer = fit(texts, labels, least=1)
    counter = CountVectorizer(analyzer=lambda text: sorted(words_of(text)), binary=True)
    features = scaled(counter.fit_transform(texts).astype(float))
    model = LogisticRegression(C=STRENGTH, max_iter=500).fit(features, labels)
    assert scorer.score(texts)["positive"].to_numpy() == pytest.approx(model.predict_proba(features)[:, 1], abs=1e-3)
    assert all(scorer.weights[word] > 0 for word in GOOD)
    assert all(scorer.weights[word] < 0 for word in BAD)
    assert held_out(scorer, *reviews(200, 1))["reviews"]["value"] > 0.9


def test_words_are_lower_case_runs_of_letters_and_an_unknown_text_scores_the_offset() -> None:
    assert words_of("It\u2019s GREAT, a 10/10 film!") == {"it's", "great", "film"}
    scorer = WordScorer("words", "positive", {"great": 2.0, "dull": -1.0}, 0.5)
    values = scorer.score(["great great", "great dull", "", "nothing known"])["positive"].tolist()
    logits = [2.5, 0.5 + 1 / math.sqrt(2), 0.5, 0.5]
    assert values == pytest.approx([1 / (1 + math.exp(-logit)) for logit in logits], abs=1e-6)
    assert (scorer.classes, scorer.digest == WordScorer("other", "positive", {"dull": -1.0, "great": 2.0}, 0.5).digest) == (
        ("positive",),
        True,
    )


def test_a_scorer_is_trained_out_of_a_folder_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in ((TRAIN, 0), (TEST, 1)):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        rows = [{"text": text, "label": "pos" if label else "neg"} for text, label in zip(*reviews(120, seed), strict=True)]
        file.write_bytes(lzma.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    monkeypatch.setenv("BYPASS_DATA", str(tmp_path))
    assert main(["--out", str(tmp_path / "scorer")]) == 0
    record = json.loads((tmp_path / "scorer" / FILE).read_text())
    assert record["auc"]["reviews"]["value"] > 0.9
    scorer = read_word_scorer(tmp_path / "scorer")
    texts, labels = read_reviews(tmp_path / TRAIN)
    assert scorer.score(texts[:5]).equals(fit(texts, labels).score(texts[:5]))
    assert isinstance(scorer_at(str(tmp_path / "scorer")), WordScorer)
    assert scorer_at("lexicon").name == "lexicon"
    monkeypatch.delenv("BYPASS_DATA")
    assert main(["--out", str(tmp_path / "scorer")]) == 2


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    for record in ({}, {"format": "bypass-word-scorer", "class": "positive", "weights": {"a": "b"}, "offset": 0}):
        (tmp_path / FILE).write_text(json.dumps(record))
        with pytest.raises(UserError, match="is no bypass-word-scorer"):
            read_word_scorer(tmp_path)
    (tmp_path / "reviews.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match="no `text` with `label`"):
        read_reviews(tmp_path / "reviews.jsonl")
