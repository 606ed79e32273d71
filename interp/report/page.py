"""The report: `report.json` for programs, one self-contained HTML page for readers, one CSV file per table.

The page is laid out by a template (`templates/report.html`) that refers to no result by name. Its values are prepared here, in
one place, because every text that is shown has to be masked first and escaped second. Nothing is fetched when the page is
opened: style, script and plotly are inside it.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from interp.data.lexicon import mask, mask_texts
from interp.errors import UserError
from interp.files import read_json, write_together
from interp.report.seeds import Seeds
from interp.results.figure_layout import untitled
from interp.results.groups import TITLES
from interp.results.result import Real, Result, csv_files, csv_name, file_names, is_number, plain, show_number, shown, to_csv

TEMPLATES = Path(__file__).parent / "templates"
ROWS_AT_FIRST = 8
ROWS_AT_MOST = 200
CELL_AT_MOST = 400
LONG_CELL = 24
SEEDS_FILE = "seeds.csv"
VERDICTS = {
    "holds": ("✓", "Holds"),
    "fails": ("✗", "Fails"),
    "inconclusive": ("?", "Inconclusive"),
    "not applicable": ("–", "Not applicable"),
}


@dataclass(frozen=True)
class Report:
    """The content of `report.json`: results, the pair's manifest, and the environment."""

    results: tuple[Result, ...]
    pair: dict[str, Any]
    environment: dict[str, Any]


def write_report(
    results: Sequence[Result], manifest: Mapping[str, Any], environment: Mapping[str, Any], folder: str | Path, *,
    show_words: bool = False, command: str = "bypass report", seeds: Seeds | None = None,
) -> Path:  # fmt: skip
    """Write `report.json`, `index.html` and one CSV per table to `folder`; returns the path of the page.

    Nothing in the folder changes until every file is complete; then the tables of an earlier report that this one does not have
    are removed. Every CSV file names the pair in its last column. `report.json` and the CSV files keep raw words; the page masks
    them unless `show_words`. `command` is the command line that repeats it, to which `--only ID` is added per section. `seeds`
    has the verdicts under other seeds: a table after the summary, and `seeds` in `report.json`.
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
    files["report.json"] = json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)
    files["index.html"] = render(results, record["pair"], record["environment"], show_words=show_words, command=command, seeds=seeds)
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
    return {name for name in tables if Path(name).name == name} | ({SEEDS_FILE} if "seeds" in record else set())


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
    return Report(tuple(Result.from_json(item) for item in record["experiments"]), record["pair"], record["environment"])


def render(
    results: Sequence[Result], manifest: Mapping[str, Any], environment: Mapping[str, Any], *, show_words: bool = False,
    command: str = "bypass report", seeds: Seeds | None = None,
) -> str:  # fmt: skip
    """The page as HTML."""
    page = _jinja(show_words).from_string((TEMPLATES / "report.html").read_text(encoding="utf-8"))
    counts = {verdict: sum(result.verdict == verdict for result in results) for verdict in VERDICTS}
    return page.render(
        pair_name=manifest.get("name", "pair"), pair_label=pair_label(manifest), sides=_sides(manifest), date=_date(environment), counts=counts, verdicts=VERDICTS,
        sections=[_section(result, command) for result in results], groups=_groups(results), command=command,
        manifest=_shorten(manifest), notes=list(environment.get("notes", ())),
        environment=_shorten({key: value for key, value in environment.items() if key != "notes"}), seconds=sum(result.seconds for result in results),
        across=_seeds_table(seeds), figures=_embed(_figures(results, show_words)), plotly=_plotly(), show_words=show_words,
    )  # fmt: skip


def _jinja(show_words: bool) -> Environment:
    """A jinja environment that masks every value that is written to the page, then escapes it."""

    def finalize(value: Any) -> Any:
        return value if show_words or isinstance(value, Markup) or not isinstance(value, str) else mask(value)

    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=finalize)


@lru_cache(maxsize=1)
def _plotly() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs().replace("</script", "<\\/script"))


def _embed(value: Any) -> Markup:
    """The value as JSON for a script element, escaped so that no text can close the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _figures(results: Sequence[Result], show_words: bool) -> dict[str, Any]:
    specs = {f"{result.id}-{place}": plain(figure.spec) for result in results for place, figure in enumerate(result.figures)}
    for spec in specs.values():
        # The page shows the title itself: as text it wraps on a phone, is searchable and can be read by screen readers.
        if spec.setdefault("layout", {}).get("title"):
            spec["layout"] = untitled(spec["layout"])
    return specs if show_words else mask_texts(specs)


