"""A table of the pair generators on the same prompts: toxicity, fluency and speed of each.

Every row has all three, since a fast generator with few usable pairs is slow in effect, and a toxic side that is less fluent
teaches DPO fluency. Thresholds of the recipe are not applied before measuring, or sampled pairs would be compared after a
selection and the others before it; the share of pairs that pass them is a column of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from interp.errors import UserError
from interp.evaluation.toxicity import load_scorer
from interp.files import write_text
from interp.stats.intervals import bootstrap_mean
from training.generators import GENERATORS, pplm
from training.generators.task import Draft, Task
from training.pairs import SIDES, describe_pairs, draft_all, load_base, prompt_rows, records_of, task_of, usable
from training.recipe import Recipe, load_recipe
from training.sections import PairsSettings

# The columns of the Markdown table with their titles; the CSV and JSON files have every column under its own name.
COLUMN_TITLES = {
    "generator": "generator", "uses_probe": "probe", "pairs": "pairs", "rejected_toxicity": "toxicity, rejected",
    "chosen_toxicity": "toxicity, chosen", "rejected_perplexity": "perplexity, rejected", "chosen_perplexity": "perplexity, chosen",
    "rejected_tokens": "tokens, rejected", "chosen_tokens": "tokens, chosen", "rejected_distinct_2": "distinct-2, rejected",
    "chosen_distinct_2": "distinct-2, chosen", "usable": "usable", "pairs_a_minute": "pairs a minute",
    "usable_a_minute": "usable a minute", "alone_a_minute": "one at a time", "ratio": "ratio", "processor_ratio": "ratio, processor",
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One row per generator that could run, why the others could not, and the circumstances."""

    rows: list[dict[str, Any]]
    left_out: dict[str, str]
    settings: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """The rows as a data frame."""
        return pd.DataFrame(self.rows)

    def to_markdown(self) -> str:
        """The table in Markdown, with notes on how to read it."""
        lines = ["| " + " | ".join(COLUMN_TITLES.values()) + " |", "|---" * len(COLUMN_TITLES) + "|"]
        lines += ["| " + " | ".join(_cell(row, name) for name in COLUMN_TITLES) + " |" for row in self.rows]
        notes = [
            f"{self.settings['prompts']} prompts, {self.settings['new_tokens']} new tokens, seed {self.settings['seed']}, scorer "
            f"{self.settings['scorer']}, {self.settings['device']}, {self.settings['threads']} thread(s), base {self.settings['base']}.",
            "Brackets: 95 % interval of the mean, bootstrap over prompts. Perplexity: of the side given its prompt, under the base.",
            f"Usable: the sides differ and pass the recipe's thresholds (chosen at most {self.settings['chosen_at_most']}, "
            f"rejected at least {self.settings['rejected_at_least']}). A pairs file brings its own prompts and is read, not made.",
            "Ratio: pairs a minute of batched PPLM to one at a time; of the processor's time where other programs run beside it.",
        ]
        notes += [f"Left out: {name} ({reason})" for name, reason in self.left_out.items()]
        return "\n".join(lines) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Write `generators.csv`, `.md` and `.json`, each atomically; return the folder."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        write_text(target / "generators.csv", self.to_frame().to_csv(index=False))
        write_text(target / "generators.md", self.to_markdown())
        record = {"rows": self.rows, "left_out": self.left_out, "settings": self.settings}
        write_text(target / "generators.json", json.dumps(record, indent=1) + "\n")
        return target


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int):
        return str(value)
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:,.1f}"
    low = row.get(f"{name}_low")
    return text if low is None else f"{text} [{low:.2f}, {row[f'{name}_high']:.2f}]"


