"""Runs the experiments of a report, keeps each result on disk by what it depends on, and writes the page.

An interrupted report continues where it stopped, and a repeated one recomputes only what changed: a result is reused
when the code behind it, the models, the data and the settings are the same (`interp.experiments.fingerprint`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from interp.environment import machine, versions
from interp.errors import UserError
from interp.experiments.fingerprint import fingerprint
from interp.experiments.registry import Experiment, Finding, find_experiments
from interp.experiments.study import Studies, Study
from interp.report.page import pair_label, write_report
from interp.report.prompt_sets import PromptSet
from interp.report.seeds import Seeds, seeds_of
from interp.results.judged import Judged
from interp.results.result import Result, load_result, save_result

KEPT = "results"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ReportRun:
    """What a report produced: its results, the page, the reason for each experiment left out, the verdicts of other seeds if any,
    what is to be known before any result, and the results on other prompts."""

    results: tuple[Result, ...]
    page: Path
    skipped: dict[str, str]
    seeds: Seeds | None = None
    notes: tuple[str, ...] = ()
    prompt_sets: tuple[PromptSet, ...] = ()


def run_experiment(experiment: Experiment, study: Study) -> Result:
    """Run one experiment and join its finding with its question and criteria."""
    started = time.perf_counter()
    why = study.not_applicable(experiment.about)
    if why is None:
        with study.unchanged():
            finding = experiment.run(study)
    else:
        finding = Finding("not applicable", why, {}, {}, {}, {}, (), sentence=why)
    criterion = experiment.criterion
    return Result(
        id=experiment.id, claim=experiment.claim, title=experiment.title, question=experiment.question, criterion=criterion.text,
        verdict=finding.verdict, summary=finding.summary, statistic=finding.statistic, null=finding.null, interval=finding.interval,
        tables=finding.tables,
        figures=finding.figures, refuted_by=criterion.refuted_by, caveat=experiment.caveat, settings=study.settings() | finding.settings,
        seconds=round(time.perf_counter() - started, 2), sentence=finding.sentence, does_not_show=experiment.does_not_show,
        criteria=_judged(experiment, finding),
    )  # fmt: skip


def _judged(experiment: Experiment, finding: Finding) -> tuple[Judged, ...]:
    """Every version of the experiment's criterion with the verdict under it. Raises `ValueError` where one has none."""
    newest = experiment.criterion.version
    verdicts = {**finding.earlier, newest: finding.verdict}
    if finding.verdict == "not applicable":
        verdicts = {item.version: finding.verdict for item in experiment.criteria}
    if verdicts.keys() != {item.version for item in experiment.criteria}:
        raise ValueError(f"{experiment.id} has {newest} versions of its criterion, and verdicts under {sorted(verdicts)}")
    return tuple(
        Judged(item.version, item.recorded, item.text, item.refuted_by, item.exploratory, verdicts[item.version])
        for item in experiment.criteria
    )


def _say(progress: Progress, title: str, done: int, total: int, phrase: str) -> None:
    progress(f"{title}: {phrase}", done, total)


def run_report(
    study: Study | Studies, folder: str | Path, *, only: Sequence[str] | None = None, papers: Sequence[str] | None = None,
    show_words: bool = False,
    command: str = "bypass report", seeds: int = 1, progress: Progress = lambda phrase, done, total: None,
    known: Callable[[Result], object] = lambda result: None,
    prompt_sets: Callable[[], Sequence[PromptSet]] = tuple,
) -> ReportRun:  # fmt: skip
    """Run the experiments that `find_experiments` gives for `only` and `papers`, keeping each result in `folder/results`, and write the
    report.

    An experiment that the study cannot answer, or of whose kind of study there is none, is left out and named in `skipped`.
    With `seeds` above 1 every experiment is run under so many seeds, from the study's on; the report shows the first one's
    results and all verdicts. `known` is called with each result as soon as it is there, and `prompt_sets` when all are, for the same
    experiments on other prompts.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file", "give a folder for the report")
    if seeds < 1:
        raise UserError(f"{seeds} seeds were asked for", "give a number from 1")
    studies = Studies.of_one(study) if isinstance(study, Study) else study
    chosen = find_experiments(only, papers)
    total = seeds * len(chosen)
    by_seed: dict[int, tuple[Result, ...]] = {}
    skipped: dict[str, str] = {}
    for number, seed in enumerate(range(studies.seed, studies.seed + seeds)):
        results: list[Result] = []
        for done, item in enumerate(chosen, start=number * len(chosen)):
            title = f"{item.title} (seed {seed})" if seeds > 1 else item.title
            progress(title, done, total)
            if not studies.has(item.study):
                skipped[item.id] = f"it needs a {item.study.__name__}, which this report was not given"
                continue
            seeded = studies.find(item.study, seed)
            seeded.say = partial(_say, progress, title, done, total)
            try:
                results.append(result_of(item, seeded, target / KEPT))
                known(results[-1])
            except UserError as error:
                if not number:
                    skipped[item.id] = str(error)
        by_seed[seed] = tuple(results)
    reported = by_seed[studies.seed]
    if not reported:
        raise UserError("no experiment could be run: " + "; ".join(f"{name}: {why}" for name, why in skipped.items()), "see the reasons")
    across = seeds_of(by_seed) if seeds > 1 else None
    elsewhere = tuple(prompt_sets())
    progress("writing the page", total, total)
    notes = studies.notes()
    page = write_report(
        reported,
        studies.manifest(),
        {"versions": versions(), "machine": machine(), "skipped": skipped, "notes": notes},
        target,
        show_words=show_words,
        command=command,
        seeds=across,
        prompt_sets=elsewhere,
    )
    return ReportRun(reported, page, skipped, across, tuple(notes), elsewhere)


def not_kept(studies: Studies, folder: Path, experiments: Sequence[Experiment], seeds: int = 1) -> list[tuple[int, str]]:
    """The seed and the id of what a report of these experiments would have to compute, because its folder keeps no result of it."""
    return [
        (seed, item.id)
        for seed in range(studies.seed, studies.seed + seeds)
        for item in experiments
        if studies.has(item.study) and not _place(item, studies.find(item.study, seed), folder / KEPT).is_file()
    ]


def result_of(experiment: Experiment, study: Study, folder: Path) -> Result:
    """An experiment's result, read from the folder of results, or computed now and saved there."""
    file = _place(experiment, study, folder)
    if file.is_file():
        return load_result(file)
    result = run_experiment(experiment, study)
    save_result(result, file.parent, pair_label(study.manifest()))
    return result


def _place(experiment: Experiment, study: Study, folder: Path) -> Path:
    return folder / fingerprint(experiment, study) / f"{experiment.id}.json"
