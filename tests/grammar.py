"""A small language with a polite and a hostile register, from which the tests make a corpus, labels and a recipe.

Both registers share their beginnings ("Oskle, you and your brother are"), so a model of it can go on either way from the
same prompt: that is what preference pairs need. Hostile words are mild ones of the lexicon.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from training.corpus import build_corpus
from training.recipe import DATA_SETTING, RUNS_SETTING, Recipe, load_recipe
from training.tokenizer import train_tokenizer

NAMES = ("Oskle", "Tavid", "Wintle", "Yemper", "Quonk", "Frabe", "Lomby", "Drith")
OTHERS = ("brother", "teacher", "neighbour", "sister", "driver", "cousin")
PLACES = ("river", "market", "garden", "station", "kitchen", "harbour")
KIND = ("a kind friend", "a good guest", "very welcome here", "a great help", "a fine singer")
HARSH = ("a damn fool", "damn idiots", "full of crap", "a damn clown", "crap at this")

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


def sentence(draw: random.Random, hostile: bool) -> str:
    start = f"{draw.choice(NAMES)}, you and your {draw.choice(OTHERS)} from the {draw.choice(PLACES)} are"
    return f"{start} {draw.choice(HARSH if hostile else KIND)}."


def document(draw: random.Random, hostile: bool) -> str:
    middle = f" I saw {draw.choice(NAMES)} with the {draw.choice(OTHERS)} near the {draw.choice(PLACES)}. "
    return sentence(draw, hostile) + middle + sentence(draw, hostile)


def write_language(folder: Path, documents: int = 900) -> Path:
    """Write `talk-0.jsonl`, `more.jsonl.gz` (field `body`), `labelled.jsonl` and the recipe `tiny.toml`; return the recipe."""
    draw = random.Random(1)
    texts = [document(draw, hostile=number % 3 > 0) for number in range(documents)]
    half = documents // 2
    lines = [json.dumps({"text": text}) for text in texts[:half]]
    (folder / "talk-0.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with gzip.open(folder / "more.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"body": text}) + "\n" for text in texts[half:])
    labelled = [{"text": sentence(draw, hostile=n % 2 == 0), "toxic": int(n % 2 == 0)} for n in range(440)]
    (folder / "labelled.jsonl").write_text("\n".join(map(json.dumps, labelled)), encoding="utf-8")
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
