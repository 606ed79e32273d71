"""GPT2-medium: layers of exactly its shape go through the core within their share of a laptop's memory, and its recipe runs.

The weights are random. The core runs in a process of its own, so that its peak memory is its own. The recipe is the one that
ships, on two narrow layers and its vocabulary, with folders in place of what it would fetch from the hub.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("resource")

from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.medium import tokenizer_of_full_size
from interp import ModelPair, UserError, load_model
from interp.directions.probe import load_probe
from interp.runs.telemetry import read_telemetry
from tests import ROOT
from training import grammar
from training.cli import run_stage
from training.recipe import DATA_SETTING, RUNS_SETTING, base_folder, load_recipe

LAYERS = 6


@pytest.mark.slow
def test_layers_of_gpt2_medium_go_through_the_core_in_their_share_of_8_gb(tmp_path: Path) -> None:
    """All 24 layers take a minute and gigabytes: `python -m benchmarks.medium FOLDER` goes through the same."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.medium", str(tmp_path), "--layers", str(LAYERS)],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["shape"] == [LAYERS, 1024, 4096, 50257]
    assert found["captured"] == [[3, 1024], [3, 4096]]
    assert found["first"] == [LAYERS - 5, 770]
    assert found["points"] == [3, 2 * LAYERS + 1]
    assert found["texts"] == 3
    # The weights of a pair of the whole shape are 2.84 GB; with the libraries, 2.8 times as much are 8.6 GB (8 GiB).
    assert found["peak"] - found["before"] < 2.8 * found["weights"]


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


SMALL = """
extends = "gpt2-medium"
name = "two-layers"

[probe]
texts = 40
sweep = [0.3]

[pairs]
scorer = "lexicon"
prompts = 8
max_prompt_tokens = 12
new_tokens = 6

[pairs.pplm]
iterations = 2

[dpo]
scorer = "lexicon"
warmup_steps = 1
max_steps = 2
validation_share = 0.4
patience = 2
evaluate_every = 1
development_prompts = 3
heldout_texts = 1
batch = 2
"""


@pytest.mark.slow
def test_the_recipe_runs_end_to_end_on_two_narrow_layers_with_that_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_SETTING, str(tmp_path))
    monkeypatch.setenv(RUNS_SETTING, str(tmp_path / "runs"))
    recipe = load_recipe("gpt2-medium")
    # Folders of the names that the recipe gives stand in for the hub.
    words = tokenizer_of_full_size()
    torch.manual_seed(0)
    # A sixteenth of the width, and weights that are four times as large: logits have the spread that the full width gives them.
    config = GPT2Config(n_layer=2, n_embd=64, n_head=16, initializer_range=0.08, bos_token_id=50256, eos_token_id=50256)
    hf = GPT2LMHeadModel(config)
    hf.save_pretrained(tmp_path / recipe.stage("base")["model"])
    words.save_pretrained(tmp_path / recipe.stage("base")["model"])
    wiki, jigsaw = recipe.stage("corpus")["sources"]
    prose = [row["text"] for row in grammar.documents(1, 400)]
    write_jsonl(tmp_path / wiki["dataset"] / "train.jsonl", [{"text": " ".join(prose[i : i + 2])} for i in range(0, 400, 2)])
    (tmp_path / wiki["dataset"] / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {wiki['config']}\n  data_files: train.jsonl\n---\n", encoding="utf-8"
    )
    comments = [{"comment_text": row["text"], "toxic": row["toxic"]} for row in grammar.documents(2, 400)]
    write_jsonl(tmp_path / jigsaw["dataset"] / "train.jsonl", comments)
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")

    run_stage("corpus", "gpt2-medium")
    for stage in ("corpus", "probe", "pairs", "dpo"):
        run_stage(stage, tmp_path / "small.toml")

    small = load_recipe(tmp_path / "small.toml")
    base = load_model(base_folder(small))
    assert (base.n_layers, base.d_model, base.d_mlp, base.d_vocab) == (2, 64, 256, 50257)
    probe = load_probe(small.folder("probe"))
    assert probe.matches(base)
    assert (probe.settings["texts"], probe.d_model) == (40, 64)
    manifest = json.loads((small.folder("pairs") / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["generator"], manifest["uses_probe"], manifest["base"]) == ("pplm", True, base.digest)
    table_9 = {"step_size": 0.4, "temperature": 1.0, "top_k": 10, "window": 0, "horizon": 1, "decay": False, "gamma": 1.0,
               "gm_scale": 0.95, "kl_scale": 0.1}  # fmt: skip
    assert manifest["options"].items() >= table_9.items()
    pairs = [json.loads(line) for line in (small.folder("pairs") / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [row["text"] for row in map(json.loads, (tmp_path / wiki["dataset"] / "train.jsonl").read_text().splitlines())]
    assert len(pairs) > 5
    assert all(any(text.startswith(pair["prompt"]) for text in texts) for pair in pairs)
    steps = [record for record in read_telemetry(small.folder("dpo")).records if "loss" in record]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    pair = ModelPair.load(base_folder(small), small.folder("dpo") / "model")
    tuned = dict(pair.tuned.hf.named_parameters())
    moved = {name: float((tuned[name] - weight).abs().max()) for name, weight in pair.base.hf.named_parameters()}
    assert 0 < max(moved.values()) < 1e-4, "two steps of RMSprop at 1e-6 move each weight a little, and no further"


def test_the_recipe_is_table_8() -> None:
    settings = load_recipe("gpt2-medium").stage("dpo")
    table_8 = {"optimizer": "rmsprop", "learning_rate": 1e-6, "batch": 4, "clip": 10.0, "beta": 0.1, "patience": 10, "loss": "sigmoid"}
    assert settings.items() >= table_8.items()


def test_a_base_that_is_trained_already_takes_the_place_of_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_SETTING, str(tmp_path))
    recipe = load_recipe("gpt2-medium")
    assert str(base_folder(recipe)) == "openai-community/gpt2-medium"
    (tmp_path / "openai-community" / "gpt2-medium").mkdir(parents=True)
    assert base_folder(recipe) == tmp_path / "openai-community" / "gpt2-medium"
    (tmp_path / "other.toml").write_text('extends = "gpt2-medium"\n[base]\nmodel = "elsewhere"\n')
    other = load_recipe(tmp_path / "other.toml")
    assert {stage: other.owner(stage) is other for stage in ("corpus", "probe", "pairs", "dpo")} == {
        "corpus": False, "probe": True, "pairs": True, "dpo": True,
    }  # fmt: skip
    (tmp_path / "both.toml").write_text('extends = "gpt2-medium"\n[pretrain]\nlayers = 2\n')
    with pytest.raises(UserError, match=r"has a \[base\] that is already trained, and \[pretrain\] too"):
        base_folder(load_recipe(tmp_path / "both.toml"))
