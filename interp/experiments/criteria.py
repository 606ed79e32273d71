"""`Criterion`: what decides a verdict, as it was recorded on a day. All versions of an experiment's criterion stand in one file.

The file is TOML: one `[[ID]]` table for each version, the first one first. A criterion is never edited once a result was seen
under it: a change is a new table, and the report shows the verdicts under all versions.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

NEEDED, KNOWN = {"recorded", "text", "refuted_by"}, {"recorded", "text", "refuted_by", "thresholds", "exploratory"}


@dataclass(frozen=True)
class Criterion:
    """One version of an experiment's criterion.

    Attributes:
        version: counted from 1.
        recorded: the day on which it was written down, as YYYY-MM-DD; empty where that is not known.
        text: when the claim holds, when it fails, when neither, with the thresholds filled in.
        refuted_by: the result that would refute the claim.
        thresholds: the numbers in the text, by name, as the rule in the code reads them.
        exploratory: why verdicts under this version are exploratory (what had been seen when it was fixed); empty where it was
            recorded before any result.
    """

    version: int
    recorded: str
    text: str
    refuted_by: str
    thresholds: Mapping[str, float] = field(default_factory=dict)
    exploratory: str = ""


Criteria = tuple[Criterion, ...]


def read_criteria(file: Path) -> dict[str, Criteria]:
    """The versions of each experiment's criterion, by the experiment's id.

    `{name}` and `{name:.0%}` in a text are filled in from its thresholds. Raises `ValueError` for an unknown or missing key, and
    for versions whose days go backwards.
    """
    tables = tomllib.loads(file.read_text(encoding="utf-8"))
    return {id: tuple(_criterion(id, number, table) for number, table in enumerate(_ordered(id, rows), 1)) for id, rows in tables.items()}


def _ordered(id: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        if not NEEDED <= row.keys() <= KNOWN or not isinstance(row["recorded"], date):
            raise ValueError(
                f"{id}: a criterion has the keys {', '.join(sorted(KNOWN))} (recorded is a date), not {', '.join(sorted(row))}"
            )
    days = [row["recorded"] for row in rows]
    if days != sorted(days):
        raise ValueError(f"{id}: the versions of its criterion are not in the order of their days")
    return rows


def _criterion(id: str, version: int, row: dict[str, Any]) -> Criterion:
    thresholds = row.get("thresholds", {})
    try:
        text, refuted_by = (str(row[name]).format(**thresholds) for name in ("text", "refuted_by"))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{id}, version {version}: a text names a threshold that is not given: {error}") from error
    return Criterion(version, row["recorded"].isoformat(), text, refuted_by, thresholds, str(row.get("exploratory", "")))
