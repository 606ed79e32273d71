"""The project's own language (training/grammar.py) as files of several kinds, with a recipe of a few steps, for the tests."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from training import grammar
from training.corpus import build_corpus
from training.recipe import DATA_SETTING, RUNS_SETTING, Recipe, load_recipe
from training.tokenizer import train_tokenizer

RECIPE = """
name = "tiny"
seed = 3

[corpus]
sources = [
  { name = "talk", path = "talk-*.jsonl", min_characters = 20 },
  { name = "talk", path = "more.jsonl.gz", field = "body", min_characters = 20 },
]

[tokenizer]
vocabulary = 360

[pretrain]
layers = 2
width = 32
heads = 2
context = 48
batch = 16
learning_rate = 1e-2
final_learning_rate = 1e-3
warmup_steps = 10
weight_decay = 0.05
clip = 1.0
epochs = 2
evaluate_every = 50
checkpoint_every = 50

[probe]
path = "labelled.jsonl"
min_characters = 5
texts = 400
l2 = 0.1
sweep = [0.1, 1.0]

[pairs]
scorer = "lexicon"
prompts = 60
max_prompt_tokens = 24
samples = 6
new_tokens = 10
temperature = 1.0
top_k = 40
chosen_at_most = 0.2
rejected_at_least = 0.6

[dpo]
scorer = "lexicon"
loss = "sigmoid"
beta = 0.1
optimizer = "rmsprop"
learning_rate = 1e-3
batch = 4
warmup_steps = 2
max_steps = 25
clip = 10.0
development_prompts = 20
evaluate_every = 10
stop_at_ratio = -1
"""


def write_language(folder: Path, documents: int = 900) -> Path:
    """Write `talk-0.jsonl`, `more.jsonl.gz` (field `body`), `labelled.jsonl` and the recipe `tiny.toml`; return the recipe."""
    texts = [row["text"] for row in grammar.documents(1, documents)]
    half = documents // 2
    lines = [json.dumps({"text": text}) for text in texts[:half]]
    (folder / "talk-0.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with gzip.open(folder / "more.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"body": text}) + "\n" for text in texts[half:])
    labelled = "\n".join(map(json.dumps, grammar.documents(2, 440)))
    (folder / "labelled.jsonl").write_text(labelled, encoding="utf-8")
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return recipe


def build_language(root: Path) -> Recipe:
    """The recipe of the language below `root`, with its stages corpus and tokenizer run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_SETTING, str(root))
        patch.setenv(RUNS_SETTING, str(root / "runs"))
        recipe = load_recipe(write_language(root))
        build_corpus(recipe)
        train_tokenizer(recipe)
    return recipe
