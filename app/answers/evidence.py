"""The report of a pair, the experiments that it lacks, and a run of those, for the page Evidence.

Adding experiments from the app leaves the rest of a report on disk as it is: results with other settings or of another version are
neither run again nor dropped, and the report of another pair is never overwritten.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from app import settings
from app.answers.reports import FILE, digests_in, digests_of, find_report, read
from app.jobs import Step, key_of, runner
from app.settings import Source
from interp import ModelPair, UserError
from interp.data.texts import challenge_prompts
from interp.environment import machine, versions
from interp.experiments.registry import Experiment, find_experiments
from interp.experiments.run import KEPT, result_of
from interp.experiments.study import Studies
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.make import make_context
from interp.files import read_json
from interp.models.digests import model_key
from interp.report.headlines import exploratory
from interp.report.page import VERDICTS, Report, read_report, write_report
from interp.results.groups import TITLES
from interp.results.result import Result, is_number, plain, show_number, shown

# The page of this app that shows the claim of an experiment.
SEEN_ON = {
    "A-E1": "vectors", "A-E2": "vectors", "A-E3": "steer", "A-E5": "training", "A-E6": "training", "A-E7": "bypass", "A-E8": "vectors",
    "A-E9": "bypass", "A-E10": "bypass", "A-E11": "bypass", "A-E12": "steer", "A-E14": "training", "X-C1": "steer", "X-C2": "steer",
    "W-E1": "steer", "W-E2": "steer", "X-U1": "steer",
}  # fmt: skip


def summary(results: Sequence[Result]) -> pd.DataFrame:
    """One row per experiment: claim, verdict, what it says, the headline effect with its null and interval, and what is measured."""
    rows = []
    for result in results:
        first = next(iter(effects(result)), ("–", "–", "–", "–"))
        rows.append((result.claim, verdict_of(result), result.title, first[1], first[2], first[3], first[0], result.id))
    columns = ["Claim", "Verdict", "What it says", "Effect", "Null", "Interval", "Measured as", "Experiment"]
    return pd.DataFrame(rows, columns=columns)


def verdict_of(result: Result) -> str:
    """A result's verdict in words, with its mark; quick and exploratory ones say so."""
    mark, word = VERDICTS[result.verdict]
    applies = {"quick": result.settings.get("quick") is True, "exploratory": bool(exploratory(result))}
    marks = [name for name, is_so in applies.items() if is_so]
    return f"{mark} {word}" + (f" ({', '.join(marks)})" if marks else "")


def versions_of(result: Result) -> pd.DataFrame:
    """Every version of a result's criterion with its day, the verdict under it, and why that is exploratory."""
    rows = [
        (item.version, item.recorded or "–", " ".join(VERDICTS[item.verdict]), item.text, item.exploratory or "no")
        for item in result.criteria
    ]
    return pd.DataFrame(rows, columns=["Version", "Recorded", "Verdict", "Criterion", "Exploratory"])


def counts(results: Sequence[Result]) -> dict[str, int]:
    """The number of experiments by verdict, in the words of the page; `not applicable` only where there are any."""
    numbers = {name: sum(result.verdict == name for result in results) for name in VERDICTS}
    return {" ".join(VERDICTS[name]): number for name, number in numbers.items() if number or name != "not applicable"}


def effects(result: Result) -> list[tuple[str, str, str, str]]:
    """Every statistic as text: name, value, null, interval."""
    rows = []
    for key, value in result.statistic.items():
        low, high = result.interval.get(key, (math.nan, math.nan))
        known = math.isfinite(low) and math.isfinite(high)
        interval = f"{show_number(low, key)} to {show_number(high, key)}" if known else "–"
        rows.append((key.replace("_", " "), show_number(value, key), show_number(result.null.get(key), key), interval))
    return rows


def places(result: Result, key: str) -> dict[str, float]:
    """Value, null and ends of the interval as places from 0 to 100 on one line; empty where there is only one number."""
    low, high = result.interval.get(key, (math.nan, math.nan))
    numbers = {"value": result.statistic[key], "null": result.null.get(key, math.nan), "low": low, "high": high}
    finite = {name: float(number) for name, number in numbers.items() if number is not None and math.isfinite(number)}
    start, width = (min(finite.values()), max(finite.values()) - min(finite.values())) if finite else (0.0, 0.0)
    return {name: round(4 + 92 * (number - start) / width, 1) for name, number in finite.items()} if width > 0 else {}


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of a result with its lists as text, so that everything in it is masked."""
    flat = shown(frame)
    flat = flat.rename(columns={name: str(name).replace("_", " ") for name in flat.columns})
    return flat.map(lambda cell: cell if cell is None or is_number(cell) or isinstance(cell, bool) else _text(cell))


def _text(cell: Any) -> str:
    return " · ".join(map(_text, cell)) if isinstance(cell, (list, tuple)) else str(cell)


def settings_of(result: Result) -> pd.DataFrame:
    """The settings under which a result was made, as text."""
    rows = [(key.replace("_", " "), value if isinstance(value, str) else str(plain(value))) for key, value in result.settings.items()]
    return pd.DataFrame(rows, columns=["setting", "value"])


def first_letters(results: Sequence[Result]) -> str:
    """The meanings of the first letters of the results' claims."""
    letters = dict.fromkeys(result.id[0] for result in results)
    return " · ".join(f"{letter}: {TITLES[letter].lower().replace('paper a', 'paper A')}" for letter in letters if letter in TITLES)


