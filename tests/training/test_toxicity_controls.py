"""The table of control runs says of each run what its weights and logs say, and names what is missing."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from interp import Edit, Model, ModelPair, UserError, capture, editing, generate
from interp.data.texts import Passage
from interp.evaluation.metrics import perplexity
from interp.evaluation.toxicity import LexiconScorer
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.offset_paths import FIELD
from interp.neurons.ranking import rank_values
from interp.patching.vector_paths import VECTOR_PATHS
from interp.runs.logs import controls_if_any, read_controls
from tests.conftest import save
from tests.probes import shared_probe
from training.bundle import bundle
from training.recipe import RUNS_SETTING, Recipe, load_recipe
from training.studies.toxicity_controls import control_table, controls_of, main

PLAN = """
name = "plan"
seed = 5

[pretrain]
context = 64

[pairs]
generator = "best-worst"

[dpo]
loss = "sigmoid"
beta = 0.1
optimizer = "rmsprop"
learning_rate = 1e-4
warmup_steps = 2
batch = 4
clip = 10.0
max_steps = 9
evaluate_every = 2
"""
CONTROLS = {
    "sft": 'method = "sft"\nequal_steps = true',
    "shuffled": 'labels = "shuffled"\nequal_steps = true',
    "ipo": 'loss = "ipo"\nbeta = 0.2',
    "stale": "seed = 9",
}
NEURONS = [(1, 4), (2, 7)]


def changed(folder: Path, target: Path, tokenizer: PreTrainedTokenizerBase, size: float, seed: int) -> Path:
    """A copy of a model with noise on the value vectors of some neurons of each layer, and of planted ones far more."""
    hf = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer, block in enumerate(hf.transformer.h):
            values = block.mlp.c_proj.weight
            values.add_(size * torch.randn(values.shape, generator=generator))
            for at, unit in NEURONS:
                if at == layer:
                    values[unit] += 40 * size * torch.randn(values.shape[1], generator=generator)
    return save(hf, tokenizer, target)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_folder: Path, gpt2: Model, tokenizer: PreTrainedTokenizerBase) -> Recipe:
    monkeypatch.setenv(RUNS_SETTING, str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text(PLAN, encoding="utf-8")
    for name, change in CONTROLS.items():
        (tmp_path / f"{name}.toml").write_text(f'extends = "plan"\n\n[dpo]\n{change}\n', encoding="utf-8")
    (tmp_path / "unrelated.toml").write_text(PLAN.replace('"plan"', '"unrelated"'), encoding="utf-8")
    found = load_recipe(tmp_path / "plan.toml")
    shutil.copytree(gpt2_folder, found.run / "pretrain" / "model")
    (found.run / "pairs").mkdir(parents=True)
    (found.run / "pairs" / "manifest.json").write_text(json.dumps({"base": gpt2.digest, "generator": "file", "uses_probe": False}))
    for seed, (name, size) in enumerate({"plan": 0.01, "sft": 0.03, "stale": 0.01}.items()):
        folder = load_recipe(tmp_path / f"{name}.toml").run / "dpo"
        changed(gpt2_folder, folder / "model", tokenizer, size, seed)
        log = [
            {"step": 0, "toxicity": 0.5, "perplexity": 20.0},
            {"step": 4, "toxicity": 0.3, "perplexity": 21.0},
            {"step": 8, "toxicity": 0.1},
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps({"kept_step": 4, "base": "other" if name == "stale" else gpt2.digest}))
    return found


@pytest.fixture
def context(pair: ModelPair) -> ToxicityContext:
    rng = np.random.default_rng(0)
    words = ["river", "stone", "green", "idiot", "house", "walks", "under"]
    texts = [" ".join(rng.choice(words, 8)) for _ in range(40)]
    probe = shared_probe(pair.base, texts, [int("river" in text) for text in texts])
    held = [Passage(text[:20], text[20:], "post") for text in texts[:6]]
    return ToxicityContext(pair, probe, LexiconScorer(), texts[6:14], held, draws=2, new_tokens=4)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_row_says_what_the_weights_and_the_logs_say(recipe: Recipe, context: ToxicityContext, tmp_path: Path) -> None:
    table = read(control_table(recipe, ["sft", "shuffled", "ipo", "stale"], tmp_path / "controls.json", context=context))
    rows = {row["run"]: row for row in table["runs"]}
    assert list(rows) == ["plan", "sft"]
    assert table["missing"] == {
        "shuffled": "it has not run", "ipo": "it has not run", "stale": "it was tuned from another base model: run it again",
    }  # fmt: skip
    assert (rows["plan"]["method"], rows["plan"]["loss"], rows["plan"]["beta"], rows["plan"]["equal_steps"]) == (
        "dpo",
        "sigmoid",
        0.1,
        False,
    )
    assert (rows["sft"]["method"], rows["sft"]["beta"], rows["sft"]["equal_steps"]) == ("sft", None, True)
    assert rows["plan"]["steps"] == 4
    assert (rows["plan"]["development_toxicity_before"], rows["plan"]["development_toxicity_after"]) == (0.5, 0.3)
    assert rows["plan"]["development_perplexity_after"] == 21.0
    assert (rows["plan"]["generator"], rows["plan"]["uses_probe"]) == ("file", False)
    for name, row in rows.items():
        pair = ModelPair.load(recipe.run / "pretrain" / "model", load_recipe(tmp_path / f"{name}.toml").run / "dpo" / "model")
        check(row, pair, replace(context, pair=pair))
    assert table["base"] == context.pair.base.digest
    assert table["tuned"] == rows["plan"]["digest"] != rows["sft"]["digest"]


def check(row: dict[str, Any], pair: ModelPair, context: ToxicityContext) -> None:
    """Each number again, by the plainest way to it."""
    before, after = (dict(side.hf.named_parameters()) for side in (pair.base, pair.tuned))
    moved = sum(float((after[name] - before[name]).double().square().sum()) for name in before)
    size = sum(float(tensor.double().square().sum()) for tensor in before.values())
    assert row["relative_change"] == pytest.approx(math.sqrt(moved / size), rel=1e-6)
    assert row["digest"] == pair.tuned.digest
    changes = [float((after[n] - before[n]).norm() / before[n].norm()) for n in before if n.endswith("mlp.c_proj.weight")]
    assert row["groups"]["mlp value"] == pytest.approx(np.mean(changes), rel=0.2)
    assert row["groups"]["mlp key"] == row["groups"]["embedding"] == 0
    assert len(row["layers"]) == pair.base.n_layers
    assert min(row["layers"]) > 0
    text = generate(pair.tuned, context.prompts, max_new_tokens=4)
    assert row["toxicity"] == pytest.approx(float(LexiconScorer().score(text)["toxicity"].mean()))
    assert row["perplexity"] == pytest.approx(perplexity(pair.tuned, [passage.text for passage in context.passages]).value, rel=1e-4)
    edit = Edit.scale_keys(rank_values(pair.tuned, context.direction, top=7).neurons, 10.0)
    with editing(pair.tuned, [edit]):
        assert row["unaligned_perplexity"] == pytest.approx(perplexity(pair.tuned, [p.text for p in context.passages]).value, rel=1e-4)
    site = f"resid_mid.{context.offset_layer}"
    shift = (capture(pair.tuned, context.prompts, [site])[site] - capture(pair.base, context.prompts, [site])[site]).double()
    cosines = torch.nn.functional.cosine_similarity(shift[:, None], shift[None], dim=2)
    off = ~torch.eye(len(shift), dtype=torch.bool)
    assert row["consistency"] == pytest.approx(float(cosines[off].mean()), abs=1e-4)
    assert row["kl"] > 0
    assert row["kl_low"] <= row["kl"] <= row["kl_high"]


def test_only_null_runs_have_the_effects_of_their_offset_and_only_where_there_is_a_gap(
    recipe: Recipe, context: ToxicityContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read(control_table(recipe, ["sft"], tmp_path / "controls.json", context=context))
    assert [FIELD in row for row in table["runs"]] == [False, True]
    assert table["runs"][1][FIELD] == [], "noise lowers no toxicity of a model that never wrote any"
    lowered = {"plan": 0.2, "base": 0.8}
    monkeypatch.setattr(ToxicityContext, "toxicity", lambda self, model, edits=(): _scores(self, model, edits, table, lowered))
    rows = read(control_table(recipe, ["sft"], tmp_path / "controls.json", context=replace(context)))["runs"][1][FIELD]
    own = [row for row in rows if not row["scaled"]]
    # Only MLPs differ, so nothing has moved before the first one, and there is no offset there.
    layers = range(1, context.pair.base.n_layers)
    assert len(own) == len(layers) * 2 * 3
    assert {(row["side"], row["layer"], row["path"]) for row in own} == {
        (side, layer, path) for side in ("base", "tuned") for layer in layers for path in VECTOR_PATHS
    }
    # Half of the way on either side, as planted.
    assert {round(row["share"], 6) for row in rows} == {0.5}
    scaled = [row for row in rows if row["scaled"]]
    assert {row["layer"] for row in scaled} == {context.offset_layer}
    assert len(scaled) == 4


def _scores(context: ToxicityContext, model: Model, edits: Any, table: dict[str, Any], lowered: dict[str, float]) -> np.ndarray:
    """Planted scores: the base's, the tuned model's, and half-way between them under any edit."""
    value = 0.5 if edits else lowered["plan" if model.digest == table["tuned"] else "base"]
    return np.full(len(context.prompts), value)


def test_the_base_against_itself_has_no_change_at_all(recipe: Recipe, context: ToxicityContext, tmp_path: Path) -> None:
    shutil.rmtree(recipe.run / "dpo" / "model")
    shutil.copytree(recipe.run / "pretrain" / "model", recipe.run / "dpo" / "model")
    (row,) = read(control_table(recipe, [], tmp_path / "controls.json", context=context))["runs"]
    assert (row["relative_change"], row["kl"]) == (0, pytest.approx(0, abs=1e-6))
    assert row["least_cosine"] == pytest.approx(1)
    assert row["consistency"] is None


def test_rewritten_neurons_are_seen_at_the_top_of_all(recipe: Recipe, context: ToxicityContext, tmp_path: Path) -> None:
    # The probe's direction is set to a rewritten neuron's value vector, which makes that neuron the most toxic one.
    base = context.pair.base
    layer, unit = NEURONS[0]
    toxic = base.value_vectors(layer)[unit].detach()
    planted = replace(context, probe=replace(context.probe, weights=torch.stack([-toxic, toxic], dim=1)))
    assert planted.ranking.neurons[0] == NEURONS[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.studies.toxicity_controls.TOXIC", 1)
        (row,) = read(control_table(recipe, [], tmp_path / "controls.json", context=planted))["runs"]
    everything = 100 * (1 - 2 / (base.n_layers * base.d_mlp))
    assert row["neurons_value_1"] > everything - 0.5
    assert row["neurons_key_1"] == pytest.approx(50), "no key has moved: all are ties"


def test_what_cannot_be_measured_is_a_user_error(
    recipe: Recipe, context: ToxicityContext, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="the recipe unrelated does not extend 'plan'"):
        control_table(recipe, ["unrelated"], tmp_path / "controls.json", context=context)
    shutil.rmtree(recipe.run / "dpo" / "model")
    with pytest.raises(UserError, match="has no tuned model"):
        control_table(recipe, [], tmp_path / "controls.json", context=context)
    assert main(["plan", "--controls"]) == 2
    assert "has no tuned model" in capsys.readouterr().err
    assert not (tmp_path / "controls.json").exists()


def test_the_controls_that_ship_are_found_by_what_they_extend() -> None:
    names = controls_of(load_recipe("shipped"))
    assert {"shipped-sft", "shipped-shuffled", "shipped-reversed", "shipped-seed-2"} <= set(names)
    assert "grammar" not in names
    assert controls_of(load_recipe("grammar")) == [], "a grid is no control"


def test_the_table_is_read_for_its_own_pair_only(recipe: Recipe, context: ToxicityContext) -> None:
    folder = recipe.run
    control_table(recipe, ["sft"], folder / "dpo" / "controls.json", context=context)
    own = ModelPair.load(folder / "pretrain" / "model", folder / "dpo" / "model")
    assert len(read_controls(folder, own)["runs"]) == 2
    with pytest.raises(UserError, match="no telemetry of this pair"):
        read_controls(folder, context.pair)
    assert controls_if_any(folder, context.pair) is None
    (folder / "dpo" / "controls.json").write_text("{")
    with pytest.raises(UserError, match="is not readable JSON"):
        controls_if_any(folder, own)


def test_a_table_of_another_pair_is_not_bundled(
    recipe: Recipe, context: ToxicityContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.directions.probe import save_probe

    save_probe(context.probe, recipe.run / "probe")
    table = control_table(recipe, [], recipe.run / "dpo" / "controls.json", context=context)
    table.write_text(json.dumps(read(table) | {"tuned": "another"}), encoding="utf-8")
    with pytest.raises(UserError, match="the table of control runs is of another pair"):
        bundle(recipe, tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "tuned").exists()
