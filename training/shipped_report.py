"""Puts a report of a pair that ships beside it, so that the app shows every verdict at once.

    bypass report --out FOLDER && python -m training.shipped_report FOLDER

Only the record goes along, not the page, and no path of the machine on which it was made; where the report was also made on paper A's
prompts, the statistics of these go with it. That of a named pair, whose base is a large model, may be quick.

The statistics of a report, also of a pair whose weights do not ship, can stand beside what is written about it:

    python -m training.shipped_report FOLDER --statistics docs/NAME.json
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from interp.bundled import BUNDLED
from interp.errors import UserError
from interp.experiments.registry import find_experiments
from interp.files import read_json, write_json
from interp.models.pair import ModelPair
from interp.report.page import Report, read_report
from interp.report.prompt_sets import FILE as PROMPT_SETS_FILE

FILE = "report.json"
# What is left out of each result: texts of the models, and what stands in the criteria and the code.
NO_STATISTICS = {"tables", "figures", "summary", "question", "criterion", "refuted_by", "caveat"}


def ship(folder: Path) -> Path:
    """Copy the report of a folder into the bundle. Raises `UserError` for one of a pair that does not ship, or that lacks experiments.

    A report of the pair that the app opens on has to be whole; quick results are refused there too.
    """
    report = read_report(folder)
    target, quick = _place(report)
    missing = {item.id for item in find_experiments(None)} - {result.id for result in report.results} - report.environment["skipped"].keys()
    if missing or (not quick and any(result.settings["quick"] for result in report.results)):
        raise UserError(
            f"the report in {folder} is quick or lacks {', '.join(sorted(missing)) or 'nothing'}", "run `bypass report` in full"
        )
    target.mkdir(exist_ok=True)
    for name in (FILE, PROMPT_SETS_FILE):
        if (folder / name).is_file():
            write_json(target / name, _without_paths(read_json(folder / name)))
        else:
            (target / name).unlink(missing_ok=True)
    return target / FILE


def _place(report: Report) -> tuple[Path, bool]:
    """The folder in which the report of this pair ships, and whether it may be quick. Raises `UserError` for a pair that does not ship."""
    sides = [report.pair[side]["digest"] for side in ("base", "tuned")]
    for file in sorted(BUNDLED.glob("*/log/pair.json")):
        record = read_json(file)
        if [record.get("base"), record.get("tuned")] == sides:
            return file.parent.parent / "report", True
    pair = ModelPair.bundled()
    if sides != [pair.base.digest, pair.tuned.digest]:
        raise UserError("the report is of no pair that ships", "run `bypass report`, without --pair or with the name of one")
    return BUNDLED / "report", False


def write_statistics(folder: Path, file: Path) -> Path:
    """Write the numbers, verdicts and sentences of a folder's report, without tables and figures, which hold texts, and return the file."""
    record = _without_paths(read_json(folder / FILE))
    sides = {side: {"name": record["pair"][side]["path"], "digest": record["pair"][side]["digest"]} for side in ("base", "tuned")}
    experiments = [{name: value for name, value in result.items() if name not in NO_STATISTICS} for result in record["experiments"]]
    left_out, notes = record["environment"]["skipped"], record["environment"]["notes"]
    write_json(file, {"pair": sides, "notes": notes, "skipped": left_out, "experiments": experiments})
    return file


def _without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """The record without the folders of the machine on which it was made: of a path the part in the bundle, or its last name."""
    cleaned: dict[str, Any] = json.loads(re.sub(r'"[^"]*/(interp/bundled/)', r'"\1', json.dumps(record)))
    for side in ("base", "tuned"):
        about = cleaned["pair"][side]
        about.update({name: Path(value).name for name, value in about.items() if isinstance(value, str) and Path(value).is_absolute()})
    return cleaned


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--statistics", type=Path, metavar="FILE")
    asked = parser.parse_args()
    print(ship(asked.folder) if asked.statistics is None else write_statistics(asked.folder, asked.statistics))