def compare(recipe: Recipe, *, pairs: int, alone: int = 4, names: Sequence[str] = tuple(GENERATORS)) -> Comparison:
    """The toxicity, fluency and speed of each generator on the same prompts.

    Args:
        pairs: the number of prompts for each generator.
        alone: of these, how many PPLM also does one at a time, half of them before and half after the batched run.

    A generator whose settings, model or file do not allow it is left out, with the reason.
    """
    settings = recipe.stage("pairs")
    recipe = replace(recipe, settings={**recipe.settings, "pairs": {**settings, "prompts": pairs}})
    base, scorer = load_base(recipe), load_scorer(settings.get("scorer", PairsSettings.scorer))
    prompts = prompt_rows(recipe, base)
    rows, left_out = [], {}
    for name in names:
        generator = GENERATORS[name]
        task = task_of(recipe, generator, base, scorer, [] if generator.own_prompts else prompts)
        try:
            options = generator.options(task.settings)
            halves = [list(range(alone))[half::2] for half in (0, 1)] if name == "pplm" else [[], []]
            before = run_alone(task, halves[0])
            started = time.process_time()
            drafts, seconds = draft_all(generator, task)
            processor = time.process_time() - started
            after = run_alone(task, halves[1])
        except UserError as error:
            left_out[name] = error.problem
            continue
        records = records_of(drafts, base, scorer)
        usable_pairs = len(usable(records, settings))
        speed = None if generator.own_prompts else 60 * len(records) / seconds
        row = {"generator": name, "uses_probe": generator.uses_probe, "own_prompts": generator.own_prompts, "pairs": len(records)}
        summary = describe_pairs(records, base)
        for side in SIDES:
            interval = bootstrap_mean([record[f"{side}_toxicity"] for record in records], seed=recipe.seed)
            row |= {f"{side}_{key}": value for key, value in summary[side].items()}
            row |= {f"{side}_toxicity_low": interval.low, f"{side}_toxicity_high": interval.high}
        row |= {"usable": usable_pairs / len(records), "seconds": seconds, "processor_seconds": processor, "pairs_a_minute": speed}
        row |= {"usable_a_minute": None if speed is None else speed * usable_pairs / len(records)}
        rows.append(row | _against_alone(row, drafts, [before, after]) | {"options": options})
    circumstances = {
        "recipe": recipe.name, "base": base.digest, "prompts": len(prompts), "new_tokens": settings["new_tokens"], "seed": recipe.seed,
        "scorer": scorer.name, "device": str(base.device), "threads": torch.get_num_threads(),
        "chosen_at_most": settings.get("chosen_at_most", PairsSettings.chosen_at_most),
        "rejected_at_least": settings.get("rejected_at_least", PairsSettings.rejected_at_least),
    }  # fmt: skip
    return Comparison(rows, left_out, circumstances)


@dataclass(frozen=True)
class Alone:
    """The drafts by row of PPLM with a batch of one, with the wall-clock and processor seconds that they took."""

    drafts: dict[int, Draft]
    seconds: float
    processor: float


def run_alone(task: Task, numbers: Sequence[int]) -> Alone:
    """PPLM drafts of these rows, made one at a time."""
    if not numbers:
        return Alone({}, 0.0, 0.0)
    single = {**task.settings, "pplm": {**task.settings.get("pplm", {}), "batch": 1}}
    others = frozenset(range(len(task.prompts))) - frozenset(numbers)
    started, processor = time.perf_counter(), time.process_time()
    blocks = list(pplm.make(replace(task, settings=single, done=others)))
    drafts = {block.rows[0]: block.drafts[0] for block in blocks}
    return Alone(drafts, time.perf_counter() - started, time.process_time() - processor)


def _against_alone(row: dict[str, Any], drafts: Sequence[Draft], runs: Sequence[Alone]) -> dict[str, Any]:
    """The speed of PPLM one at a time, the batched run's ratio to it, and how many of its pairs are token for token the same.

    `processor_ratio` compares the processor's time per pair, which other programs on the machine hardly change; with several
    threads it leaves out what a batch gains by using them better.
    """
    single = {at: draft for run in runs for at, draft in run.drafts.items()}
    if not single:
        return dict.fromkeys(("alone_a_minute", "ratio", "processor_ratio", "alone", "alone_the_same"))
    count = len(single)
    slow = 60 * count / sum(run.seconds for run in runs)
    processor = sum(run.processor for run in runs) / count
    return {
        "alone_a_minute": slow, "ratio": row["pairs_a_minute"] / slow,
        "processor_ratio": processor / (row["processor_seconds"] / row["pairs"]),
        "alone": count, "alone_the_same": sum(drafts[at] == draft for at, draft in single.items()),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m training.generators RECIPE --pairs N`: print the table and write it below the run's `pairs` folder."""
    parser = argparse.ArgumentParser(prog="python -m training.generators", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("recipe", help="a recipe's file or the name of one that ships; its base, probe and corpus must be there")
    parser.add_argument("--pairs", type=int, default=64, help="prompts for each generator (default 64)")
    parser.add_argument("--alone", type=int, default=4, help="prompts that PPLM also does one at a time (default 4)")
    parser.add_argument("--only", nargs="+", choices=list(GENERATORS), default=list(GENERATORS), help="generators to compare")
    parser.add_argument("--file", help="a pairs file, where the recipe has no [pairs.file]")
    parser.add_argument("--out", help="folder to write to (default: pairs/generators in the run)")
    options = parser.parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe)
        if options.file:
            section = {**recipe.stage("pairs"), "file": {"path": options.file}}
            recipe = replace(recipe, settings={**recipe.settings, "pairs": section})
        if options.pairs < 1 or not 0 <= options.alone <= options.pairs:
            raise UserError(f"--pairs {options.pairs} and --alone {options.alone}", "give at least one pair, and at most as many alone")
        comparison = compare(recipe, pairs=options.pairs, alone=options.alone, names=options.only)
        folder = comparison.save(options.out or recipe.run / "pairs" / "generators")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(comparison.to_markdown() + f"\nwritten to {folder}")
    return 0
