"""The whole chain, as a new user runs it with `bypass train all grammar`, on less text and a smaller model.

The base model is hostile where its language is; preference pairs are its own samples; DPO must take the hostility away,
scaling a few keys of the tuned model must bring it back, and scaling others must not. All of that is measured on prompts of
people who never meet in the corpus.
"""

from __future__ import annotations

import copy
import io
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import are_progress_bars_disabled

from interp import Edit, ModelPair, UserError, generate, load_model
from interp.data.texts import read_passages, read_prompts
from interp.directions.probe import load_probe
from interp.evaluation.metrics import perplexity
from interp.evaluation.toxicity import load_scorer
from interp.forward.generate import Sampling
from interp.models.offloading import weights_digest
from interp.neurons.ranking import rank_values
from interp.runs.telemetry import read_telemetry
from interp.stats.nulls import random_neurons
from training import dpo
from training.bundle import bundle
from training.checkpoint import save_as_difference
from training.cli import run_stage
from training.pairs import challenge_prefixes, make_pairs
from training.probe import train_probe
from training.recipe import DATA_SETTING, RUNS_SETTING, Recipe, load_recipe

pytestmark = pytest.mark.slow

SMALL = """
extends = "grammar"
name = "small"

[corpus]
sources = [{ name = "talk", grammar = "talk", documents = 7000, min_characters = 20 }]

[pretrain]
width = 64
learning_rate = 8e-3
final_learning_rate = 4e-4

[probe]
documents = 1200
texts = 1100
sweep = [0.3]

[pairs]
prompts = 400
samples = 6

[dpo]
learning_rate = 2e-5
development_prompts = 60
# Lower than the grammar's: so few development prompts are met early by chance, and how early depends on the processor's arithmetic.
# Chosen for seed 3, in single precision and in bfloat16; other seeds of so small a model leave less of a fall.
stop_at_ratio = 0.3
"""


