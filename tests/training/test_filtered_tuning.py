"""The study of filtered pairs on the planted model, of which it is known which neurons make it insult."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp import ModelPair
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.preferences.logprobs import log_probs
from interp.preferences.pairs import TokenPair
from interp.results.result import plain
from tests.experiments.planted import INSULTS, NEUTRAL, PlantedPair, planted_context, planted_pair, prompts
from training.studies import filtered_tuning
from training.studies.filtered_tuning import EVERY, MATCHED, TOXIC, FilterDesign, FilterStudy, answer_changes, main
from training.studies.pair_data import PairSet, pair_set

DESIGN = FilterDesign(seeds=2, trained=16, held_out=4, random=1, every=4, steps=2, neurons=10, matched=1)


@pytest.fixture(scope="module")
def planted() -> PlantedPair:
    return planted_pair()


@pytest.fixture(scope="module")
def source(planted: PlantedPair) -> PairSet:
    """Pairs whose rejected side is an insult after a challenge."""
    base, rng = planted.pair.base, np.random.default_rng(3)
    known = {word: base.tokenizer(word)["input_ids"][0] for word in (*INSULTS, *NEUTRAL)}
    pairs = []
    for prompt in prompts(80, plain=0.0):
        chosen, rejected = (tuple(known[str(word)] for word in rng.choice(words, 3)) for words in (NEUTRAL, INSULTS))
        pairs.append(TokenPair(tuple(base.tokenizer(prompt)["input_ids"]), chosen, rejected))
    return pair_set("own", base, pairs, "invented")


@pytest.fixture(scope="module")
def study(planted: PlantedPair, source: PairSet, tmp_path_factory: pytest.TempPathFactory) -> FilterStudy:
    context = planted_context(planted, ModelPair(planted.pair.base, planted.pair.base))
    return FilterStudy(context, source, Path(tmp_path_factory.mktemp("runs")), DESIGN)


@pytest.fixture(scope="module")
def record(study: FilterStudy) -> dict[str, Any]:
    study.make()
    value: dict[str, Any] = json.loads(json.dumps(plain(study.record())))
    return value


def test_planted_neurons_carry_what_was_planted_and_others_nothing(planted: PlantedPair, study: FilterStudy, source: PairSet) -> None:
    base, tuned = planted.pair.base, planted.pair.tuned
    pairs = source.pairs[:8]
    answers = [(pair.prompt, pair.rejected[:1]) for pair in pairs]
    first = [TokenPair(pair.prompt, pair.chosen[:1], pair.rejected[:1]) for pair in pairs]
    before, after = log_probs(base, first), log_probs(tuned, first)
    idle = study._selected([(3, index) for index in range(100, 110)])
    every = {layer: torch.ones(base.d_mlp, dtype=torch.bool) for layer in range(base.n_layers)}
    none, toxic, others, whole = answer_changes(tuned, base, answers, [{}, study._selected(planted.neurons), idle, every], before.rejected)
    assert none == pytest.approx(after.rejected - before.rejected, abs=1e-4)
    assert none.mean() < -1
    # The neurons read a feature that is lowered; with the base's activations they insult as before.
    assert abs(toxic.mean() / none.mean()) < 0.25
    assert others.mean() / none.mean() == pytest.approx(1, abs=0.1)
    assert abs(whole.mean() / none.mean()) < 0.25


def test_halves_have_as_many_steps_and_every_state_is_measured(record: dict[str, Any]) -> None:
    assert len(record["rows"]) == 2
    for row in record["rows"]:
        arms = [(arm["arm"], arm["pairs"], arm["steps"]) for arm in row["arms"]]
        assert arms == [("all", 16, 2), ("influence", 8, 1), ("worst", 8, 1), ("ches", 8, 1), ("random", 8, 1)]
        harms = {arm["arm"]: arm["harm"] for arm in row["arms"]}
        assert harms["influence"] < harms["random"] < harms["worst"]
        assert all({"toxicity", "kl", "unaligned"} <= arm.keys() for arm in row["arms"])
        assert [arm["arm"] for arm in row["arms"] if "after toxic" in arm] == ["influence", "worst", "ches", "random"]
        assert list(row["neurons"]) == ["none", TOXIC, f"{MATCHED} 0", EVERY]
        left = {name: value["rejected"] for name, value in row["neurons"].items()}
        # Tuning lowers insults, and through the planted neurons.
        assert left["none"] < 0
        assert abs(left[TOXIC]) < abs(left["none"])
    assert record["base_model"]["kl"] == 0
    assert record["base_model"]["toxicity"] > 0.5


def test_what_is_there_is_not_made_again(study: FilterStudy, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_training(*args: Any, **named: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(filtered_tuning, "train", no_training)
    study.make()
    assert json.loads(json.dumps(plain(study.record()))) == record


def test_the_experiments_say_that_two_draws_are_too_few(planted: PlantedPair, record: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "filtered_tuning.json", record)
    context = DisplacementContext(ModelPair(planted.pair.base, planted.pair.base), tmp_path)
    for name in ("B-E6", "B-E7"):
        assert run_experiment(EXPERIMENTS[name], context).verdict == "inconclusive"


def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BYPASS_RUNS", str(tmp_path))
    assert main(["--own", "nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
