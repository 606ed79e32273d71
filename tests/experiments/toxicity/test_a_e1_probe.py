"""The rule of A-E1 fails a probe that words alone match, and its controls never see a held-out text while they are fitted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from interp.directions.probe_data import ProbeData, read_data
from interp.experiments.toxicity.a_e1_probe import judge, judge_1
from interp.models.model import Model
from interp.stats.intervals import auc
from tests.directions.sentences import FILLERS, corpus


@pytest.mark.parametrize(
    ("level", "over", "expected"),
    [
        (0.95, [(0.02, 0.04), (0.03, 0.05)], "holds"),
        (0.89, [(0.02, 0.04), (0.03, 0.05)], "inconclusive"),
        (0.95, [(-0.01, 0.03), (0.03, 0.05)], "inconclusive"),
        (0.95, [(-0.01, 0.005), (0.03, 0.05)], "fails"),
        (0.95, [(0.02, 0.04), (-0.03, -0.01)], "fails"),
        (0.95, [], "inconclusive"),
    ],
)
def test_a_probe_that_is_no_better_than_words_fails(level: float, over: list[tuple[float, float]], expected: str) -> None:
    assert judge(level, over) == expected


def test_the_first_version_called_inconclusive_what_its_own_refutation_names() -> None:
    shipped = {"auc": 0.908, "auc_low": 0.896, "auc_high": 0.9207, "embeddings_auc": 0.925, "shuffled_auc": 0.53, "unseen_auc": 0.876}
    assert judge_1(shipped) == "inconclusive"
    # The interval of the difference on the same texts is narrower than either AUC's own, of which this one is made.
    low, high = (shipped[end] - shipped["embeddings_auc"] for end in ("auc_low", "auc_high"))
    assert judge(shipped["unseen_auc"], [(low, high)]) == "fails"


@pytest.fixture(scope="module")
def data(gpt2: Model) -> ProbeData:
    texts, labels = corpus(120, seed=3)
    # One label in five is wrong, so that the strength of the penalty matters.
    rng = np.random.default_rng(0)
    noisy = [1 - label if rng.random() < 0.2 else label for label in labels]
    return read_data(gpt2, texts, noisy, 0.2, 0, 64, 64, 4096)


@pytest.mark.oracle
def test_the_strength_of_every_kind_is_chosen_without_a_held_out_text(data: ProbeData) -> None:
    changed = data.labels.copy()
    changed[data.test] = 1 - changed[data.test]
    other = replace(data, labels=changed)
    for features in (data.features, data.embeddings):
        assert data.best_l2(features, 1.0, 0) == other.best_l2(features, 1.0, 0)
    mine, theirs = data.against_words(1.0, 0), other.against_words(1.0, 0)
    assert mine["chosen_l2"] == theirs["chosen_l2"]
    # With the held-out labels turned round, every AUC is turned round: a control that got the best of several on them would not be.
    for name in ("chosen_auc", "embeddings_auc", "words_auc"):
        assert theirs[name] == pytest.approx(1 - mine[name])


@pytest.mark.oracle
def test_differences_to_the_controls_are_those_of_their_aucs(data: ProbeData) -> None:
    found = data.against_words(1.0, 0)
    for name in ("embeddings", "words"):
        assert found[f"over_{name}"] == pytest.approx(found["chosen_auc"] - found[f"{name}_auc"])
        assert found[f"over_{name}_low"] <= found[f"over_{name}"] <= found[f"over_{name}_high"]
    w = data.fit(data.features, found["chosen_l2"])[0]
    assert found["chosen_auc"] == pytest.approx(auc(data.labels[data.test], data.features[data.test] @ w))


@pytest.mark.oracle
def test_order_is_more_than_words_and_a_word_is_not(gpt2: Model, data: ProbeData) -> None:
    """A feature that says what no bag of words can exceeds both controls, and one that is the bag exceeds neither."""
    rng = np.random.default_rng(1)
    texts = ["a " + " ".join(rng.choice(FILLERS, 6)) for _ in range(400)]
    labels = [int(number % 2) for number in range(400)]
    read = read_data(gpt2, texts, labels, 0.5, 0, 64, 64, 4096)
    informed = replace(read, features=np.hstack([read.features, 3 * read.labels[:, None] + rng.normal(size=(400, 1))]))
    over = informed.against_words(1.0, 0)
    assert judge(over["chosen_auc"], [(over[f"over_{name}_low"], over[f"over_{name}_high"]) for name in ("embeddings", "words")]) == "holds"
    assert judge(1.0, [(data.against_words(1.0, 0)["over_words_low"], 1.0)]) != "holds"
