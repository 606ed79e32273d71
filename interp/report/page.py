"""The report: `report.json` for programs, one self-contained HTML page for readers, one CSV file per table.

The page is laid out by a template (`templates/report.html`) that refers to no result by name. Its values are prepared here, in
one place, because every text that is shown has to be masked first and escaped second. Nothing is fetched when the page is
opened: style, script and plotly are inside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from interp.data.lexicon import mask_texts
from interp.errors import UserError
from interp.files import read_json, write_together
from interp.report.headlines import (
    SECOND_SCORER,
    caveats,
    exploratory,
    exploratory_in_words,
    headlines,
    other_verdicts,
    second_scorers,
    sentence_of,
)
from interp.report.markup import embedded, masking, plotly_script
from interp.report.multiplicity import in_words, multiplicity
from interp.report.parts import date_of, effect, lines_of, sides_of, table_of, title_of
from interp.report.prompt_sets import FILE as PROMPT_SETS_FILE
from interp.report.prompt_sets import PromptSet, on_other_prompts, read_prompt_sets
from interp.report.seeds import Seeds
from interp.results.figure_layout import untitled
from interp.results.groups import TITLES
from interp.results.result import Result, csv_files, csv_name, file_names, plain, shown, to_csv

SEEDS_FILE, SCORERS_FILE = "seeds.csv", "second-scorer.csv"
VERDICTS = {
    "holds": ("✓", "Holds"),
    "fails": ("✗", "Fails"),
    "inconclusive": ("?", "Inconclusive"),
    "not applicable": ("–", "Not applicable"),
}


@dataclass(frozen=True)
class Report:
    """The content of `report.json`: results, the pair's manifest, and the environment; and of `paper.json`, where there is one."""

    results: tuple[Result, ...]
    pair: dict[str, Any]
    environment: dict[str, Any]
    prompt_sets: tuple[PromptSet, ...] = ()


def write_report(
    results: Sequence[Result], manifest: Mapping[str, Any], environment: Mapping[str, Any], folder: str | Path, *,
    show_words: bool = False, command: str = "bypass report", seeds: Seeds | None = None, prompt_sets: Sequence[PromptSet] = (),
) -> Path:  # fmt: skip
    """Write `report.json`, `index.html` and one CSV per table to `folder`; returns the path of the page.

    Nothing in the folder changes until every file is complete; then the tables of an earlier report that this one does not have
    are removed. Every CSV file names the pair in its last column. `report.json` and the CSV files keep raw words; the page masks
    them unless `show_words`. `command` is the command line that repeats it, to which `--only ID` is added per section. `seeds`
    has the verdicts under other seeds: a table after the summary, and `seeds` in `report.json`. `prompt_sets` are shown beside the
    results and written to `paper.json`.
    """
    doubled = sorted({result.id for result in results if sum(other.id == result.id for other in results) > 1})
    if doubled:
        raise ValueError(f"two results have the id {', '.join(doubled)}")
    written = {"written": datetime.now(UTC).isoformat(timespec="minutes")} | dict(environment)
    record = {"pair": plain(manifest), "environment": plain(written), "experiments": [result.to_json() for result in results]}
    pair, target = pair_label(manifest), Path(folder)
    files = {name: text for result in results for name, text in csv_files(result, pair).items()}
    if seeds is not None:
        record["seeds"] = plain(seeds.to_json())
        files[SEEDS_FILE] = to_csv(seeds.to_frame(), pair)
    scorers = second_scorers(results)
    if not scorers.empty:
        files[SCORERS_FILE] = to_csv(scorers, pair)
    if prompt_sets:
        record["prompt_sets"] = [item.name for item in prompt_sets]
        record_of_sets = {"pair": record["pair"], "sets": [plain(item.to_json()) for item in prompt_sets]}
        files[PROMPT_SETS_FILE] = json.dumps(record_of_sets, ensure_ascii=False, indent=1, allow_nan=False)
    files["report.json"] = json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)
    files["index.html"] = render(
        results, record["pair"], record["environment"], show_words=show_words, command=command, seeds=seeds, prompt_sets=prompt_sets
    )
    earlier = _tables_of(target / "report.json")
    write_together(files, target)
    for name in earlier - files.keys():
        (target / name).unlink(missing_ok=True)
    return target / "index.html"


def _tables_of(path: Path) -> set[str]:
    """The CSV files of the report that lies in the folder, whatever version wrote it; none where it cannot be read."""
    try:
        record = read_json(path)
        tables = {csv_name(str(item["id"]), table) for item in record["experiments"] for table in item["tables"]}
    except (UserError, KeyError, TypeError):
        return set()
    # A name with a folder in it is none that a report has written.
    safe = {name for name in tables if Path(name).name == name}
    has_scorers = any(SECOND_SCORER in item["tables"] for item in record["experiments"])
    others = {SEEDS_FILE: "seeds" in record, PROMPT_SETS_FILE: "prompt_sets" in record, SCORERS_FILE: has_scorers}
    return safe | {name for name, is_there in others.items() if is_there}


