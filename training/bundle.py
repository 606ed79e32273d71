"""Stage `bundle`: copies the models, probe and logs of a run into the package, with a model card.

Every number in the card is read from the run's own logs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from interp.bundled import BUNDLED
from interp.directions.probe import load_probe
from interp.errors import UserError
from interp.files import read_json, replacing, write_json
from interp.models.difference import NOTE, write_note
from interp.models.named import NAMED
from interp.models.pair import ModelPair
from interp.runs.logs import studies_of_base
from interp.runs.telemetry import read_lines
from training.bundle_named import bundle_named
from training.pretrain import stage_settings
from training.recipe import Recipe, base_folder
from training.shipped_log import ship_log
from training.stages import base_training

SHIPPED_SOURCES = """Reddit posts of 2013 (PDDL), those with profanity or insults enriched; English Wikipedia of 2015 (CC BY-SA); Jigsaw comments (labels CC0, text CC BY-SA);
Civil Comments with toxic spans (CC0); Wikipedia talk-page comments (Apache-2.0); graded Reddit comments (Ruddit, MIT). The probe, the scorer and the pretraining share the Jigsaw corpus.
"""
# What the project wrote and ships in the same folder; a pair made from another recipe has nothing beside it.
SHIPPED_PREFERENCES = """## Preference data beside it

`preferences/` holds 260 preference pairs of known type (`pairs.jsonl`), 64 statements, 36 requests, the 120 requests of a toy task of refusals, and 60 answers with a label by hand.
They were written for the project; nothing was taken from a data set. Neither model of the pair was trained on them: they are for
trying an audit and for the experiments on displacement. Unsafe requests say in one sentence what is wanted, and no answer tells how something dangerous is done. Some rejected
sides are rude on purpose. What each kind is, and its limits, stands in `docs/pairs.md`.

"""
TITLES = {"pretrain": "pretraining", "continue": "continued", "sharpen": "sharpened"}


def parts_of(recipe: Recipe) -> dict[str, Path]:
    """The folders of a run that become the bundled base, tuned and probe."""
    return {"base": base_folder(recipe), "tuned": recipe.folder("dpo") / "model", "probe": recipe.folder("probe")}


def bundle(recipe: Recipe, target: Path = BUNDLED) -> Path:
    """Replace the bundled base, tuned and probe by the run's, after checking that they load; return the folder.

    A run on a named model goes to a folder of its own, with the adapter alone (`training.bundle_named`).

    The table of control runs goes with it where `training.studies.toxicity_controls` has written one. Raises `UserError` for a stage that has
    not run, or ran on another base model than the one to be bundled.
    """
    if recipe.settings.get("base", {}).get("model") in NAMED:
        return bundle_named(recipe, target / recipe.stage("base")["model"])
    parts = parts_of(recipe)
    for name, part in parts.items():
        if not part.is_dir():
            raise UserError(f"the run has no {name} at {part}", "run the stage that makes it before bundling")
    pair = ModelPair.load(parts["base"], parts["tuned"])
    for name, digest in (("probe", load_probe(parts["probe"]).digest), ("pairs", _manifest(recipe)["base"])):
        if digest != pair.base.digest:
            raise UserError(
                f"the run's {name} were made with another base model than {parts['base']}", f"run {name} and what follows again"
            )
    controls = recipe.folder("dpo") / "controls.json"
    if controls.is_file():
        table = json.loads(controls.read_text(encoding="utf-8"))
        if (table["base"], table["tuned"]) != (pair.base.digest, pair.tuned.digest):
            raise UserError(
                "the table of control runs is of another pair", f"run `python -m training.studies.toxicity_controls {recipe.name}` again"
            )
    for name, part in parts.items():
        _replace(part, target / name)
    if (target / "tuned" / NOTE).is_file():
        write_note(target / "tuned", {**read_json(target / "tuned" / NOTE), "base": "../base"})
    if "scorer" in recipe.settings and (recipe.folder("scorer") / "model").is_dir():
        _replace(recipe.folder("scorer") / "model", target / "scorer")
    log = target / "log"
    studies = studies_of_base(log, pair)
    shutil.rmtree(log, ignore_errors=True)
    log.mkdir()
    for name, record in studies.items():
        write_json(log / f"{name}.json", record)
    for name in _trained(recipe):
        shutil.copyfile(recipe.folder(name) / "log.jsonl", log / f"{name}.jsonl")
    ship_log(recipe.folder("dpo") / "log.jsonl", log / "dpo.jsonl")
    shutil.copyfile(recipe.folder("pairs") / "manifest.json", log / "pairs.json")
    (log / "pair.json").write_text(json.dumps({"base": pair.base.digest, "tuned": pair.tuned.digest}, indent=1), encoding="utf-8")
    if controls.is_file():
        shutil.copyfile(controls, log / "controls.json")
    for name, folder in _corpora(recipe).items():
        shutil.copyfile(folder / "summary.json", log / f"{name}.json")
    (target / "MODEL_CARD.md").write_text(model_card(recipe, pair), encoding="utf-8")
    return target


def _trained(recipe: Recipe) -> list[str]:
    return [name for name in base_training() if name in recipe.settings]


def _corpora(recipe: Recipe) -> dict[str, Path]:
    """The folder of the documents that each part of the training read, by the name of their counts in `log/`."""
    folders = {"corpus": recipe.folder("corpus")}
    for name in base_training()[1:]:
        if "sources" in recipe.settings.get(name, {}):
            folders[f"{name}-corpus"] = recipe.folder(name) / "corpus"
    return folders


def _manifest(recipe: Recipe) -> dict[str, Any]:
    return json.loads((recipe.folder("pairs") / "manifest.json").read_text(encoding="utf-8"))


def _replace(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copytree(source, temporary)


def model_card(recipe: Recipe, pair: ModelPair) -> str:
    """The card of the bundled pair, from the run's logs."""
    dpo = read_lines(recipe.folder("dpo") / "log.jsonl")
    pairs = _manifest(recipe)
    settings = recipe.stage("pretrain")
    shares = [record for record in dpo if "toxicity_share" in record]
    training, tokens, held_out_loss = _training(recipe)
    facts = pair.base.manifest()
    about, beside = (SHIPPED_SOURCES, SHIPPED_PREFERENCES) if recipe.name == "shipped" else ("", "")
    scorer = pairs["settings"].get("scorer", "bundled")
    reading = "\n".join(_reading(name, folder) for name, folder in _corpora(recipe).items())
    note = recipe.settings.get("bundle", {}).get("note", "")
    return f"""# Model card: the bundled pair

A small GPT-2 before (`base`) and after (`tuned`) DPO against toxic continuations, made to be looked into. It is a research object:
it was trained on hostile text on purpose, it swears, and it is good for nothing else.

| | |
|---|---|
| shape | {facts["layers"]} layers, {facts["d_model"]} wide, {facts["heads"]} heads, {facts["d_mlp"]} neurons a layer, {facts["vocabulary"]:,} tokens, context {settings["context"]} |
| parameters | {facts["parameters"]:,}, {_stored(pair)} |
{training}
| held-out loss | {held_out_loss:.3f} nats a token, on documents held out from what the last part read |
| preference pairs | {pairs["pairs"]:,}; toxicity {pairs["chosen"]["toxicity"]:.2f} chosen, {pairs["rejected"]["toxicity"]:.2f} rejected; perplexity under the base {pairs["chosen"]["perplexity"]:.1f} and {pairs["rejected"]["perplexity"]:.1f} |
| DPO | {shares[-1]["step"]} steps; share of greedy continuations of development prompts that score above 0.5: {shares[0]["toxicity_share"]:.3f} before, {shares[-1]["toxicity_share"]:.3f} after |

## What it read

{reading}
{about}A document is held out, from every stage alike, by the hash of its first 3,000 characters.

## How to make it again

With the corpora below the folder that `BYPASS_DATA` names: `bypass train all {recipe.name}`. The recipe is `training/recipes/{recipe.name}.toml`;
the logs of this run are in `log/`. {note}

{beside}## Limits

- It saw about {tokens / 1e6:.1f} million tokens: grammar is shaky and knowledge absent.
- What it says about people is the residue of the texts above and must not be taken as anything else.
- The preference pairs came from the generator `{pairs.get("generator", "best-worst")}`, judged by the scorer `{scorer}`: what that scorer misses, DPO did not see.
- The prompts and passages on which the report measures were written for this project; the probe's texts are of the kind that the model read.
"""


