"""Running a report: every experiment in turn, each result kept on disk by what it depends on, then the page.

An interrupted report continues where it stopped, and a repeated one recomputes only what changed: a result is reused
when its experiment, the weights, the probe, the scorer, the prompts and the settings are the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from interp.data.texts import Passage, challenge_prompts
from interp.data.texts import passages as shipped_passages
from interp.directions.probe import Probe, probe_for
from interp.environment import machine, versions
from interp.errors import UserError
from interp.evaluation.toxicity import load_scorer
from interp.experiments.registry import Context, Experiment, find_experiments, with_seed
from interp.models.pair import ModelPair
from interp.report.page import write_report
from interp.report.seeds import Seeds, seeds_of
from interp.results.result import Result, load_result, save_result
from interp.runs.logs import BUNDLED_LOGS, logs_digest

KEPT = "results"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Ran:
    """What a report produced: its results, the page, why experiments were left out, and what other seeds say where they were asked."""

    results: tuple[Result, ...]
    page: Path
    skipped: dict[str, str]
    seeds: Seeds | None = None


def make_context(
    pair: ModelPair, *, quick: bool = False, seed: int = 0, prompts: Sequence[str] | None = None,
    passages: Sequence[Passage] | None = None, scorer: str = "bundled", probe: Probe | None = None, logs: Path = BUNDLED_LOGS,
) -> Context:  # fmt: skip
    """The data and settings of a report: shipped prompts, passages and probe unless others are given."""
    held = list(prompts) if prompts is not None else challenge_prompts()
    texts = list(passages) if passages is not None else shipped_passages()
    found = probe if probe is not None else probe_for(pair.base, seed=seed)
    if quick:
        held, texts = held[:: max(1, len(held) // 100)], texts[::3]
    draws = 6 if quick else 20
    return Context(pair, found, load_scorer(scorer), list(held), list(texts), seed=seed, draws=draws, quick=quick, logs=logs)


def source_digest(experiment: Experiment) -> str:
    """A hash of this package's code and of the experiment's own file, wherever that is."""
    package = Path(__file__).resolve().parents[1]
    files = {*package.rglob("*.py"), Path(experiment.run.__code__.co_filename).resolve()}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def fingerprint(experiment: Experiment, context: Context) -> str:
    """A hash of everything that a result depends on."""
    parts = [
        experiment.id, experiment.criterion, context.pair.base.digest, context.pair.tuned.digest, context.settings(), context.prompts,
        [passage.text for passage in context.passages], [round(x, 6) for x in context.direction.tolist()],
        versions().get("bypass-workbench"),
        versions()["torch"], source_digest(experiment),
    ]  # fmt: skip
    if experiment.reads_logs:
        parts.append(logs_digest(context.logs))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def run_experiment(experiment: Experiment, context: Context) -> Result:
    """Run one experiment and join its finding with what was written down before."""
    started = time.perf_counter()
    found = experiment.run(context)
    return Result(
        id=experiment.id, claim=experiment.claim, title=experiment.title, question=experiment.question, criterion=experiment.criterion,
        verdict=found.verdict, summary=found.summary, statistic=found.statistic, null=found.null, interval=found.interval,
        tables=found.tables,
        figures=found.figures, refuted_by=experiment.refuted_by, caveat=experiment.caveat, settings=context.settings() | found.settings,
        seconds=round(time.perf_counter() - started, 2),
    )  # fmt: skip


def _say(progress: Progress, title: str, done: int, total: int, phrase: str) -> None:
    progress(f"{title}: {phrase}", done, total)


def run_report(
    context: Context, folder: str | Path, *, only: Sequence[str] | None = None, show_words: bool = False, command: str = "bypass report",
    seeds: int = 1, progress: Progress = lambda phrase, done, total: None,
) -> Ran:  # fmt: skip
    """Run the experiments, keeping each result in `folder/results`, and write the report.

    An experiment that this pair or these prompts cannot answer is left out and named in `skipped`. With `seeds` above 1 every
    experiment is run under so many seeds, from the context's on; the report shows the first one's results and all verdicts.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file", "give a folder for the report")
    if seeds < 1:
        raise UserError(f"{seeds} seeds were asked for", "give a number from 1")
    wanted = find_experiments(only)
    total = seeds * len(wanted)
    found: dict[int, tuple[Result, ...]] = {}
    skipped: dict[str, str] = {}
    for number in range(seeds):
        some = with_seed(context, context.seed + number) if number else context
        results: list[Result] = []
        for done, item in enumerate(wanted, start=number * len(wanted)):
            title = f"{item.title} (seed {some.seed})" if seeds > 1 else item.title
            progress(title, done, total)
            some.say = partial(_say, progress, title, done, total)
            try:
                results.append(_kept_or_run(item, some, target / KEPT))
            except UserError as error:
                if not number:
                    skipped[item.id] = str(error)
        found[some.seed] = tuple(results)
    progress("writing the page", total, total)
    shown = found[context.seed]
    if not shown:
        raise UserError("no experiment could be run: " + "; ".join(f"{name}: {why}" for name, why in skipped.items()), "see the reasons")
    across = seeds_of(found) if seeds > 1 else None
    page = write_report(
        shown,
        context.pair.manifest(),
        {"versions": versions(), "machine": machine(), "skipped": skipped},
        target,
        show_words=show_words,
        command=command,
        seeds=across,
    )
    return Ran(shown, page, skipped, across)


def _kept_or_run(item: Experiment, context: Context, folder: Path) -> Result:
    kept = folder / fingerprint(item, context)
    file = kept / f"{item.id}.json"
    if file.is_file():
        return load_result(file)
    result = run_experiment(item, context)
    save_result(result, kept)
    return result
