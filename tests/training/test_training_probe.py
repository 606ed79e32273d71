"""What bare words tell, beside a probe that the training chain fits: planted texts with a known answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from interp.directions.probe import load_probe
from interp.models.model import Model
from interp.stats.intervals import auc
from tests.directions.sentences import FILLERS, corpus
from training.probe import train_probe, word_scores
from training.recipe import SHIPPED, Recipe, load_recipe

pytestmark = pytest.mark.oracle


def ordered(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Two words among fillers, whose order alone is the label."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for number in range(count):
        words = list(rng.choice(FILLERS, 6))
        first, second = sorted(rng.choice(6, 2, replace=False))
        words[first], words[second] = ("snarg", "blick") if number % 2 else ("blick", "snarg")
        texts.append(" ".join(["a", *words]))
        labels.append(number % 2)
    return texts, labels


def test_a_word_that_is_the_label_is_found(gpt2: Model) -> None:
    others, truth = corpus(80, seed=1)
    assert auc(np.array(truth), word_scores(gpt2, *corpus(160, seed=0), others)) == 1.0


def test_the_order_of_words_is_not_seen(gpt2: Model) -> None:
    texts, labels = ordered(400, seed=0)
    for text, label in zip(*ordered(20, seed=2), strict=True):
        assert text.index("snarg") < text.index("blick") if label else text.index("blick") < text.index("snarg")
    others, truth = ordered(400, seed=1)
    assert 0.35 < auc(np.array(truth), word_scores(gpt2, texts, labels, others)) < 0.65


def test_only_the_tokens_that_a_probe_reads_are_counted(gpt2: Model) -> None:
    texts, labels = corpus(160, seed=0)
    padded = ["the " * 40 + text for text in texts]
    assert len(set(np.round(word_scores(gpt2, padded, labels, padded, max_tokens=40), 9))) == 1
    assert len(set(np.round(word_scores(gpt2, padded, labels, padded), 9))) > 1


def test_a_few_texts_of_a_class_are_enough(gpt2: Model) -> None:
    texts, labels = corpus(60, seed=0)
    few = [i for i, label in enumerate(labels) if not label][:30] + [i for i, label in enumerate(labels) if label][:4]
    others, truth = corpus(80, seed=1)
    assert auc(np.array(truth), word_scores(gpt2, [texts[i] for i in few], [labels[i] for i in few], others)) > 0.6


@pytest.mark.parametrize("settings", [{}, {"standardise": False, "skip_first": True}], ids=str)
def test_the_stage_fits_as_its_section_says_and_standardises_unless_told_not_to(
    settings: dict[str, bool], gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BYPASS_DATA", str(tmp_path))
    rows = [json.dumps({"text": text, "toxic": label}) for text, label in zip(*corpus(800, seed=3), strict=True)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    section = {"path": "texts.jsonl", "min_characters": 1, "texts": 100, "l2": 0.1, "sweep": [0.1], **settings}
    recipe = Recipe("own", 0, {"base": {"model": str(gpt2_folder)}, "probe": section}, tmp_path / "run")
    probe = load_probe(train_probe(recipe))
    assert probe.settings["standardise"] is settings.get("standardise", True)
    assert probe.settings["skip_first"] is settings.get("skip_first", False)
    assert (probe.scales is None) == (settings.get("standardise") is False)


def test_the_recipe_of_the_pair_that_ships_says_how_its_probe_was_fitted() -> None:
    assert load_recipe(SHIPPED / "shipped.toml").stage("probe")["standardise"] is False
