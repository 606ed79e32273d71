"""Runs of several strengths of the KL term that end equally toxic, for experiment A-E14: `python -m training.studies.kl_term`.

The runs are the grid of the recipe `kl_term`, one for each beta and seed. RMSprop divides by the scale of the gradient, so beta
cancels while beta times the margin is small; the table has that product for every run, and the experiment compares only runs in
which it is well above 1 with runs in which it is well below. The base that ships is put where the recipe looks for the base that it
extends; runs that are made already are not made again, and rows that are measured already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from interp.bundled import BUNDLED
from interp.diffing.weights import weight_shift
from interp.errors import UserError
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.make import make_context
from interp.files import write_json
from interp.models.pair import ModelPair
from interp.results.result import plain
from interp.runs.telemetry import read_lines
from training.grid import GridRun, expand, run_grid
from training.recipe import Recipe, base_folder, load_recipe
from training.sections import DpoSettings

RECIPE, FILE, ROW = "kl_term", "kl_term.json", "kl_term_row.json"
# The last steps of a run, over which its margin is a mean: single batches differ too much.
LAST_STEPS = 5
# Every second of the report's prompts.
EVERY = 2
# What of the bundle stands for which stages of a run from scratch, none of which is made again.
SHIPPED = {
    "tokenizer": ("base", "."),
    "pretrain": ("base", "model"),
    "continue": ("base", "model"),
    "scorer": ("scorer", "."),
    "probe": ("probe", "."),
}
Say = Callable[[str], object]


def place_base(recipe: Recipe) -> None:
    """Copy the base, its tokenizer, the scorer and the probe that ship into the run that the recipe extends, where they are missing."""
    parent = recipe.parent
    if parent is None:
        return
    for stage, (part, place) in SHIPPED.items():
        if stage in parent.settings and not (parent.run / stage).is_dir():
            weights = shutil.ignore_patterns("*.safetensors") if stage == "tokenizer" else None
            shutil.copytree(BUNDLED / part, parent.run / stage / place, dirs_exist_ok=True, ignore=weights)


def kl_table(recipe: Recipe, out: Path, *, context: ToxicityContext | None = None, say: Say = str) -> Path:
    """Measure every run of the recipe's grid that is there, and write `out` as one JSON object; return it.

    It holds `base` (a digest), `base_model` (its toxicity), `settings` (of the measurement), `runs` (see `measure`) and `missing` (names).

    Args:
        context: prompts and scorer to measure with; by default every second prompt of the report.

    Raises `UserError` where none of the runs is there.
    """
    grid = expand(recipe)
    base = ModelPair.load(base_folder(grid.recipe), base_folder(grid.recipe), name="base")
    study = replace(context, pair=base) if context else _context(base)
    runs, missing = [], []
    for run in grid.runs:
        if not (run.recipe.run / "dpo" / "model").is_dir():
            missing.append(run.name)
            continue
        say(run.name)
        runs.append(_cached(run, study))
    if not runs:
        raise UserError(f"no run of {recipe.name!r} is there", f"run `bypass train grid {recipe.name}`")
    settings = study.settings() | {"learning_rate": recipe.stage("dpo")["learning_rate"]}
    record = {
        "base": base.base.digest, "recipe": recipe.name, "settings": settings,
        "base_model": {"toxicity": float(study.toxicity(base.base).mean())}, "runs": runs, "missing": missing,
    }  # fmt: skip
    write_json(out, plain(record))
    return out


def measure(run: GridRun, study: ToxicityContext) -> dict[str, Any]:
    """The row of one run.

    `margin` is chosen minus rejected, each against the reference, in nats of the last steps' mean, and `beta_margin` that times beta;
    `kl` is KL(tuned || base) in nats per position of the development prompts' continuations; `reached` says whether the run was
    stopped at the toxicity asked for; `toxicity` is measured on prompts that no run was stopped on.
    """
    folder, settings = run.recipe.run / "dpo", run.recipe.settings_as(DpoSettings, "dpo")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    log = read_lines(folder / "log.jsonl")
    # TRL's margin has beta as a factor.
    scaled = float(np.mean([record["margin"] for record in log if "margin" in record][-LAST_STEPS:]))
    measured = [record for record in log if "kl" in record][-1]
    pair = ModelPair.load(base_folder(run.recipe), folder / "model", name=run.name)
    table = weight_shift(pair).to_frame()
    moved, size = ((table[column] ** 2).sum() for column in ("difference_norm", "base_norm"))
    return {
        "run": run.name, "optimizer": settings.optimizer, "beta": settings.beta, "seed": settings.seed, "steps": summary["kept_step"],
        "reached": summary["stopped"] is not None, "margin": scaled / settings.beta, "beta_margin": scaled,
        "kl": float(np.mean(measured["kl"])), "development_toxicity": measured["toxicity"],
        "toxicity": float(replace(study, pair=pair).toxicity(pair.tuned).mean()), "relative_change": float((moved / size) ** 0.5),
        "stable_rank": float(table["stable_rank"].mean()), "digest": pair.tuned.digest,
    }  # fmt: skip


def _cached(run: GridRun, study: ToxicityContext) -> dict[str, Any]:
    """The row of a run, out of its folder where it was measured on the same prompts after the run's last change."""
    file, model = run.recipe.run / ROW, run.recipe.run / "dpo" / "summary.json"
    if file.is_file() and file.stat().st_mtime > model.stat().st_mtime:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["settings"] == study.settings():
            return dict(stored["row"])
    row = plain(measure(run, study))
    write_json(file, {"settings": study.settings(), "row": row})
    return dict(row)


def _context(pair: ModelPair) -> ToxicityContext:
    whole = make_context(pair)
    return replace(whole, prompts=whole.prompts[::EVERY])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; bad input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser("python -m training.studies.kl_term", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("recipe", nargs="?", default=RECIPE, help="a TOML file, or the name of a recipe that ships [default: kl_term]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="[default: kl_term.json in the recipe's run]")
    parser.add_argument("--measure-only", action="store_true", help="make no run; measure those that are there")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        recipe = load_recipe(options.recipe)
        failed = 0
        if not options.measure_only:
            place_base(recipe)
            failed = run_grid(options.recipe)
        file = kl_table(recipe, options.out or recipe.run / FILE, say=lambda name: sys.stderr.write(f"measuring {name}\n"))
    except UserError as error:
        sys.stderr.write(f"kl_term: {error}\n")
        return 2
    table = json.loads(file.read_text(encoding="utf-8"))
    sys.stdout.write(f"{len(table['runs'])} runs in {file}; missing: {', '.join(table['missing']) or 'none'}\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
