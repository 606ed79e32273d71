"""The parts of the report page as plain values: effects with places to draw them at, tables of texts, the pair's description."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from interp.results.result import Real, Result, is_number, show_number

ROWS_AT_FIRST = 8
ROWS_AT_MOST = 200
CELL_AT_MOST = 400
LONG_CELL = 24


def title_of(spec: Mapping[str, Any]) -> str:
    """A figure's title as plain text; plotly's is escaped and may have line breaks."""
    title = spec.get("layout", {}).get("title", "")
    return html.unescape((title.get("text") or "") if isinstance(title, dict) else title).replace("<br>", " ")


def effect(result: Result, key: str) -> dict[str, Any]:
    """One statistic with its null and interval, as text and as positions (0 to 100) on a small drawing."""
    value = result.statistic[key]
    null = result.null.get(key, math.nan)
    low, high = result.interval.get(key, (math.nan, math.nan))
    finite = [number for number in (value, null, low, high) if number is not None and math.isfinite(number)]
    start, width = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)

    def place(number: Real) -> float | None:
        return round(6 + 88 * (number - start) / width, 1) if width > 0 and math.isfinite(number) else None

    known = math.isfinite(low) and math.isfinite(high)
    return {
        "key": key, "name": key.replace("_", " "), "value": show_number(value, key), "null": show_number(null, key),
        "interval": f"{show_number(low, key)} to {show_number(high, key)}" if known else "–",
        "places": {"value": place(value), "null": place(null), "low": place(low), "high": place(high)} if math.isfinite(value) else None,
    }  # fmt: skip


def table_of(name: str, frame: pd.DataFrame, file: str) -> dict[str, Any]:
    """A frame as texts: columns, the rows that are seen at first and the rest, and the CSV file with all of it."""
    columns = [str(column) for column in frame.columns]
    numeric = [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in frame.dtypes]
    # The ends of an interval are shown as the number before them is.
    units: list[str] = []
    for column in columns:
        units.append(units[-1] if units and column.lower() in {"low", "high"} else column)
    records = frame.head(ROWS_AT_MOST).itertuples(index=False, name=None)
    rows = [[cell_text(value, unit) for value, unit in zip(row, units, strict=True)] for row in records]
    kinds = ["n" if right else "t wide" if any(len(row[i]) > LONG_CELL for row in rows) else "t" for i, right in enumerate(numeric)]
    # Up to two rows more are shown at once, without a click.
    seen = ROWS_AT_FIRST if len(rows) > ROWS_AT_FIRST + 2 else len(rows)
    return {
        "title": heading(name), "columns": [(column.replace("_", " "), right) for column, right in zip(columns, numeric, strict=True)],
        "kinds": kinds, "first": rows[:seen], "rest": rows[seen:], "n": len(frame), "cut": len(frame) > ROWS_AT_MOST, "file": file,
    }  # fmt: skip


def heading(name: str) -> str:
    """The name of a table as a heading."""
    words = name.replace("_", " ").replace("-", " ")
    return words[:1].upper() + words[1:]


def cell_text(value: Any, column: str) -> str:
    """A cell of a table as text for readers."""
    if value is None or value is pd.NaT or value is pd.NA:
        return "–"
    if is_number(value) or isinstance(value, bool) or type(value).__name__ in {"bool", "bool_"}:
        return show_number(value, column)
    if isinstance(value, (list, tuple)):
        return " · ".join(cell_text(item, column) for item in value)
    text = str(value)
    return text if len(text) <= CELL_AT_MOST else text[: CELL_AT_MOST - 1] + "…"


def date_of(environment: Mapping[str, Any]) -> str:
    """When the report was written, for readers."""
    text = str(environment.get("written", ""))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment:%Z}".strip()


def sides_of(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """A short description of base and of tuned."""
    sides = []
    for side in ("base", "tuned"):
        about = manifest.get(side)
        if isinstance(about, Mapping):
            size, layers, digest = about.get("parameters"), about.get("layers"), str(about.get("digest", ""))
            name = Path(str(about.get("path") or about.get("name", side))).name
            words = [f"{float(size) / 1e6:.3g} M parameters" if size else "", f"{layers} layers" if layers else "", digest[:12]]
            sides.append({"side": side, "name": "" if name == side else name, "about": " · ".join(filter(None, words))})
    return sides


def lines_of(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as lines of name and value: paths as their last name, hashes as their first twelve digits."""
    lines: list[tuple[str, str]] = []
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            lines += lines_of(value, f"{name} · ")
        elif isinstance(value, (list, tuple)):
            lines.append((name, ", ".join(short(item) for item in value)))
        else:
            lines.append((name, short(value)))
    return lines


def short(value: Any) -> str:
    """A value of a manifest as text: a hash by its first twelve digits, a path by its last name."""
    text = "–" if value is None else str(value)
    if len(text) >= 32 and all(letter in "0123456789abcdef" for letter in text.lower().removeprefix("sha256:")):
        return text.removeprefix("sha256:")[:12] + "…"
    return Path(text).name if text.startswith(("/", "~", "./", "../")) or text[1:3] in (":\\", ":/") else text
