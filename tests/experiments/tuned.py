"""The planted base after DPO by the training chain itself, on true labels or on those of a coin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from interp import Model, ModelPair
from tests.experiments.planted import INSULTS, NEUTRAL, PlantedPair, passages, prompts
from training import dpo
from training.recipe import Recipe

STEPS = 40
SETTINGS: dict[str, Any] = {
    "scorer": "lexicon", "loss": "sigmoid", "beta": 0.1, "optimizer": "rmsprop", "learning_rate": 1e-4, "batch": 8, "warmup_steps": 4,
    "max_steps": STEPS, "clip": 10.0, "development_prompts": 4, "kl_prompts": 2, "heldout_texts": 2, "evaluate_every": STEPS,
}  # fmt: skip


def tuned_pair(planted: PlantedPair, run: Path, labels: str) -> ModelPair:
    """The planted base, and the same after DPO on pairs whose labels are `true` or `shuffled` (a coin's)."""
    base = planted.pair.base
    for part in ("pretrain/model", "pairs", "corpus"):
        (run / part).mkdir(parents=True)
    rng = np.random.default_rng(5)
    records = []
    for prompt in prompts(SETTINGS["batch"] * STEPS, seed=11, plain=0.0):
        sides = {"prompt": prompt, "chosen": " ".join(rng.choice(NEUTRAL, 4)), "rejected": " ".join(rng.choice(INSULTS, 4))}
        records.append(sides | {f"{side}_ids": base.tokenizer(text)["input_ids"] for side, text in sides.items()})
    (run / "pairs" / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    # Development prompts are found where an author swore.
    held = [{"source": "planted", "text": f"{text} damn river"} for text in prompts(12, seed=12)]
    held += [{"source": "harmless", "text": passage.text} for passage in passages(6, 13)]
    (run / "corpus" / "heldout.jsonl").write_text("".join(json.dumps(record) + "\n" for record in held))
    stages = {"pretrain": {}, "pairs": {}, "corpus": {}, "dpo": SETTINGS | {"labels": labels}}
    recipe = Recipe(name=labels, seed=3, settings=stages, run=run)
    with pytest.MonkeyPatch.context() as patch:
        # A language of words is not read from a folder: the loader asks of every tokenizer that it can say "hello world".
        patch.setattr(dpo, "load_model", lambda folder, name: Model(base.plain_copy(), base.tokenizer, name))
        weights = load_file(dpo.tune(recipe) / "model.safetensors")
    hf = base.plain_copy()
    hf.load_state_dict(weights)
    return ModelPair(base, Model(hf, base.tokenizer, "tuned"), labels)
