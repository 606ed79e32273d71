"""Measures a tuning run and its control runs into one table: `python -m training.studies.toxicity_controls shipped`.

Every run is measured in the same way, on the prompts and passages of the report, with the functions of `interp`, beside the
same base. The table goes into the bundle, where the experiments on control runs read it without the controls' weights. A
control that has not run, or ran from another base, is named as missing with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.diffing.offset_sources import pooled, value_update_cosines
from interp.diffing.offsets import consistency, shifts
from interp.diffing.weights import neuron_shift, weight_shift
from interp.directions.probe import load_probe
from interp.edits.edit import Edit
from interp.errors import UserError
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.make import make_context
from interp.experiments.toxicity.offset_paths import FIELD, is_null_run, run_effects
from interp.experiments.toxicity.shared import held_out
from interp.files import write_json
from interp.models.pair import ModelPair
from interp.neurons.ranking import rank_values
from interp.results.result import plain
from interp.runs.telemetry import read_lines
from interp.stats.divergence import kl_to
from interp.stats.intervals import Interval, bootstrap_mean
from interp.steering.unalign import FACTOR, KEYS
from training.preference_trainer import objective
from training.recipe import GRID, SHIPPED, Recipe, base_folder, load_recipe
from training.sections import DpoSettings

FILE = "controls.json"
TOXIC = 16
Say = Callable[[str], object]


def controls_of(recipe: Recipe) -> list[str]:
    """The recipes that ship and extend this one, but for grids, whose runs have folders of their own."""
    names = []
    for file in sorted(SHIPPED.glob("*.toml")):
        sections = tomllib.loads(file.read_text(encoding="utf-8"))
        if sections.get("extends") == recipe.name and GRID not in sections:
            names.append(file.stem)
    return names


def control_table(
    recipe: Recipe,
    controls: Sequence[str | Path],
    out: Path,
    *,
    context: ToxicityContext | None = None,
    quick: bool = False,
    say: Say = str,
) -> Path:
    """Measure a run's tuned model and those of its controls, and write `out` as one JSON object; return it.

    Args:
        context: prompts, passages, probe and scorer to measure with; its pair is not used. By default those of the report, with
            the run's own probe where it has one.
        quick: measure on the prompts and passages of a quick report, which are fewer for a large model; the settings say so.

    Raises `UserError` where the recipe itself has not been tuned, or a control recipe does not extend it.
    """
    folder = tuned_folder(recipe)
    if not folder.is_dir():
        raise UserError(f"the run of {recipe.name!r} has no tuned model at {folder}", f"run `bypass train dpo {recipe.name}`")
    others = [(str(Path(name).stem), load_recipe(name)) for name in controls]
    for name, other in others:
        if not _extends(other, recipe):
            raise UserError(f"the recipe {name} does not extend {recipe.name!r}", "name control runs of this recipe")
    pair = ModelPair.load(base_folder(recipe), folder, name=recipe.name)
    report_context = context or _context(recipe, pair, quick)
    base = replace(report_context, pair=ModelPair(pair.base, pair.base, "base"))
    own = base.varied(pair=pair)
    say("base")
    plain_scores = _cost(base)
    missing: dict[str, str] = {}
    runs = []
    for name, other in [(recipe.name, recipe), *others]:
        reason = why_missing(other, recipe, pair.base.digest)
        if reason:
            missing[name] = reason
            continue
        say(name)
        row = {"run": name, **about(other)}
        runs.append({**row, **measure(base, other, of=own if is_null_run(row) else None)})
    settings = base.settings() | {
        "probe": base.probe.digest, "offset_layer": base.offset_layer, "toxic_neurons": TOXIC, "keys": KEYS, "factor": FACTOR,
        "offset_prompts": len(held_out(base).prompts),
    }  # fmt: skip
    record = {
        "base": pair.base.digest, "tuned": pair.tuned.digest, "recipe": recipe.name, "settings": settings, "base_model": plain_scores,
        "runs": runs, "missing": missing,
    }  # fmt: skip
    write_json(out, plain(record))
    return out


def tuned_folder(recipe: Recipe) -> Path:
    """The folder of the run's tuned side: its adapter where it trained one, because the base's file may be of another precision."""
    adapter = recipe.run / "dpo" / "adapter"
    return adapter if adapter.is_dir() else recipe.run / "dpo" / "model"


def why_missing(control: Recipe, recipe: Recipe, base: str) -> str | None:
    """Why a run cannot stand in the table, or None where it can."""
    if control is not recipe and control.owner("dpo") is not control:
        return f"it changes nothing that the stage dpo of {recipe.name} reads"
    folder = control.run / "dpo"
    if not (folder / "model").is_dir():
        return "it has not run"
    used = _json(folder / "summary.json").get("base")
    return None if used in (None, base) else "it was tuned from another base model: run it again"


def about(recipe: Recipe) -> dict[str, Any]:
    """The settings, steps and development measurements of a run, from its recipe and its logs."""
    settings, folder = recipe.settings_as(DpoSettings, "dpo"), recipe.run / "dpo"
    goal, summary, pairs = objective(settings), _json(folder / "summary.json"), _json(recipe.folder("pairs") / "manifest.json")
    log = read_lines(folder / "log.jsonl") if (folder / "log.jsonl").is_file() else []
    steps = summary.get("kept_step") or max((record["step"] for record in log), default=None)
    return {
        "method": settings.method, "loss": " + ".join(goal.losses), "labels": settings.labels,
        "beta": None if goal.losses == ("sft",) else goal.beta, "steps": steps,
        "seed": recipe.seed if settings.seed is None else settings.seed,
        "equal_steps": settings.equal_steps,
        "generator": pairs.get("generator", "best-worst"), "uses_probe": bool(pairs.get("uses_probe", False)),
        **_development(log, steps),
    }  # fmt: skip


def _development(log: list[dict[str, Any]], steps: int | None) -> dict[str, Any]:
    """Toxicity and perplexity on the development prompts, before and at the step that was kept."""
    rows: dict[str, Any] = {}
    for field in ("toxicity", "toxicity_share", "perplexity"):
        measured = [record for record in log if field in record and (steps is None or record["step"] <= steps)]
        if len(measured) > 1:
            rows |= {f"development_{field}_before": measured[0][field], f"development_{field}_after": measured[-1][field]}
    return rows


def measure(base: ToxicityContext, recipe: Recipe, *, of: ToxicityContext | None = None) -> dict[str, Any]:
    """The measurements of a run's tuned model, and of how its weights and states differ from the base's.

    Shares, toxicity and cosines from -1 or 0 to 1; `kl` is KL(tuned || base) in nats per position of the challenge prompts;
    `neurons_*` are percentiles (0 to 100) of the change of the most toxic neurons among all neurons.

    Args:
        of: the study of the pair that this run controls, on whose sides the run's offset is tried (field `offset_effects`).
    """
    tuned = ModelPair.load(base_folder(recipe), tuned_folder(recipe)).tuned
    # The run's context shares the base's measurements; its own are freed with it.
    pair = ModelPair(base.pair.base, tuned, recipe.name)
    context = base.varied(pair=pair)
    row: dict[str, Any] = {"digest": tuned.digest, **_cost(context)}
    shift = weight_shift(pair)
    table = shift.to_frame()
    moved, size = ((table[column] ** 2).sum() for column in ("difference_norm", "base_norm"))
    layers = table[table["layer"] >= 0].groupby("layer")
    row |= {
        "least_cosine": float(table["cosine"].min()), "relative_change": float((moved / size) ** 0.5),
        "stable_rank": float(table["stable_rank"].mean()),
        "groups": dict(zip(shift.by_group()["group"], shift.by_group()["relative_difference"], strict=True)),
        "layers": [float(((part["difference_norm"] ** 2).sum() / (part["base_norm"] ** 2).sum()) ** 0.5) for _, part in layers],
    }  # fmt: skip
    neurons = neuron_shift(pair, base.ranking.neurons)
    for count in (min(TOXIC, len(neurons)), len(neurons)):
        row |= {f"neurons_{kind}_{count}": float(neurons[f"{kind}_percentile"][:count].mean()) for kind in ("key", "value")}
    row |= _offset(context)
    divergence = bootstrap_mean(kl_to(tuned, pair.base, context.prompts, max_tokens=tuned.context))
    row |= {"kl": divergence.value, **_ends("kl", divergence)}
    row |= _unaligned(context)
    return row if of is None else row | {FIELD: run_effects(of, context)}


def _cost(context: ToxicityContext) -> dict[str, Any]:
    model = context.pair.tuned
    scores = context.toxicity(model)
    mean = bootstrap_mean(scores)
    return {
        "toxicity": mean.value, **_ends("toxicity", mean), "share_above_half": float(np.mean(scores > 0.5)),
        "perplexity": context.perplexity(model).value, "f1": float(context.f1(model).mean()), "distinct_2": context.distinct(model),
    }  # fmt: skip


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _offset(context: ToxicityContext) -> dict[str, Any]:
    """The consistency of the prompts' offsets, and the median cosine of value updates with the mean offset in the layer below."""
    base, tuned = context.pair.sides.values()
    layer = context.offset_layer
    site = f"resid_mid.{layer}"
    last = [context.last_states(model)[site] for model in (base, tuned)]
    _, alike = consistency(shifts(last[0], last[1]))
    weights = torch.tensor([len(row) for row in context.prompt_rows()]).double()
    offset = pooled(shifts(context.mean_states(base)[site], context.mean_states(tuned)[site]), weights)
    cosines = value_update_cosines(context.pair, offset, layer - 1)
    return {"consistency": alike.value, **_ends("consistency", alike), "antipodality": float(cosines.median())}


