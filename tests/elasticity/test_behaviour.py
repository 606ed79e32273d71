"""Behaviours against what they are defined by, and the guard on what no longer speaks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from interp.data.texts import passages
from interp.elasticity.behaviour import RefusalScore, ScorerColumn, TextBehaviour, WordOdds, read_word_odds
from interp.elasticity.fluency import Fluency, fluency, speaks
from interp.elasticity.measurement import Measurement, Reference, measure
from interp.elasticity.undo_texts import HELD_OUT, WORDS, benign_texts, divide, held_out_texts, neutral_texts
from interp.errors import UserError
from interp.forward.generate import generate_tokens
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.results.result import plain

OPENINGS = ["the river", "a stone walks", "never with"]
PAIRS = [(" blorp", " snarg"), (" river", " stone")]


class LengthScorer:
    """The length of a text, as a scorer."""

    name, classes, digest = "length", ("toxicity",), "length"

    def score(self, texts: Sequence[str]) -> pd.DataFrame:
        return pd.DataFrame({"toxicity": [float(len(text)) for text in texts]})


@pytest.mark.oracle
def test_word_odds_are_those_of_plain_transformers(any_model: Model) -> None:
    reading = WordOdds(OPENINGS, PAIRS, new_tokens=3).read(any_model)
    for place, text in enumerate(OPENINGS):
        with torch.no_grad():
            logps = any_model.hf(torch.tensor([any_model.tokenizer(text)["input_ids"]])).logits[0, -1].double().log_softmax(-1)
        odds = [float(logps[any_model.token(one)] - logps[any_model.token(other)]) for one, other in PAIRS]
        assert reading.score[place] == pytest.approx(np.mean(odds), abs=1e-4)
    assert len(reading.continuations) == 3


def test_texts_are_scored_by_both_scores_and_refusals_by_how_they_begin(gpt2: Model) -> None:
    behaviour = TextBehaviour(OPENINGS, ScorerColumn(LengthScorer()), RefusalScore(), new_tokens=4)
    reading = behaviour.read(gpt2)
    texts = [gpt2.tokenizer.decode(row, skip_special_tokens=True) for row in reading.continuations]
    assert reading.score.tolist() == [len(text) for text in texts]
    assert reading.second is not None
    assert reading.second.tolist() == [0.0] * 3
    assert RefusalScore().of(["I\u2019m sorry, but no.", "Sure, here", " As an AI, I"]).tolist() == [1.0, 0.0, 1.0]
    assert behaviour.settings() != TextBehaviour(OPENINGS[:2], ScorerColumn(LengthScorer()), RefusalScore(), new_tokens=4).settings()


def test_a_file_of_word_pairs_is_read_strictly(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"openings": ["the"], "pairs": [["blorp", "snarg"]]}))
    assert (read_word_odds(file).prompts, read_word_odds(file).pairs) == (["the"], [("blorp", "snarg")])
    for content in ("[]", "{", '{"openings": [], "pairs": [["a", "b"]]}', '{"openings": ["a"], "pairs": [["a"]]}'):
        file.write_text(content)
        with pytest.raises(UserError):
            read_word_odds(file)
    assert len(read_word_odds(WORDS).prompts) == 8


@pytest.mark.oracle
def test_the_perplexity_of_continuations_is_given_their_prompts(gpt2: Model) -> None:
    rows = [gpt2.tokenizer(text)["input_ids"] for text in OPENINGS]
    continuations = generate_tokens(gpt2, rows, max_new_tokens=5)
    nats, count = 0.0, 0
    for prompt, new in zip(rows, continuations, strict=True):
        with torch.no_grad():
            logps = gpt2.hf(torch.tensor([[*prompt, *new]])).logits[0].double().log_softmax(-1)
        nats -= sum(float(logps[len(prompt) - 1 + place, token]) for place, token in enumerate(new))
        count += len(new)
    assert fluency(gpt2, rows, continuations).perplexity == pytest.approx(math.exp(nats / count), rel=1e-4)
    silent = fluency(gpt2, rows, [[], [], []])
    assert (math.isnan(silent.perplexity), silent.share_empty) == (True, 1.0)
    assert fluency(gpt2, rows, [continuations[0], [], []]).share_empty == pytest.approx(2 / 3)


def test_a_model_speaks_as_long_as_its_continuations_read_like_the_references() -> None:
    reference = [Fluency(20.0, 0.8, 0.05), Fluency(25.0, 0.7, 0.1)]
    assert speaks(Fluency(40.0, 0.6, 0.2), reference)
    for broken in (Fluency(500.0, 0.8, 0.0), Fluency(10.0, 0.1, 0.0), Fluency(20.0, 0.8, 0.6), Fluency(math.nan, math.nan, 1.0)):
        assert not speaks(broken, reference)
    # A pair whose own answers are empty is held to nothing that it does not do itself.
    assert speaks(Fluency(math.nan, math.nan, 1.0), [Fluency(20.0, 0.8, 0.9)])


def test_a_measurement_survives_its_file_and_base_has_no_divergence_from_itself(pair: ModelPair) -> None:
    behaviour = WordOdds(OPENINGS, PAIRS, new_tokens=3)
    reference = Reference(pair, behaviour, ["the river walks", "a quick stone sings"], {"neutral": ["under the river"]})
    measured = measure(pair.base, reference)
    assert measured.kl_base.max() == 0
    assert measured.kl_tuned.min() > 0
    again = Measurement.from_json(json.loads(json.dumps(plain(measured.to_json()), allow_nan=False)))
    for name in ("score", "kl_tuned", "kl_tuned_prompts", "kl_base_position"):
        assert np.array_equal(getattr(again, name), getattr(measured, name))
    assert (again.second, again.bits_per_byte) == (None, measured.bits_per_byte)
    assert plain(again.fluency.to_json()) == plain(measured.fluency.to_json())


def test_the_texts_of_the_arms_are_apart_and_plain() -> None:
    trained, held_out = neutral_texts(), held_out_texts()
    assert (len(trained), len(held_out)) == (110 - HELD_OUT, 2 * HELD_OUT)
    assert not set(trained) & set(held_out)
    assert set(held_out) <= {passage.text for passage in passages()}
    benign = benign_texts()
    assert len(set(benign)) == len(benign) >= 60
    assert all(text.startswith("Question: ") and "\nAnswer: " in text for text in benign)


def test_a_file_is_divided_once_and_a_small_one_not_at_all() -> None:
    texts = [f"text {n}" for n in range(100)]
    division = divide([*texts, texts[0]])
    assert (len(division.trained), len(division.held_out)) == (90, 10)
    assert sorted([*division.trained, *division.held_out]) == sorted(texts)
    assert divide(texts) == division
    assert divide(texts[:5]).held_out == ()
    assert len(divide([f"text {n}" for n in range(1000)]).held_out) == 12
