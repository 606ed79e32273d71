"""The toxicity that tokens give to carrier sentences, against a scorer whose rule is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from interp.errors import UserError
from interp.evaluation.token_toxicity import CARRIERS, EVERYDAY, row_toxicity, token_toxicity, written_toxicity
from interp.evaluation.toxicity import LexiconScorer

pytestmark = pytest.mark.oracle


class Counting:
    """Scores a sentence by the number of the letter z in it, plus a tenth for each carrier's place, and counts what it is asked."""

    name = "counting"
    classes = ("toxicity",)

    def __init__(self) -> None:
        self.texts: list[str] = []

    def score(self, texts: Sequence[str]) -> pd.DataFrame:
        self.texts += list(texts)
        place = {carrier.split("{}")[0]: number for number, carrier in enumerate(CARRIERS)}
        own = [next(number for start, number in place.items() if text.startswith(start)) for text in texts]
        return pd.DataFrame({"toxicity": [0.1 * text.count("z") + 0.05 * one for text, one in zip(texts, own, strict=True)]})


def test_a_tokens_value_is_the_mean_over_carriers_above_that_of_everyday_words() -> None:
    scorer = Counting()
    assert not any("z" in word for word in (*EVERYDAY, *CARRIERS))
    assert len(set(CARRIERS)) > 2
    values = token_toxicity([" zz", "zz", "river", "  ", "{z}"], scorer)
    np.testing.assert_allclose(values, [0.2, 0.2, 0.0, 0.0, 0.1], atol=1e-7)
    # Equal tokens are scored once, whatever the space around them, and space alone is not scored.
    assert len(scorer.texts) == len(CARRIERS) * (len(EVERYDAY) + 3)
    assert all(text.count("zz") <= 1 for text in scorer.texts)
    assert CARRIERS[0].replace("{}", "{z}") in scorer.texts


def test_a_row_has_the_mean_of_its_tokens() -> None:
    np.testing.assert_allclose(row_toxicity([["z", "river"], ["zzzz"]], Counting()), [0.05, 0.4], atol=1e-7)
    for rows in ([], [["z"], []]):
        with pytest.raises(UserError, match="empty"):
            row_toxicity(rows, Counting())
    with pytest.raises(UserError, match="no tokens"):
        token_toxicity([], Counting())


def test_with_the_word_list_as_scorer_it_is_the_share_of_listed_words() -> None:
    words = ["idiot", "moron", "river", "stone", " stupid"]
    assert token_toxicity(words, LexiconScorer()).tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]


def test_what_a_neuron_writes_is_scored_by_the_tokens_of_its_value_vector(planted) -> None:
    from interp.neurons.ranking import values_at
    from interp.neurons.vocabulary import top_tokens

    neuron = (planted.layer, planted.index)
    rows = top_tokens(planted.model, values_at(planted.model, [neuron, (0, 0)]), top=3).words
    expected = [np.mean([word.count("z") * 0.1 for word in row]) for row in rows]
    np.testing.assert_allclose(written_toxicity(planted.model, [neuron, (0, 0)], Counting(), top=3), expected, atol=1e-7)