def _unaligned(context: ToxicityContext) -> dict[str, Any]:
    """Toxicity and perplexity with the most toxic keys of the tuned model scaled, as in A-E12."""
    tuned = context.pair.tuned
    keys = rank_values(tuned, context.direction, top=min(KEYS, tuned.n_layers * tuned.d_mlp)).neurons
    edit = (Edit.scale_keys(keys, FACTOR),)
    mean = bootstrap_mean(context.toxicity(tuned, edit))
    return {
        "unaligned_toxicity": mean.value,
        **_ends("unaligned_toxicity", mean),
        "unaligned_perplexity": context.perplexity(tuned, edit).value,
    }


def _context(recipe: Recipe, pair: ModelPair, quick: bool) -> ToxicityContext:
    folder = recipe.folder("probe") if "probe" in recipe.settings else None
    probe = load_probe(folder) if folder is not None and (folder / "probe.json").is_file() else None
    if probe is not None and not probe.matches(pair.base):
        raise UserError("the run's probe was fitted on another model than its base", "run the stage probe again")
    return make_context(pair, probe=probe, quick=quick)


def _extends(recipe: Recipe, other: Recipe) -> bool:
    parent = recipe.parent
    return parent is not None and (parent.run == other.run or _extends(parent, other))


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; bad input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        "python -m training.studies.toxicity_controls", description="Measure a run and its control runs into one table."
    )
    parser.add_argument("recipe", help="a TOML file, or the name of a recipe that ships")
    parser.add_argument("--controls", nargs="*", metavar="NAME", help="control recipes [default: those that ship and extend the recipe]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="[default: dpo/controls.json of the run, which the bundle takes]")
    parser.add_argument("--quick", action="store_true", help="on the prompts and passages of a quick report")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        recipe = load_recipe(options.recipe)
        controls = options.controls if options.controls is not None else controls_of(recipe)
        out = options.out or recipe.run / "dpo" / FILE
        file = control_table(recipe, controls, out, quick=options.quick, say=lambda name: sys.stderr.write(f"measuring {name}\n"))
    except UserError as error:
        sys.stderr.write(f"control_table: {error}\n")
        return 2
    table = _json(file)
    for name, reason in table["missing"].items():
        sys.stdout.write(f"missing: {name}: {reason}\n")
    sys.stdout.write(f"{len(table['runs'])} runs in {file}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