def pair_label(manifest: Mapping[str, Any]) -> str:
    """The name of a pair and the beginnings of both digests, as every table of its report gives it."""
    sides = [manifest[side] for side in ("base", "tuned") if isinstance(manifest.get(side), Mapping)]
    digests = ", ".join(str(side.get("digest", ""))[:12] for side in sides)
    return f"{manifest.get('name', 'pair')} ({digests})" if digests else str(manifest.get("name", ""))


def read_report(folder: str | Path) -> Report:
    """The report in a folder that `write_report` wrote. Raises `UserError` when it is absent or damaged."""
    path = Path(folder) / "report.json"
    record = read_json(path, "run `bypass report` first, or name the folder it wrote")
    if not record.keys() >= {"pair", "environment", "experiments"}:
        raise UserError(f"{path} is not a report of bypass", "name a folder that `bypass report` wrote")
    results = tuple(Result.from_json(item) for item in record["experiments"])
    return Report(results, record["pair"], record["environment"], read_prompt_sets(Path(folder)))


def render(
    results: Sequence[Result], manifest: Mapping[str, Any], environment: Mapping[str, Any], *, show_words: bool = False,
    command: str = "bypass report", seeds: Seeds | None = None, prompt_sets: Sequence[PromptSet] = (),
) -> str:  # fmt: skip
    """The page as HTML."""
    page = masking(show_words).get_template("report.html")
    counts = {verdict: sum(result.verdict == verdict for result in results) for verdict in VERDICTS}
    return page.render(
        pair_name=manifest.get("name", "pair"), pair_label=pair_label(manifest), sides=sides_of(manifest), date=date_of(environment), counts=counts, verdicts=VERDICTS,
        sections=[_section(result, command, prompt_sets) for result in results], short=[_short(result) for result in headlines(results)],
        chance=in_words(multiplicity(results)), exploratory=exploratory_in_words(results), scorers=_scorers_table(results),
        prompt_sets=[(item.name, item.count, dict(item.left_out)) for item in prompt_sets], groups=_groups(results), command=command,
        manifest=lines_of(manifest), notes=list(environment.get("notes", ())),
        environment=lines_of({key: value for key, value in environment.items() if key != "notes"}), seconds=sum(result.seconds for result in results),
        across=_seeds_table(seeds), figures=embedded(_figures(results, show_words)), plotly=plotly_script(), show_words=show_words,
    )  # fmt: skip


def _figures(results: Sequence[Result], show_words: bool) -> dict[str, Any]:
    specs = {f"{result.id}-{place}": plain(figure.spec) for result in results for place, figure in enumerate(result.figures)}
    for spec in specs.values():
        # The page shows the title itself: as text it wraps on a phone, is searchable and can be read by screen readers.
        if spec.setdefault("layout", {}).get("title"):
            spec["layout"] = untitled(spec["layout"])
    return specs if show_words else mask_texts(specs)


def _short(result: Result) -> dict[str, Any]:
    """What the first screen says of a result."""
    return {
        "result": result, "sentence": sentence_of(result), "exploratory": exploratory(result), "does_not_show": result.does_not_show or result.caveat,
        "effect": next((effect(result, key) for key in result.statistic), None),
    }  # fmt: skip


def _section(result: Result, command: str, prompt_sets: Sequence[PromptSet]) -> dict[str, Any]:
    names = file_names(result)
    return {
        "exploratory": exploratory(result), "others": other_verdicts(result), "caveats": caveats(result),
        "elsewhere": [
            {"name": item.name, "count": item.count, "verdict": other.verdict, "sentence": other.sentence,
             "effect": next((effect(other, key) for key in other.statistic), None)}
            for item, other in on_other_prompts(prompt_sets, result.id)
        ],
        "result": result, "anchor": result.id, "mark": VERDICTS[result.verdict][0], "word": VERDICTS[result.verdict][1],
        "effects": [effect(result, key) for key in result.statistic],
        "figures": [
            {"key": f"{result.id}-{place}", "title": title_of(figure.spec), "caption": figure.caption,
             "height": figure.spec.get("layout", {}).get("height", 400)}
            for place, figure in enumerate(result.figures)
        ],
        "tables": [table_of(name, shown(frame), names[name]) for name, frame in result.tables.items()],
        "command": f"{command} --only {result.id}",
        "settings": [(key, json.dumps(plain(value), ensure_ascii=False) if isinstance(value, (dict, list, tuple)) else str(value))
                     for key, value in result.settings.items()],
        "seconds": f"{result.seconds:.1f} s" if result.seconds < 100 else f"{result.seconds / 60:.1f} min",
    }  # fmt: skip


def _seeds_table(seeds: Seeds | None) -> dict[str, Any] | None:
    if seeds is None:
        return None
    n_same, numbers = sum(row.same for row in seeds.rows), ", ".join(map(str, seeds.seeds))
    words = f"Controls and intervals were drawn under the seeds {numbers}: {n_same} of {len(seeds.rows)} verdicts are the same under all."
    return {**table_of("seeds", seeds.to_frame(), SEEDS_FILE), "words": words}


def _scorers_table(results: Sequence[Result]) -> dict[str, Any] | None:
    frame = second_scorers(results)
    return None if frame.empty else table_of("second scorer", frame, SCORERS_FILE)


def _groups(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """The results by the paper whose claim they test, in order."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.id.split("-")[0], []).append(result)
    return [(TITLES.get(letter, letter), members) for letter, members in groups.items()]
