"""Experiments on an invented folder of the paper's layout: which sets they run on, how they read it, and that no text is kept."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interp.data.paper import PaperTexts
from interp.data.texts import Passage
from interp.errors import UserError
from interp.evaluation.last_states import joined_windows
from interp.evaluation.metrics import perplexity
from interp.experiments import registry
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.make import make_context
from interp.experiments.toxicity.paper import CHALLENGE, EXPERIMENTS_ON, LENS, MOST_PROMPTS, PROMPT_TOKENS, TOXIC, run_on_paper, spread
from interp.forward.generate import continued_with, generate_tokens
from interp.models.pair import ModelPair
from interp.models.tokens import token_rows
from tests.probes import shared_probe

WORDS = ["river", "stone", "green", "light", "house", "walks", "under", "over", "seven", "birds"]


def sentences(count: int, seed: int, length: int = 8) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, length)) for _ in range(count)]


def passages(count: int) -> list[Passage]:
    return [Passage(text[:20], text[20:], "wikitext") for text in sentences(count, 1)]


TEXTS = PaperTexts(sentences(5, 0), sentences(4, 2), sentences(3, 3), passages(6))


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> list[ToxicityContext]:
    """Two experiments with ids of paper A in place of the real ones; returns the contexts that they were run on."""
    seen: list[ToxicityContext] = []
    monkeypatch.setattr(registry, "EXPERIMENTS", {})

    @experiment("A-E9", claim="A-C6", title="t", question="q?", criterion="Holds if", caveat="v")
    def mean(context: ToxicityContext) -> Finding:
        seen.append(context)
        table = pd.DataFrame({"prompt": context.prompts})
        count = float(len(context.prompts))
        return Finding("holds", f"First: {context.prompts[0]}", {"n": count}, {"n": 0.0}, {}, {"prompts": table}, (), sentence="Counted.")

    @experiment("A-E4", claim="A-C3", title="t", question="q?", criterion="Holds if", caveat="v")
    def refuses(context: ToxicityContext) -> Finding:
        raise UserError("too few prompts", "give more")

    return seen


def make(pair: ModelPair) -> partial[ToxicityContext]:
    texts = sentences(40, 9)
    probe = shared_probe(pair.base, texts, [int("river" in text) for text in texts])
    return partial(make_context, pair, probe=probe, scorer="lexicon")


def test_each_experiment_runs_on_its_sets_and_statistics_alone_are_kept(
    pair: ModelPair, tmp_path: Path, invented: list[ToxicityContext]
) -> None:
    sets = run_on_paper(TEXTS, make(pair), tmp_path)
    assert [(item.name, item.count) for item in sets] == [(CHALLENGE, 5), (LENS, 4), (TOXIC, 3)]
    assert [[result.id for result in item.results] for item in sets] == [["A-E9"], [], ["A-E9"]]
    assert "too few prompts" in sets[1].left_out["A-E4"]
    assert [context.prompts for context in invented] == [TEXTS.challenge, TEXTS.toxic]
    assert all((context.joined, context.prompt_tokens) == (True, PROMPT_TOKENS) for context in invented)
    result = sets[0].results[0]
    assert (result.statistic, result.tables, result.summary) == ({"n": 5.0}, {}, "Counted.")
    record = json.dumps([item.to_json() for item in sets])
    assert not [text for text in (*TEXTS.challenge, *TEXTS.toxic) if text in record]
    assert run_on_paper(TEXTS, make(pair), tmp_path, only=["A-E4"])[0].name == LENS


def test_every_experiment_named_for_the_papers_prompts_is_one() -> None:
    assert {id for ids in EXPERIMENTS_ON.values() for id in ids} <= registry.EXPERIMENTS.keys()


def test_long_sets_are_thinned_evenly() -> None:
    assert spread([str(number) for number in range(10)], 4) == ["0", "2", "5", "7"]
    assert spread(["a", "b"], MOST_PROMPTS) == ["a", "b"]


def test_joined_perplexity_is_that_of_one_text_and_its_states_predict_every_token_once(pair: ModelPair) -> None:
    long = passages(40)
    context = make(pair)(prompts=sentences(3, 4), passages=long, joined=True)
    texts = [passage.text for passage in long]
    joined, apart = (perplexity(pair.base, texts, joined=value).value for value in (True, False))
    assert context.perplexity(pair.base).value == joined != apart
    assert context.settings()["joined"] is True
    states, targets = context.final_states(pair.base)
    windows = joined_windows(pair.base, texts, 60)
    assert len(windows) > 1
    assert all(first[-1] == second[0] for first, second in pairwise(windows))
    assert len(states) == len(targets) == sum(len(row) - 1 for row in windows)


def test_only_prompts_that_the_base_model_continues_with_the_token_are_kept(pair: ModelPair) -> None:
    prompts = sentences(30, 5)
    firsts = [row[0] for row in generate_tokens(pair.base, token_rows(pair.base, prompts), max_new_tokens=1, stop_at_end=False)]
    token = max(set(firsts), key=firsts.count)
    word = pair.base.tokenizer.decode([token])
    expected = [prompt for prompt, first in zip(prompts, firsts, strict=True) if first == token]
    assert continued_with(pair.base, prompts, word) == expected
    assert make(pair)(prompts=prompts, passages=passages(3), next_token=word).prompts == expected
    with pytest.raises(UserError, match="tokens of this model"):
        continued_with(pair.base, prompts, "river stone green")
    other = next(number for number in range(20, 200) if number not in firsts)
    with pytest.raises(UserError, match="continues none of 30 prompts"):
        continued_with(pair.base, prompts, pair.base.tokenizer.decode([other]))


def test_the_second_scorer_is_chosen_or_left_out(pair: ModelPair) -> None:
    texts = {"prompts": sentences(3, 4), "passages": passages(3)}
    assert make(pair)(**texts).second is None  # the first is the word list
    assert make(pair)(**texts, second_scorer="none").second is None
    with pytest.raises(UserError, match="there is no scorer folder nowhere"):
        make(pair)(**texts, second_scorer="nowhere")