def _section(result: Result, command: str) -> dict[str, Any]:
    names = file_names(result)
    return {
        "result": result, "anchor": result.id, "mark": VERDICTS[result.verdict][0], "word": VERDICTS[result.verdict][1],
        "effects": [_effect(result, key) for key in result.statistic],
        "figures": [
            {"key": f"{result.id}-{place}", "title": _title(figure.spec), "caption": figure.caption,
             "height": figure.spec.get("layout", {}).get("height", 400)}
            for place, figure in enumerate(result.figures)
        ],
        "tables": [_table(name, shown(frame), names[name]) for name, frame in result.tables.items()],
        "command": f"{command} --only {result.id}",
        "settings": [(key, json.dumps(plain(value), ensure_ascii=False) if isinstance(value, (dict, list, tuple)) else str(value))
                     for key, value in result.settings.items()],
        "seconds": f"{result.seconds:.1f} s" if result.seconds < 100 else f"{result.seconds / 60:.1f} min",
    }  # fmt: skip


def _title(spec: Mapping[str, Any]) -> str:
    """The figure's title as plain text; plotly's is escaped and may have line breaks."""
    title = spec.get("layout", {}).get("title", "")
    return html.unescape((title.get("text") or "") if isinstance(title, dict) else title).replace("<br>", " ")


def _effect(result: Result, key: str) -> dict[str, Any]:
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


def _seeds_table(seeds: Seeds | None) -> dict[str, Any] | None:
    if seeds is None:
        return None
    n_same, numbers = sum(row.same for row in seeds.rows), ", ".join(map(str, seeds.seeds))
    words = f"Controls and intervals were drawn under the seeds {numbers}: {n_same} of {len(seeds.rows)} verdicts are the same under all."
    return {**_table("seeds", seeds.to_frame(), SEEDS_FILE), "words": words}


def _table(name: str, frame: pd.DataFrame, file: str) -> dict[str, Any]:
    columns = [str(column) for column in frame.columns]
    numeric = [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in frame.dtypes]
    # The ends of an interval are shown as the number before them is.
    units: list[str] = []
    for column in columns:
        units.append(units[-1] if units and column.lower() in {"low", "high"} else column)
    records = frame.head(ROWS_AT_MOST).itertuples(index=False, name=None)
    rows = [[_cell(value, unit) for value, unit in zip(row, units, strict=True)] for row in records]
    kinds = ["n" if right else "t wide" if any(len(row[i]) > LONG_CELL for row in rows) else "t" for i, right in enumerate(numeric)]
    # Up to two rows more are shown at once, without a click.
    seen = ROWS_AT_FIRST if len(rows) > ROWS_AT_FIRST + 2 else len(rows)
    return {
        "title": _heading(name), "columns": [(column.replace("_", " "), right) for column, right in zip(columns, numeric, strict=True)],
        "kinds": kinds, "first": rows[:seen], "rest": rows[seen:], "n": len(frame), "cut": len(frame) > ROWS_AT_MOST, "file": file,
    }  # fmt: skip


def _heading(name: str) -> str:
    words = name.replace("_", " ").replace("-", " ")
    return words[:1].upper() + words[1:]


def _cell(value: Any, column: str) -> str:
    if value is None or value is pd.NaT or value is pd.NA:
        return "–"
    if is_number(value) or isinstance(value, bool) or type(value).__name__ in {"bool", "bool_"}:
        return show_number(value, column)
    if isinstance(value, (list, tuple)):
        return " · ".join(_cell(item, column) for item in value)
    text = str(value)
    return text if len(text) <= CELL_AT_MOST else text[: CELL_AT_MOST - 1] + "…"


def _groups(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """The results by the paper whose claim they test, in order."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.id.split("-")[0], []).append(result)
    return [(TITLES.get(letter, letter), members) for letter, members in groups.items()]


def _date(environment: Mapping[str, Any]) -> str:
    text = str(environment.get("written", ""))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment:%Z}".strip()


def _sides(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
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


def _shorten(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as lines of name and value: paths as their last name, hashes as their first twelve digits."""
    lines: list[tuple[str, str]] = []
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            lines += _shorten(value, f"{name} · ")
        elif isinstance(value, (list, tuple)):
            lines.append((name, ", ".join(_short(item) for item in value)))
        else:
            lines.append((name, _short(value)))
    return lines


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    if len(text) >= 32 and all(letter in "0123456789abcdef" for letter in text.lower().removeprefix("sha256:")):
        return text.removeprefix("sha256:")[:12] + "…"
    return Path(text).name if text.startswith(("/", "~", "./", "../")) or text[1:3] in (":\\", ":/") else text