def command_of(source: Source, *, only: str = "", folder: str = "", run_settings: dict[str, Any] | None = None) -> str:
    """The command of the report, or of one experiment with the settings of a result, on this pair; in demo mode without folders."""
    run_settings = run_settings or {}
    words = ["bypass", "report"]
    if source is not None:
        # A named pair is its name twice.
        named = len(set(source)) == 1
        words += ["--pair", *(source[:1] if named else ("BASE", "TUNED") if settings.demo() else source)]
    words += ["--only", only] if only else []
    words += ["--quick"] if run_settings.get("quick") is True else []
    words += ["--seed", str(run_settings["seed"])] if run_settings.get("seed") else []
    words += ["--out", folder] if folder else []
    return shlex.join(words)


def shipped_prompts(result: Result) -> bool:
    """Whether a result used as many prompts as ship, so that its command needs no files to repeat it."""
    return result.settings.get("quick") is True or result.settings.get("prompts") == len(challenge_prompts())


def shipped_seconds() -> float:
    """How long the experiments of the report took that ships of the pair that the app opens on."""
    report = read(settings.SHIPPED_REPORT)
    return sum(result.seconds for result in report.results) if report is not None else 0.0


def missing(report: Report | None) -> dict[str, Experiment]:
    """The experiments of this version that the report lacks, by id, in order."""
    there = {result.id for result in report.results} if report else set()
    return {item.id: item for item in find_experiments(None) if item.id not in there}


def left_out(report: Report | None) -> dict[str, str]:
    """The reasons why experiments were left out of the report, by id."""
    skipped = report.environment.get("skipped") if report else None
    lacking = missing(report)
    return {name: str(why) for name, why in skipped.items() if name in lacking} if isinstance(skipped, dict) else {}


def job_key(pair: ModelPair, folder: Path) -> str:
    """The key of the run that adds to this report: one for everyone who looks at it, and a new one after each that is done."""
    for number in range(1000):
        key = key_of("report", model_key(pair.base), model_key(pair.tuned), str(folder), number)
        job = runner.find(key)
        if job is None or job.state != "done":
            break
    return key


def run_missing(pair: ModelPair, source: Source, folder: Path, chosen: Sequence[str], quick: bool, step: Step) -> tuple[str, ...]:
    """Run experiments and add each to the report as soon as it is done; return the ids of those that ran.

    Results are kept as `bypass report` keeps them, so that what was cancelled goes on where it stopped. What the report holds
    already stays in it untouched.

    Raises:
        UserError: none could be run, or the folder cannot be written to.
    """
    experiments = find_experiments(chosen)
    step("reading prompts and the probe", 0, len(experiments))
    scorer = "bundled" if find_spec("detoxify") is not None else "lexicon"
    studies = Studies({ToxicityContext: partial(make_context, pair, quick=quick, scorer=scorer)})
    skipped: dict[str, str] = {}
    done: list[str] = []
    try:
        for number, item in enumerate(experiments):
            step(item.title, number, len(experiments))
            try:
                study = studies.find(item.study)
                study.say = partial(_say, step, item.title, number, len(experiments))
                result = result_of(item, study, folder / KEPT)
            except UserError as error:
                skipped[item.id] = str(error)
                continue
            done.append(item.id)
            add(pair, source, folder, result, skipped)
        step("writing the page", len(experiments), len(experiments))
        if not done:
            raise UserError("none of these can be run: " + "; ".join(f"{name}: {why}" for name, why in skipped.items()), "choose others")
        add(pair, source, folder, None, skipped)
    except OSError as error:
        fix = f"start the app with {settings.REPORT} naming a folder that it may write to"
        raise UserError(f"the report cannot be written ({error.strerror})", fix) from error
    return tuple(done)


def _say(step: Step, title: str, done: int, total: int, phrase: str) -> None:
    step(f"{title}: {phrase}", done, total)


def add(pair: ModelPair, source: Source, folder: Path, result: Result | None, skipped: dict[str, str]) -> None:
    """Write the report with one more result (or only with the reasons for those left out), all others as they are.

    Raises:
        UserError: the report compares several seeds, which one run cannot extend, or another pair's has been put there meanwhile.
    """
    of_pair = find_report(digests_of(pair))
    shipped = of_pair.report if of_pair.shipped is not None else None
    report = read_report(folder) if (folder / FILE).is_file() else shipped if shipped else Report((), {}, {})
    if report.pair and digests_in(report) != digests_of(pair):
        raise UserError("the report of another pair has been written to this folder meanwhile", "try again")
    if (folder / FILE).is_file() and "seeds" in read_json(folder / FILE):
        raise UserError("this report compares several seeds, which a run in the app would lose", "run `bypass report --seeds` again")
    results = {one.id: one for one in report.results} | ({result.id: result} if result else {})
    order = {item.id: place for place, item in enumerate(find_experiments(None))}
    # Experiments of a user's own file, which this process does not know, come last, in their order.
    everything = sorted(results.values(), key=lambda one: order.get(one.id, len(order)))
    before = report.environment.get("skipped")
    reasons = {**(before if isinstance(before, dict) else {}), **skipped}
    left_out = {name: why for name, why in reasons.items() if name not in results}
    about = {"versions": versions(), "machine": machine(), "skipped": left_out, "notes": pair.notes()}
    write_report(everything, pair.manifest(), about, folder, command=command_of(source), prompt_sets=report.prompt_sets)
