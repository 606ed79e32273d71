"""Puts a report of the pair that ships beside it, so that the app shows every verdict at once.

    bypass report --out FOLDER && python -m training.shipped_report FOLDER

Only the record goes along, not the page, and no path of the machine on which it was made; where the report was also made on paper A's
prompts, the statistics of these go with it.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from interp.bundled import BUNDLED
from interp.errors import UserError
from interp.experiments.registry import find_experiments
from interp.files import read_json, write_json
from interp.models.pair import ModelPair
from interp.report.page import read_report
from interp.report.prompt_sets import FILE as PROMPT_SETS_FILE

FILE = "report.json"


def ship(folder: Path) -> Path:
    """Copy the report of a folder into the bundle. Raises `UserError` for one that is of another pair, quick, or lacks experiments."""
    report, pair = read_report(folder), ModelPair.bundled()
    if [report.pair[side]["digest"] for side in ("base", "tuned")] != [pair.base.digest, pair.tuned.digest]:
        raise UserError(f"the report in {folder} is not of the pair that ships", "run `bypass report` without --pair")
    missing = {item.id for item in find_experiments(None)} - {result.id for result in report.results} - report.environment["skipped"].keys()
    if missing or any(result.settings["quick"] for result in report.results):
        raise UserError(
            f"the report in {folder} is quick or lacks {', '.join(sorted(missing)) or 'nothing'}", "run `bypass report` in full"
        )
    (BUNDLED / "report").mkdir(exist_ok=True)
    for name in (FILE, PROMPT_SETS_FILE):
        if (folder / name).is_file():
            # Whichever clone made it.
            text = re.sub(r'"[^"]*/(interp/bundled/)', r'"\1', json.dumps(read_json(folder / name)))
            write_json(BUNDLED / "report" / name, json.loads(text))
        else:
            (BUNDLED / "report" / name).unlink(missing_ok=True)
    return BUNDLED / "report" / FILE


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(ship(parser.parse_args().folder))