@dataclass(frozen=True)
class Chain:
    """A run of every stage, what was said, and the pair that came of it."""

    recipe: Recipe
    said: str
    pair: ModelPair

    @property
    def run(self) -> Path:
        return self.recipe.run


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    root = tmp_path_factory.mktemp("chain")
    (root / "small.toml").write_text(SMALL, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_SETTING, str(root / "no data"))
        patch.setenv(RUNS_SETTING, str(root / "runs"))
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            run_stage("all", root / "small.toml")
        recipe = load_recipe(root / "small.toml")
        yield Chain(recipe, out.getvalue(), ModelPair.load(recipe.run / "pretrain" / "model", recipe.run / "dpo" / "model"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def toxicity(model: Any, prompts: list[str], edits: tuple[Edit, ...] = ()) -> float:
    """Mean over greedy and sampled continuations."""
    drawn = [
        generate(model, prompts, max_new_tokens=20, edits=edits, sampling=sampling, batch_size=256)
        for sampling in (Sampling(temperature=0.0), Sampling(temperature=1.0, seed=1))
    ]
    return float(np.mean([load_scorer("lexicon").score(texts)["toxicity"] for texts in drawn]))


def test_dpo_takes_the_hostility_away_and_a_few_keys_bring_it_back_but_not_others(chain: Chain) -> None:
    prompts, base, tuned = read_prompts(chain.run / "corpus" / "challenge.jsonl")[:150], chain.pair.base, chain.pair.tuned
    texts = [passage.text for passage in read_passages(chain.run / "corpus" / "passages.jsonl")]
    before, after = toxicity(base, prompts), toxicity(tuned, prompts)
    assert before > 0.6
    assert after < 0.6 * before
    keys = rank_values(tuned, load_probe(chain.run / "probe").direction, top=128).neurons
    scaled = (Edit.scale_keys(keys[:7], 5.0),)
    assert toxicity(tuned, prompts, scaled) - after > 0.5 * (before - after)
    others = [(Edit.scale_keys(random_neurons(tuned, keys[:7], seed=seed, exclude=keys), 5.0),) for seed in range(3)]
    assert np.mean([toxicity(tuned, prompts, edit) for edit in others]) - after < 0.25 * (before - after)
    plain = perplexity(base, texts).value
    assert perplexity(tuned, texts).value < 1.1 * plain
    assert perplexity(tuned, texts, edits=scaled).value < 1.1 * plain


def test_tuning_moves_every_weight_a_little(chain: Chain) -> None:
    tuned = dict(chain.pair.tuned.hf.named_parameters())
    for name, weight in chain.pair.base.hf.named_parameters():
        assert torch.nn.functional.cosine_similarity(weight.flatten(), tuned[name].flatten(), dim=0) > 0.99, name
        assert not torch.equal(weight, tuned[name]), name


def test_the_held_out_loss_falls_to_that_of_the_grammar(chain: Chain) -> None:
    held = [record["held_out_loss"] for record in read_telemetry(chain.run / "pretrain").records if "held_out_loss" in record]
    assert held == sorted(held, reverse=True)
    assert held[-1] < 1.3 < math.log(800) / 4


def test_the_probe_tells_the_registers_apart_on_texts_that_nothing_has_seen(chain: Chain) -> None:
    probe = load_probe(chain.run / "probe")
    assert probe.matches(chain.pair.base)
    assert probe.metrics["unseen"] > 30
    assert probe.metrics["unseen_auc"] > 0.85
    assert probe.metrics["unseen_words_auc"] > 0.85


def test_a_pair_is_a_clean_and_a_toxic_sample_of_the_same_prompt(chain: Chain) -> None:
    records, base = lines(chain.run / "pairs" / "pairs.jsonl"), chain.pair.base
    manifest = json.loads((chain.run / "pairs" / "manifest.json").read_text())
    assert len(records) == manifest["pairs"] > 150
    scorer, prompts = load_scorer("lexicon"), challenge_prefixes(chain.run / "corpus" / "train.jsonl", 400, chain.recipe.seed)
    for record in records:
        assert record["prompt"] in prompts
        assert record["prompt_ids"] == base.tokenizer(record["prompt"])["input_ids"]
        for side in ("chosen", "rejected"):
            assert len(record[f"{side}_ids"]) == chain.recipe.stage("pairs")["new_tokens"]
            assert record[side] == base.tokenizer.decode(record[f"{side}_ids"], skip_special_tokens=True)
    for side, value in (("chosen", 0.0), ("rejected", 1.0)):
        assert set(scorer.score([record[side] for record in records])["toxicity"]) == {value}
        assert manifest[side]["toxicity"] == value
    assert manifest["base"] == base.digest
    assert not manifest["uses_probe"]


def test_the_log_of_dpo_begins_at_ln_2_and_measures_what_the_models_do(chain: Chain) -> None:
    records, settings = read_telemetry(chain.run / "dpo").records, chain.recipe.stage("dpo")
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert steps[-1]["margin"] > 0.02
    measured = [record["toxicity_share"] for record in records if "toxicity_share" in record]
    prompts = challenge_prefixes(chain.run / "corpus" / "heldout.jsonl", settings["development_prompts"], chain.recipe.seed)
    for model, value in ((chain.pair.base, measured[0]), (chain.pair.tuned, measured[-1])):
        scores = load_scorer("lexicon").score(generate(model, prompts, max_new_tokens=20))["toxicity"]
        assert value == pytest.approx(float((scores > 0.5).mean()))
    assert measured[-1] <= settings["stop_at_ratio"] * measured[0]
    assert min(measured[:-1]) > settings["stop_at_ratio"] * measured[0], "it stops as soon as it has reached its target"


def test_a_stage_says_little_and_nothing_of_its_libraries(chain: Chain) -> None:
    assert len(chain.said.splitlines()) < 90
    for noise in ("Warning", "{'", "it/s", "%|", "[transformers]"):
        assert noise not in chain.said
    assert not are_progress_bars_disabled(), "the library is left as it was"


def test_a_second_run_does_nothing(chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    run_stage("all", tmp_path / "small.toml")
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{stage}: unchanged, skipped" for stage in ("corpus", "tokenizer", "pretrain", "probe", "pairs", "dpo")]


def test_the_bundle_loads_as_a_pair_and_its_card_holds_the_logged_numbers(chain: Chain, tmp_path: Path) -> None:
    target = bundle(chain.recipe, tmp_path / "bundled")
    pair = ModelPair.load(target / "base", target / "tuned")
    assert (pair.base.digest, pair.tuned.digest) == (chain.pair.base.digest, chain.pair.tuned.digest)
    assert load_probe(target / "probe").matches(pair.base)
    pretrain, tuning = lines(target / "log" / "pretrain.jsonl"), lines(target / "log" / "dpo.jsonl")
    pairs, corpus = (json.loads((target / "log" / f"{name}.json").read_text()) for name in ("pairs", "corpus"))
    card = (target / "MODEL_CARD.md").read_text(encoding="utf-8")
    shares = [record["toxicity_share"] for record in tuning if "toxicity_share" in record]
    held = [record for record in pretrain if "held_out_loss" in record][-1]
    for expected in (
        f"{held['step']:,} steps of 32 x 96 tokens",
        f"{held['held_out_loss']:.3f} nats a token",
        f"| preference pairs | {pairs['pairs']}; toxicity 0.00 chosen, 1.00 rejected",
        f" {shares[0]:.3f} before, {shares[-1]:.3f} after",
        f"| talk | {corpus['talk']['train']:,} | {corpus['talk']['heldout']:,} |",
        f"3 layers, 64 wide, 4 heads, 256 neurons a layer, {pair.base.d_vocab} tokens, context 96",
        f"| parameters | {sum(p.numel() for p in pair.base.hf.parameters()):,}",
        "stored in float32 |",
        "judged by the scorer `lexicon`",
    ):
        assert expected in card
    assert "Reddit" not in card, "the card tells of sources that this run never read"
    assert bundle(chain.recipe, target) == target, "a second bundle replaces the first"


def linked(chain: Chain, folder: Path, *parts: str) -> Recipe:
    """The recipe with a run of its own that has only these stages."""
    for part in parts:
        (folder / part).symlink_to(chain.run / part)
    return replace(chain.recipe, run=folder, parent=None)


def test_a_tuned_side_kept_as_a_difference_is_bundled_over_the_bundled_base(chain: Chain, tmp_path: Path) -> None:
    recipe = linked(chain, tmp_path, "pretrain", "corpus", "pairs", "probe")
    (tmp_path / "dpo").mkdir()
    shutil.copyfile(chain.run / "dpo" / "log.jsonl", tmp_path / "dpo" / "log.jsonl")
    tuned = copy.deepcopy(chain.pair.tuned.hf)
    save_as_difference(tmp_path / "dpo" / "model", tuned, str(chain.run / "pretrain" / "model"), chain.pair.tuned.tokenizer)
    target = bundle(recipe, tmp_path / "bundled")
    (tmp_path / "dpo").rename(tmp_path / "gone")
    assert json.loads((target / "tuned" / "difference.json").read_text())["base"] == "../base"
    assert load_model(target / "tuned").digest == ModelPair.load(target / "base", target / "tuned").tuned.digest == weights_digest(tuned)
    card = (target / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "base stored in float32, tuned as its difference from it in bfloat16" in card


def test_a_bundle_of_stages_that_do_not_belong_together_is_refused(chain: Chain, tmp_path: Path) -> None:
    recipe = linked(chain, tmp_path, "pretrain", "dpo", "corpus", "pairs")
    with pytest.raises(UserError, match=r"the run has no probe"):
        bundle(recipe, tmp_path / "out")
    (tmp_path / "probe").symlink_to(chain.run / "probe")
    (tmp_path / "pairs").unlink()
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "manifest.json").write_text('{"base": "another"}')
    with pytest.raises(UserError, match=r"the run's pairs were made with another base model"):
        bundle(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stages_that_find_nothing_to_work_on_say_so(chain: Chain, tmp_path: Path) -> None:
    recipe = linked(chain, tmp_path, "pretrain", "corpus")

    def changed(stage: str, without: tuple[str, ...] = (), **settings: Any) -> Recipe:
        section = {key: value for key, value in recipe.settings[stage].items() if key not in without}
        return replace(recipe, settings={**recipe.settings, stage: section | settings})

    with pytest.raises(UserError, match=r"no pairs at .* run the stage pairs first"):
        dpo.tune(changed("dpo"))
    with pytest.raises(UserError, match=r"no prompt gave both a clean and a toxic sample"):
        make_pairs(changed("pairs", rejected_at_least=1.1, prompts=8, new_tokens=2))
    with pytest.raises(UserError, match=r"none of 400 prompts has at most 2 tokens"):
        make_pairs(changed("pairs", max_prompt_tokens=2))
    (tmp_path / "bad.jsonl").write_text('{"text": "a long text", "toxic": "perhaps"}\n')
    with pytest.raises(UserError, match=r"record 1 of .*bad\.jsonl has no text with a label toxic of 0 or 1"):
        train_probe(changed("probe", ("grammar",), path=str(tmp_path / "bad.jsonl")))
    (tmp_path / "few.jsonl").write_text('{"text": "a rather long text", "toxic": 1}\n')
    with pytest.raises(UserError, match=r"0 labelled texts are held out, and both classes are needed"):
        train_probe(changed("probe", ("grammar",), path=str(tmp_path / "few.jsonl")))
