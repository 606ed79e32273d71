"""`Criterion`: what decides a verdict, as it was recorded on a day. All versions of an experiment's criterion stand in one file.

The file is TOML: one `[[ID]]` table for each version, the first one first. A criterion is never edited once a result was seen
under it: a change is a new table, and the report shows the verdicts under all versions. `[[replaced]]` tables hold older wordings
by which no code judges.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from itertools import pairwise
from pathlib import Path
from typing import Any

NEEDED, KNOWN = {"recorded", "text", "refuted_by"}, {"recorded", "text", "refuted_by", "thresholds", "exploratory"}
REPLACED = "replaced"


@dataclass(frozen=True)
class Criterion:
    """One version of an experiment's criterion.

    Attributes:
        version: counted from 1.
        recorded: when it was written down, as YYYY-MM-DD or YYYY-MM-DD HH:MM UTC; empty where that is not known.
        text: when the claim holds, when it fails, when neither, with the thresholds filled in.
        refuted_by: the result that would refute the claim.
        thresholds: the numbers in the text, by name, as the rule in the code reads them.
        exploratory: why verdicts under this version are exploratory (what had been seen when it was fixed); empty where it was
            recorded before any result of the pair.
    """

    version: int
    recorded: str
    text: str
    refuted_by: str
    thresholds: Mapping[str, float] = field(default_factory=dict)
    exploratory: str = ""


@dataclass(frozen=True)
class Replaced:
    """An older wording of an experiment's criterion, by which no code judges any more, and why it was replaced."""

    id: str
    recorded: str
    text: str
    why: str


Criteria = tuple[Criterion, ...]


def read_criteria(file: Path) -> dict[str, Criteria]:
    """The versions of each experiment's criterion, by the experiment's id.

    `{name}` and `{name:.0%}` in a text are filled in from its thresholds. Raises `ValueError` for an unknown or missing key, and
    for versions whose days go backwards.
    """
    tables = tomllib.loads(file.read_text(encoding="utf-8"))
    tables.pop(REPLACED, None)
    return {id: tuple(_criterion(id, number, table) for number, table in enumerate(_ordered(id, rows), 1)) for id, rows in tables.items()}


def read_replaced(file: Path) -> tuple[Replaced, ...]:
    """The older wordings in a file of criteria, in its order. Raises `ValueError` for an unknown or missing key."""
    rows = tomllib.loads(file.read_text(encoding="utf-8")).get(REPLACED, [])
    for row in rows:
        if row.keys() != {"id", "recorded", "text", "why"} or not isinstance(row["recorded"], date):
            raise ValueError(f"an older wording has the keys id, recorded (a date), text, why, not {', '.join(sorted(row))}")
    return tuple(Replaced(row["id"], shown_time(row["recorded"]), row["text"], row["why"]) for row in rows)


def shown_time(recorded: date) -> str:
    """A day as YYYY-MM-DD, a moment as YYYY-MM-DD HH:MM UTC."""
    if not isinstance(recorded, datetime):
        return recorded.isoformat()
    return f"{recorded.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _ordered(id: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        if not NEEDED <= row.keys() <= KNOWN or not isinstance(row["recorded"], date):
            raise ValueError(
                f"{id}: a criterion has the keys {', '.join(sorted(KNOWN))} (recorded is a date), not {', '.join(sorted(row))}"
            )
    naive = next((row["recorded"] for row in rows if isinstance(row["recorded"], datetime) and row["recorded"].tzinfo is None), None)
    if naive is not None:
        raise ValueError(f"{id}: {naive} has no time zone: end it with Z")
    spans = [_span(row["recorded"]) for row in rows]
    if any(later[1] < earlier[0] for earlier, later in pairwise(spans)):
        raise ValueError(f"{id}: the versions of its criterion are not in the order of their days")
    return rows


def _span(recorded: date) -> tuple[datetime, datetime]:
    """The first and the last moment that a day or moment can mean."""
    if isinstance(recorded, datetime):
        return recorded, recorded
    return datetime.combine(recorded, time.min, UTC), datetime.combine(recorded, time.max, UTC)


def _criterion(id: str, version: int, row: dict[str, Any]) -> Criterion:
    thresholds = row.get("thresholds", {})
    try:
        text, refuted_by = (str(row[name]).format(**thresholds) for name in ("text", "refuted_by"))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{id}, version {version}: a text names a threshold that is not given: {error}") from error
    return Criterion(version, shown_time(row["recorded"]), text, refuted_by, thresholds, str(row.get("exploratory", "")))
