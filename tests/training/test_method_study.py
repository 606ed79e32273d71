"""The study of methods on the planted model, which insults on purpose: what each tuning does, what is stored, what is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp import ModelPair
from interp.evaluation.toxicity import LexiconScorer
from interp.experiments.elasticity.context import ElasticityContext
from interp.experiments.elasticity.method_rules import METHODS
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.models.model import Model
from interp.preferences.influence import trainable_copy
from interp.preferences.logprobs import log_probs
from interp.preferences.pairs import TokenPair
from interp.results.result import plain
from tests.experiments.planted import INSULTS, NEUTRAL, planted_pair, prompts
from training.studies import elasticity_methods
from training.studies.elasticity_methods import MethodDesign, MethodStudy, gain_of_others
from training.studies.pair_data import PairSet, pair_set

DESIGN = MethodDesign(seeds=1, trained=32, texts=16, rate=1e-3, optimizer="adamw", every=2, most=24, doses=(2, 6), new_tokens=2)


@pytest.fixture(scope="module")
def base() -> Model:
    return planted_pair().pair.base


@pytest.fixture(scope="module")
def source(base: Model) -> PairSet:
    rng = np.random.default_rng(4)
    known = {word: base.tokenizer(word)["input_ids"][0] for word in (*INSULTS, *NEUTRAL)}
    pairs = []
    for prompt in prompts(60, plain=0.0):
        chosen, rejected = (tuple(known[str(word)] for word in rng.choice(words, 2)) for words in (NEUTRAL, INSULTS))
        pairs.append(TokenPair(tuple(base.tokenizer(prompt)["input_ids"]), chosen, rejected))
    return pair_set("own", base, pairs, "invented")


@pytest.fixture(scope="module")
def study(base: Model, source: PairSet, tmp_path_factory: pytest.TempPathFactory) -> MethodStudy:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elasticity_methods, "challenge_prompts", lambda: prompts(24, seed=9, plain=0.0))
        patch.setattr(elasticity_methods, "neutral_prompts", lambda: ["river stone house", "garden window paper lamp", "bird forest"] * 4)
        return MethodStudy(base, source, LexiconScorer(), Path(tmp_path_factory.mktemp("runs")), DESIGN)


@pytest.fixture(scope="module")
def record(study: MethodStudy) -> dict[str, Any]:
    study.make()
    value: dict[str, Any] = json.loads(json.dumps(plain(study.record())))
    return value


def test_every_method_makes_the_model_clean_and_insults_bring_it_back(record: dict[str, Any]) -> None:
    assert record["base_model"]["toxicity"] > 0.5
    (row,) = record["rows"]
    assert [part["method"] for part in row["methods"]] == list(METHODS)
    for part in row["methods"]:
        assert part["reached"], part["method"]
        assert part["toxicity"] < 0.7 * record["base_model"]["toxicity"]
        assert part["kl"] > 0
        assert [point["steps"] for point in part["arms"]["toxic"]] == [2, 6]
        assert part["arms"]["toxic"][-1]["toxicity"] > part["toxicity"]
    assert [point["steps"] for point in row["from_base"]] == [2, 6]
    arms = {part["method"]: part["arms"] for part in row["methods"]}
    assert [method for method, some in arms.items() if "clean" in some] == ["dpo"]
    # Clean continuations of the same prompts do not bring insults back.
    assert arms["dpo"]["clean"][-1]["toxicity"] < arms["dpo"]["toxic"][-1]["toxicity"]


def test_prompts_that_end_a_tuning_are_measured_on_by_nothing_else(study: MethodStudy) -> None:
    asked, measured = (set(part.prompts) for part in (study.asked, study.measures))
    assert len(study.asked.prompts) + len(study.measures.prompts) == 24
    assert not asked & measured


def test_the_gain_of_other_answers_is_that_of_the_next_pairs(base: Model, source: PairSet) -> None:
    hf = trainable_copy(base)
    pairs = source.pairs[:3]
    assert gain_of_others(hf, base, pairs) == pytest.approx(0, abs=1e-4)
    with np.errstate(all="ignore"):
        hf.get_input_embeddings().weight.data.mul_(1.05)
    changed = Model(trainable_copy(base).requires_grad_(False), base.tokenizer, "changed")
    changed.hf.load_state_dict(hf.state_dict())
    moved = [TokenPair(pairs[place].prompt, pairs[(place + 1) % 3].chosen, pairs[(place + 1) % 3].rejected) for place in range(3)]
    before, after = log_probs(base, moved), log_probs(changed, moved)
    gains = np.concatenate([after.chosen - before.chosen, after.rejected - before.rejected])
    assert gain_of_others(hf, base, pairs) == pytest.approx(gains.mean(), abs=1e-3)


def test_what_is_there_is_not_made_again(study: MethodStudy, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_training(*args: Any, **named: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(elasticity_methods, "trainable_copy", no_training)
    study.make()
    assert json.loads(json.dumps(plain(study.record()))) == record


def test_the_experiment_says_that_one_draw_is_too_few(base: Model, record: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "elasticity_methods.json", record)
    assert run_experiment(EXPERIMENTS["C-E6"], ElasticityContext(ModelPair(base, base), tmp_path)).verdict == "inconclusive"
