"""The pair in numbers and the results behind the argument, read from a report of this very pair.

It is apart from `app.answers.start`, which measures them, because a report can be shown before torch has been imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from app.answers.reports import digests, find_report
from app.jobs import key_of
from app.settings import Source
from interp.errors import UserError
from interp.report.page import Report
from interp.results.result import Result, row_of
from interp.steering.unalign import FACTOR, KEYS

if TYPE_CHECKING:
    from interp.models.model import Neuron

UNALIGNED = f"tuned, {KEYS} toxic keys × {FACTOR:g}"
BOTH = f"base, the same {KEYS} keys × {FACTOR:g}"
RANDOM = f"random keys × {FACTOR:g} (null)"
ARGUED = ("A-E2", "A-E9", "A-E10")


@dataclass(frozen=True)
class Measured:
    """The pair in numbers: a row for base, tuned, un-aligned, the base model with the same edit and, as the null, random keys.

    Columns of `table`: role, model, toxicity, low, high, perplexity. `shows` counts the prompts on which all three show: toxic, tuned
    away, and back (none from a report, which keeps no single prompts).
    """

    table: pd.DataFrame
    prompts: int
    passages: int
    draws: int
    shows: int | None
    origin: str

    def row(self, role: str) -> dict[str, Any]:
        """The row of one role."""
        line: dict[str, Any] = self.table[self.table["role"] == role].iloc[0].to_dict()
        return line


def report_of(source: Source) -> Report | None:
    """The report of this pair, or None."""
    try:
        return find_report(digests(source)).report
    except UserError:
        # The Evidence page says what is wrong with it; here few prompts are measured instead.
        return None


def reported(source: Source, name: str) -> Result | None:
    """One experiment's result in the report of this pair, or None."""
    report = report_of(source)
    return next((result for result in report.results if result.id == name), None) if report is not None else None


def measured_by_report(source: Source) -> Measured | None:
    """The pair in numbers from the report's un-alignment experiment, or None where the report does not hold all of them."""
    result = reported(source, "X-U1")
    if result is None:
        return None
    rows = []
    kinds = (
        ("base", "base", "base"), ("tuned", "tuned", "tuned"), ("un-aligned", f"selective {KEYS}", UNALIGNED),
        ("edited", "base, same keys", BOTH), ("null", "random", RANDOM),
    )  # fmt: skip
    try:
        for role, key, label in kinds:
            line = row_of(result, "keys", key)
            rows.append((role, label, *(float(line[column]) for column in ("toxicity", "low", "high", "perplexity"))))
    except UserError:
        # The report is of an earlier version; here few prompts are measured instead.
        return None
    frame = pd.DataFrame(rows, columns=["role", "model", "toxicity", "low", "high", "perplexity"])
    used = result.settings
    return Measured(frame, int(used["prompts"]), int(used["passages"]), int(used["random_draws"]), None, "the report")


@dataclass(frozen=True)
class Continuation:
    """One model's continuation of a prompt, and its toxicity without the prompt, 0 to 1."""

    text: str
    toxicity: float


def continuations_by_report(source: Source, prompt: str) -> dict[str, Continuation] | None:
    """The continuations of a held-out prompt by base, tuned and un-aligned, or None where the report does not have it."""
    result = reported(source, "X-U1")
    table = result.tables.get("continuations") if result is not None else None
    rows = table[table["prompt"] == prompt] if table is not None else None
    if rows is None or rows.empty:
        return None
    line = rows.iloc[0]
    return {role: Continuation(str(line[role]), float(line[f"toxicity, {role}"])) for role in ("base", "tuned", "un-aligned")}


def keys_by_report(source: Source) -> list[Neuron] | None:
    """The toxic keys that the report's un-alignment experiment enlarged, or None where its number or factor is another."""
    result = reported(source, "X-U1")
    used = result.settings if result is not None else {}
    if used.get("factor") != FACTOR or len(used.get("keys", [])) != KEYS:
        return None
    return [(int(layer), int(index)) for layer, index in (name.split(".") for name in used["keys"])]


def argued_by_report(source: Source) -> dict[str, Result | UserError] | None:
    """The results of all experiments behind the figures from the report, or None where one is missing."""
    results = {name: reported(source, name) for name in ARGUED}
    return {name: result for name, result in results.items() if result is not None} if all(results.values()) else None


def job_keys(source: Source) -> tuple[str, str]:
    """The keys of the two jobs that measure a pair without a report; one pair of jobs for everyone who looks at it."""
    both = digests(source)
    return key_of("measure", *both), key_of("argue", *both)
