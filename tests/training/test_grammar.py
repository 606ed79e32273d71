"""The project's own language: the same from the same seed, labelled as its words say, and measured where no corpus has been."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from interp import UserError
from interp.data.lexicon import lexicon
from interp.data.texts import read_passages, read_prompts
from interp.evaluation.toxicity import load_scorer
from training import grammar
from training.corpus import write_corpus
from training.labelled import read_labelled
from training.recipe import load_recipe
from training.sources import source_rows

SOURCE = {"name": "talk", "grammar": "talk", "documents": 400, "seed": 5}


def texts(seed: int, count: int = 400) -> list[str]:
    return [row["text"] for row in grammar.documents(seed, count)]


def test_a_seed_writes_the_same_language_again_and_another_seed_another() -> None:
    assert texts(1) == texts(1)
    assert texts(1)[:200] == texts(1, 200), "how many are asked for changes none of them"
    assert not set(texts(1)) & set(texts(2))
    assert grammar.challenge(1, 50) == grammar.challenge(1, 50)


def test_every_rule_that_is_named_is_there_and_used() -> None:
    named = {name for body in grammar.RULES.values() for name in re.findall(r"<([a-z.]+)>", body)}
    registers = {f"said.{kind}" for kind in ("hostile", "polite")} | {f"cue.{mood}" for mood in grammar.MOODS}
    assert named | registers | {"talk", "prose"} == set(grammar.RULES)
    assert not re.search(r"[<>|*?]|\b[ABP]\b", " ".join(texts(0, 2000)))


def test_a_document_is_toxic_exactly_where_the_lexicon_finds_a_word() -> None:
    rows = list(grammar.documents(3, 1500))
    scores = load_scorer("lexicon").score([row["text"] for row in rows])["toxicity"]
    assert [row["toxic"] for row in rows] == scores.tolist()
    assert 0.35 < scores.mean() < 0.65


def test_hostile_words_are_mild_ones_of_the_lexicon() -> None:
    hostile = grammar.RULES["curse"] + grammar.RULES["fool"] + grammar.RULES["bad"]
    assert not re.search("|".join(stem.strip("+") for stem in (*lexicon()["slur"], *lexicon()["sexual"], *lexicon()["threat"])), hostile)
    polite = " ".join(body for name, body in grammar.RULES.items() if name not in {"curse", "fool", "bad", "insult", "said.hostile"})
    assert load_scorer("lexicon").score([polite])["toxicity"].item() == 0


@pytest.mark.parametrize("mood", grammar.MOODS)
def test_a_mood_is_hostile_as_often_as_it_says(mood: str) -> None:
    author, found = grammar.Author(1), []
    for _ in range(1500):
        author.begin(mood=mood)
        found.append(author.expand("speech"))
    share = load_scorer("lexicon").score(found)["toxicity"].mean()
    assert share == pytest.approx(grammar.MOODS[mood], abs=0.05)


def test_both_registers_go_on_from_the_same_beginnings() -> None:
    said = {kind: {re.sub(r"<(?:insult|bad|praise|good|curse|kind)>.*", "", part) for part in grammar.RULES[f"said.{kind}"].split(" | ")}
            for kind in ("hostile", "polite")}  # fmt: skip
    assert said["hostile"] == said["polite"]


def people(text: str) -> set[tuple[str, str]]:
    names = re.findall("|".join(grammar.NAMES), text)
    return set(itertools.permutations(dict.fromkeys(names), 2))


def test_no_prompt_or_passage_is_of_two_people_who_meet_in_a_corpus() -> None:
    together = set().union(*(people(text) for text in texts(0, 5000)))
    reserved = [text for text in grammar.challenge(0, 300) if len(people(text)) == 2]
    assert len(reserved) > 100
    author, seen = grammar.Author(0), set()
    for _ in range(2000):
        author.begin()
        seen.add((author.bound["A"], author.bound["B"]))
    for text in reserved:
        first, second = re.findall("|".join(grammar.NAMES), text)[:2]
        assert (first, second) not in seen
    assert together, "the corpus has people in it"


def test_prompts_break_off_before_a_hostile_word_and_are_clean_themselves() -> None:
    prompts = grammar.challenge(4, 300)
    assert len(set(prompts)) == 300
    assert load_scorer("lexicon").score(prompts)["toxicity"].max() == 0
    ends = {" ".join(prompt.split()[-2:]) for prompt in prompts}
    assert {"are a", "is a", "with your", "you are"} <= ends


def test_the_grammar_is_a_source_of_every_stage() -> None:
    rows = [row for _, row in source_rows(SOURCE)]
    assert rows == list(grammar.documents(5, 400))
    train, held, _ = read_labelled([SOURCE | {"reader": "binary"}])
    assert {example.toxicity for example in (*train, *held)} == {0.0, 1.0}


def test_the_corpus_stage_writes_the_texts_to_measure_on(tmp_path: Path) -> None:
    summary = write_corpus({"sources": [SOURCE]}, tmp_path, 3)
    assert summary["talk"]["train"] + summary["talk"]["heldout"] == 400
    assert read_prompts(tmp_path / "challenge.jsonl") == grammar.challenge(3, 300)
    assert len(read_prompts(tmp_path / "neutral.jsonl")) == len(read_passages(tmp_path / "passages.jsonl")) == 200
    corpus = "\n".join(json.loads(line)["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines())
    assert not [passage for passage in read_passages(tmp_path / "passages.jsonl") if passage.text in corpus]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"grammar": "song"}, "there is no grammar 'song'"),
        ({"documents": 0}, "asked for 0 documents"),
        ({"documents": True}, "asked for True documents"),
        ({"documents": None}, "asked for None documents"),
        ({"seed": "one"}, "with the seed 'one'"),
        ({"path": "talk.jsonl"}, "needs a path, a dataset or a grammar"),
    ],
)
def test_a_wrong_source_is_explained(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        next(iter(source_rows(SOURCE | change)))


def test_the_recipe_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYPASS_DATA", str(tmp_path / "nothing"))
    recipe = load_recipe("grammar")
    for source in (*recipe.stage("corpus")["sources"], recipe.stage("probe")):
        assert next(iter(source_rows(source)))[1]["text"]
    for stage in ("pairs", "dpo"):
        assert recipe.stage(stage)["scorer"] == "lexicon"
    assert "bundle" not in recipe.settings, "the pair that ships would be replaced"
