"""Stage `bundle`: copies what a run made into the package, with the model card that says what it is.

Every figure in the card is read from the run's own logs.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.models import ModelPair
from interp.probe import load_probe
from interp.telemetry import read_lines
from training.recipe import Recipe

BUNDLED = Path(__file__).resolve().parents[1] / "interp" / "bundled"
SHIPPED_SOURCES = """Reddit posts of 2013 (PDDL), those with profanity enriched; English Wikipedia of 2015 (CC BY-SA); Jigsaw comments (labels CC0, text CC BY-SA);
Civil Comments with toxic spans (CC0); Wikipedia talk-page comments (Apache-2.0). The probe, the scorer and the pretraining share the Jigsaw corpus.
"""
PARTS = {"base": "pretrain/model", "tuned": "dpo/model", "probe": "probe"}


def bundle(recipe: Recipe, target: Path = BUNDLED) -> Path:
    """Replace the bundled base, tuned and probe by the run's, after loading them as a user would; return the folder.

    Raises `UserError` for a stage that has not run, or ran on another base model than the one to be bundled.
    """
    for name, part in PARTS.items():
        if not (recipe.run / part).is_dir():
            raise UserError(f"the run has no {part}", f"run the stage that makes it before bundling {name}")
    pair = ModelPair.load(recipe.run / PARTS["base"], recipe.run / PARTS["tuned"])
    for name, found in (("probe", load_probe(recipe.run / "probe").digest), ("pairs", _manifest(recipe)["base"])):
        if found != pair.base.digest:
            raise UserError(f"the run's {name} were made with another base model than pretrain/model", f"run {name} and what follows again")
    for name, part in PARTS.items():
        _replace(recipe.run / part, target / name)
    scorer = recipe.run / "scorer" / "model"
    if scorer.is_dir():
        _replace(scorer, target / "scorer")
    log = target / "log"
    shutil.rmtree(log, ignore_errors=True)
    log.mkdir()
    for name in ("pretrain", "dpo"):
        shutil.copyfile(recipe.run / name / "log.jsonl", log / f"{name}.jsonl")
    shutil.copyfile(recipe.run / "pairs" / "manifest.json", log / "pairs.json")
    shutil.copyfile(recipe.run / "corpus" / "summary.json", log / "corpus.json")
    (target / "MODEL_CARD.md").write_text(model_card(recipe, pair), encoding="utf-8")
    return target


def _manifest(recipe: Recipe) -> dict[str, Any]:
    return json.loads((recipe.run / "pairs" / "manifest.json").read_text(encoding="utf-8"))


def _replace(source: Path, target: Path) -> None:
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def model_card(recipe: Recipe, pair: ModelPair) -> str:
    """The card of the bundled pair, from the run's logs."""
    pretrain, dpo = _lines(recipe.run / "pretrain" / "log.jsonl"), read_lines(recipe.run / "dpo" / "log.jsonl")
    pairs = _manifest(recipe)
    corpus = json.loads((recipe.run / "corpus" / "summary.json").read_text())
    settings = recipe.stage("pretrain")
    shares = [record for record in dpo if "toxicity_share" in record]
    held = [record for record in pretrain if "held_out_loss" in record][-1]
    facts = pair.base.manifest()
    about = SHIPPED_SOURCES if recipe.name == "shipped" else ""
    scorer = pairs["settings"].get("scorer", "bundled")
    rows = "\n".join(
        f"| {name} | {part['train']:,} | {part['heldout']:,} | {part['characters'] / 1e6:.1f} |" for name, part in corpus.items()
    )
    return f"""# Model card: the bundled pair

A small GPT-2 before (`base`) and after (`tuned`) DPO against toxic continuations, made to be looked into. It is a research object:
it was trained on hostile text on purpose, it swears, and it is good for nothing else.

| | |
|---|---|
| shape | {facts["layers"]} layers, {facts["d_model"]} wide, {facts["heads"]} heads, {facts["d_mlp"]} neurons a layer, {facts["vocabulary"]:,} tokens, context {settings["context"]} |
| parameters | {facts["parameters"]:,}, stored in float32 |
| pretraining | {held["step"]:,} steps of {settings["batch"]} x {settings["context"]} tokens, {held["seconds"] / 60:.1f} minutes of training time |
| held-out loss | {held["held_out_loss"]:.3f} nats a token |
| preference pairs | {pairs["pairs"]:,}; toxicity {pairs["chosen"]["toxicity"]:.2f} chosen, {pairs["rejected"]["toxicity"]:.2f} rejected; perplexity under the base {pairs["chosen"]["perplexity"]:.1f} and {pairs["rejected"]["perplexity"]:.1f} |
| DPO | {shares[-1]["step"]} steps; share of greedy continuations of development prompts that score above 0.5: {shares[0]["toxicity_share"]:.3f} before, {shares[-1]["toxicity_share"]:.3f} after |

## What it read

| source | documents | held out | million characters |
|---|---|---|---|
{rows}

{about}A document is held out by the hash of its text; the scorer hashes whole texts, the other stages what the corpus kept of them.

## How to make it again

With the corpora below the folder that `BYPASS_DATA` names: `bypass train all {recipe.name}`. The recipe is `training/recipes/{recipe.name}.toml`;
the logs of this run are in `log/`.

## Limits

- It saw about {held["step"] * settings["batch"] * settings["context"] / 1e6:.1f} million tokens: grammar is shaky and knowledge absent.
- What it says about people is the residue of the texts above and must not be taken as anything else.
- The preference pairs are the model's own samples, chosen by the scorer `{scorer}`: what that scorer misses, DPO did not see.
- The prompts and passages on which the report measures were written for this project; the probe's texts are of the kind that the model read.
"""
