"""The study of refusals: what is taught, which pairs are made, what each way of tuning reads, and that it goes on where it stopped."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp import Model, UserError
from interp.data.requests import labelled_answers, requests, task_requests
from interp.experiments.displacement.refusal_rules import ALIKE, ALL, ARMS, BEFORE, FEW_STEPS, GOLD, HIGH, LOW, MIXED, RANDOM, WITH_SFT
from interp.models import tokens
from interp.models.tokens import decoded_rows
from interp.preferences.text_level import refuses
from training.filters import BATCH
from training.studies import refusal_task
from training.studies.refusal_task import ANSWERING, REFUSING, SPLITS, RefusalDesign, RefusalStudy

DESIGN = RefusalDesign(seeds=2, epochs=4, rate=1e-3, pairs=2, share=0.25, random=2, samples=4, new_tokens=6, judged_tokens=4)


@pytest.fixture(scope="module")
def study(gpt2: Model, tmp_path_factory: pytest.TempPathFactory) -> RefusalStudy:
    """Five requests of each kind and split, asked of the tiny model in few tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refusal_task, "task_requests", lambda kind, split: [text[:12] for text in task_requests(kind, split)[:5]])
        patch.setattr(refusal_task, "PLAIN", "{request}:")
        return RefusalStudy(gpt2, Path(tmp_path_factory.mktemp("runs")), DESIGN)


@pytest.fixture(scope="module")
def record(study: RefusalStudy) -> dict[str, Any]:
    study.make()
    return study.record()


def test_the_task_has_its_requests_and_none_twice() -> None:
    every = {(kind, split): task_requests(kind, split) for kind, split in SPLITS}
    assert {place: len(texts) for place, texts in every.items()} == {
        ("unsafe", "train"): 60, ("unsafe", "held-out"): 20, ("benign", "train"): 30, ("benign", "held-out"): 10,
    }  # fmt: skip
    texts = [text for some in every.values() for text in some]
    assert len({*texts, *requests("unsafe"), *requests("benign")}) == 120 + 36
    assert max(map(len, texts)) < 90


def test_the_rule_tells_the_fixed_words_apart_and_most_of_the_labelled_answers() -> None:
    assert all(map(refuses, REFUSING))
    assert not any(map(refuses, ANSWERING))
    labelled = labelled_answers()
    assert len({text for text, _ in labelled}) == len(labelled) == 60
    assert sum(label for _, label in labelled) == 30
    # Many of them are hard on purpose: refusals in other words, and answers that begin as refusals do. docs/pairs.md has this number.
    assert sum(refuses(text) == label for text, label in labelled) == 46


def test_a_request_is_refused_always_or_never(study: RefusalStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: Counter[tuple[int, ...]] = Counter()
    fixed = [tuple(row) for row in study._answers(REFUSING)]

    def pad(rows: list[list[int]], *rest: Any) -> Any:
        refused.update(tuple(row[: -len(words)]) for row in rows for words in fixed if tuple(row[-len(words) :]) == words)
        return tokens.pad(rows, *rest)

    monkeypatch.setattr(refusal_task, "pad", pad)
    study.taught(3)
    # Four of the five unsafe requests, in every epoch.
    assert sorted(refused.values()) == [DESIGN.epochs] * 4
    assert set(refused) <= {tuple(prompt) for prompt in study.prompts["unsafe train"]}


def test_pairs_are_the_models_own_answers_with_the_refusal_preferred(study: RefusalStudy) -> None:
    model = study.taught(0)
    pairs, refused = study.pairs(model, 0)
    assert len(pairs) == 2 * 5
    end = model.tokenizer.eos_token_id
    for pair, sides in zip(pairs, refused, strict=True):
        chosen, rejected = (refuses(text) for text in decoded_rows(model, [pair.chosen, pair.rejected]))
        assert chosen + rejected == sides
        assert chosen or not rejected
        assert all(side[-1] == end or len(side) == DESIGN.new_tokens for side in (pair.chosen, pair.rejected))
        assert list(pair.prompt) in study.prompts["unsafe train"]


def test_every_way_of_tuning_reads_what_its_name_says(study: RefusalStudy) -> None:
    model = study.taught(0)
    pairs, _ = study.pairs(model, 0)
    # As if half of the pairs were mixed: the arms read what they are told of each pair.
    refused = [1, 2] * (len(pairs) // 2)
    scores = np.arange(len(pairs), dtype=float)[::-1].copy()
    scores[3] = np.nan
    by_name: dict[str, list[tuple[list[Any], str]]] = {}
    sizes = {}
    for name, some, loss, batch in study.arms(pairs, refused, scores, 0):
        by_name.setdefault(name, []).append((some, loss))
        sizes[name] = batch
    assert set(by_name) == set(ARMS) - {BEFORE}
    few = round(DESIGN.share * len(pairs))
    assert by_name[ALL][0] == (pairs, "dpo")
    assert by_name[WITH_SFT][0] == (pairs, "dpo+sft")
    assert by_name[LOW][0][0] == pairs[-few:]
    assert by_name[HIGH][0][0] == pairs[:few]
    assert all(refused[pairs.index(pair)] == 1 for pair in by_name[MIXED][0][0])
    assert all(refused[pairs.index(pair)] != 1 for pair in by_name[ALIKE][0][0])
    assert [len(some) for some, _ in by_name[RANDOM]] == [few, few]
    # All pairs in the one step that a filter leaves.
    assert by_name[FEW_STEPS][0] == (pairs, "dpo")
    assert sizes.pop(FEW_STEPS) == len(pairs)
    assert set(sizes.values()) == {BATCH}
    gold = by_name[GOLD][0][0]
    assert all(map(refuses, decoded_rows(model, [pair.chosen for pair in gold])))
    assert [pair.rejected for pair in gold] == [pair.rejected for pair in pairs]


def test_a_mixed_pair_that_is_always_lower_has_an_area_of_one() -> None:
    scores = np.array([0.1, 0.5, 0.2, 0.9, np.nan])
    assert refusal_task.mixed_lower(scores, np.array([True, False, True, False, True])) == 1
    assert refusal_task.mixed_lower(scores, np.array([False, True, False, True, False])) == 0
    assert np.isnan(refusal_task.mixed_lower(scores, np.zeros(5, dtype=bool)))


def test_a_row_has_every_way_and_every_split_and_a_study_goes_on(study: RefusalStudy, record: dict[str, Any]) -> None:
    assert [row["seed"] for row in record["rows"]] == [0, 1]
    for row in record["rows"]:
        assert [arm["arm"] for arm in row["arms"]] == [
            BEFORE, ALL, WITH_SFT, GOLD, LOW, HIGH, MIXED, ALIKE, RANDOM, RANDOM, FEW_STEPS
        ]  # fmt: skip
        assert sum(row["types"].values()) == 10
        assert all(0 <= arm[f"{kind} {split}"] <= 1 for arm in row["arms"] for kind, split in SPLITS)
    said: list[str] = []
    study.say = said.append
    study._row(1).unlink()
    study.make()
    assert said[1] == "seed 1 of 2"
    assert not any(line.startswith("seed 0") for line in said)
    assert study.record() == record


def test_a_tokenizer_without_an_end_is_refused(gpt2: Model, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(gpt2.tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end token"):
        RefusalStudy(Model(gpt2.hf, tokenizer, "endless"), tmp_path)