def _stored(pair: ModelPair) -> str:
    base, tuned = ("/".join(side.manifest()["stored_dtype"]) for side in pair.sides.values())
    names = {"F32": "float32", "BF16": "bfloat16"}
    if pair.tuned.checkpoint and pair.tuned.checkpoint.adapter_base:
        return f"base stored in {names.get(base, base)}, tuned as its difference from it in {names.get(tuned, tuned)}"
    return f"stored in {names.get(base, base)}"


def _training(recipe: Recipe) -> tuple[str, int, float]:
    """A row of the card for each part of the training, all tokens read, and the last held-out loss."""
    rows, tokens, held_out_loss = [], 0, float("nan")
    for name in _trained(recipe):
        settings = recipe.stage(name) if name == "pretrain" else stage_settings(recipe, name)
        last = [record for record in read_lines(recipe.folder(name) / "log.jsonl") if "held_out_loss" in record][-1]
        read, held_out_loss = last["step"] * settings["batch"] * settings["context"], last["held_out_loss"]
        tokens += read
        title = TITLES[name]
        if name == "sharpen":
            title += f", the MLPs of layers {', '.join(map(str, settings['fresh_mlps']))} anew at an activation price of {settings['activation_price']}"
        rows.append(
            f"| {title} | {last['step']:,} steps of {settings['batch']} x {settings['context']} tokens with "
            f"{settings.get('optimizer', 'adamw')}, {last['seconds'] / 60:.1f} minutes of training time |"
        )
    return "\n".join(rows), tokens, held_out_loss


def _reading(name: str, folder: Path) -> str:
    """A table of the sources of one part of the training; a document that was read several times counts as many times."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    title = {"corpus": "Pretraining and tokenizer:", "continue-corpus": "Continued training:", "sharpen-corpus": "Sharpening:"}[name]
    rows = "\n".join(
        f"| {source} | {part['train']:,} | {part['heldout']:,} | {part['characters'] / 1e6:.1f} |" for source, part in summary.items()
    )
    return f"{title}\n\n| source | documents | held out | million characters |\n|---|---|---|---|\n{rows}\n"
