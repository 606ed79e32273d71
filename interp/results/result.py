"""`Result`: what an experiment returns, with its question, criterion, verdict, null, interval, tables and figures.

The criterion and what would have refuted the claim are fields beside the verdict, so that a verdict is never shown without
them. A result is data only: it is saved and loaded here, drawn in `figures`, laid out in `report` and `terminal`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from interp.data.lexicon import mask
from interp.errors import UserError
from interp.files import read_json, write_together
from interp.results.judged import Judged

Verdict = Literal["holds", "fails", "inconclusive", "not applicable"]
# Columns with the keys of a row, which never change: `role` (`base`, `tuned`, `edited`, `un-aligned`, `null`, or what kind
# of row it is), and `row_key`, which identifies one row. They are saved with a table and never shown; labels are shown.
ROLE, ROW_KEY = "role", "row_key"
# Figures and results accept whole numbers where they take a float.
Real = float | int
INFINITIES = {"Infinity": math.inf, "-Infinity": -math.inf}
EARLIER = "run `bypass report` again with this version"
SHARE_WORDS = frozenset({"share", "shares", "probability", "fraction", "proportion"})
# Fields that results of earlier versions lack.
ADDED = frozenset({"seconds", "sentence", "does_not_show", "criteria"})
# A number beyond this is not a share, although its column is named like one.
SHARE_AT_MOST = 10


@dataclass(frozen=True)
class Figure:
    """A plotly figure as plain JSON, and its caption."""

    name: str
    caption: str
    spec: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The figure as a JSON object, from which `from_json` makes it again."""
        return {"name": self.name, "caption": self.caption, "spec": plain(self.spec)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Figure:
        """The figure that `to_json` wrote."""
        return cls(record["name"], record["caption"], record["spec"])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The figure for notebooks that can draw plotly, and its caption for all others."""
        return {"application/vnd.plotly.v1+json": plain(self.spec), "text/plain": self.caption}


@dataclass(frozen=True)
class Result:
    """The result of one experiment on one claim.

    Keys of `statistic`, `null` and `interval` correspond; the first is the headline. Programs look results up by these keys, by
    the names of tables and figures, by the words in `role` and `row_key` columns, and by settings, so none of these is reworded.
    All other texts are for readers.

    Attributes:
        sentence: what was found, in one plain sentence with the number, its interval and its null.
        does_not_show: what a reader may take the result for and it is not, in one sentence.
        criteria: all versions of the criterion with their verdicts; the last is `criterion` with `verdict`.
    """

    id: str
    claim: str
    title: str
    question: str
    criterion: str
    verdict: Verdict
    summary: str
    statistic: dict[str, Real]
    null: dict[str, Real]
    interval: dict[str, tuple[Real, Real]]
    tables: dict[str, pd.DataFrame]
    figures: tuple[Figure, ...]
    refuted_by: str
    caveat: str
    settings: dict[str, Any]
    seconds: Real = 0.0
    sentence: str = ""
    does_not_show: str = ""
    criteria: tuple[Judged, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"{self.id}: the verdict is {self.verdict!r}, but must be one of {', '.join(get_args(Verdict))}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.id):
            raise ValueError(f"the id {self.id!r} cannot be a file name: use letters, digits, '-', '_' and '.'")
        stray = (self.null.keys() | self.interval.keys()) - self.statistic.keys()
        if stray:
            raise UserError(
                f"{self.id} has a null or interval of {', '.join(sorted(stray))}, of which there is no statistic",
                f"name each as its statistic: {', '.join(self.statistic) or 'there is none'}",
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal result; NaN becomes null, frames `{"columns", "rows"}`."""
        record = {item.name: plain(getattr(self, item.name)) for item in fields(self) if item.name not in {"tables", "figures", "criteria"}}
        record["criteria"] = [plain(asdict(item)) for item in self.criteria]
        record["tables"] = {name: frame_to_json(frame) for name, frame in self.tables.items()}
        record["figures"] = [figure.to_json() for figure in self.figures]
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Result:
        """The result that `to_json` wrote. Raises `UserError` naming the field that is missing."""
        missing = [item.name for item in fields(cls) if item.name not in record and item.name not in ADDED]
        if missing:
            raise UserError(f"a result without {', '.join(missing)}", "run the experiment again with this version of bypass")
        if record["verdict"] not in get_args(Verdict):
            raise UserError(f"a result with the verdict {record['verdict']!r}", f"it must be one of {', '.join(get_args(Verdict))}")
        values = {item.name: record[item.name] for item in fields(cls) if item.name in record}
        values["statistic"] = {key: number(value) for key, value in record["statistic"].items()}
        values["null"] = {key: number(value) for key, value in record["null"].items()}
        values["interval"] = {key: (number(low), number(high)) for key, (low, high) in record["interval"].items()}
        values["tables"] = {name: frame_from_json(frame) for name, frame in record["tables"].items()}
        values["criteria"] = tuple(Judged(**item) for item in record.get("criteria", ()))
        values["figures"] = tuple(Figure.from_json(figure) for figure in record["figures"])
        return cls(**values)


def plain(value: Any) -> Any:
    """A setting, number or cell as JSON: NaN as None, infinities as text, arrays and tuples as lists."""
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, (str, bool)):
        return value
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else next(text for text, infinity in INFINITIES.items() if infinity == value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def number(value: Any) -> float:
    """The float that `plain` wrote as JSON."""
    if value is None:
        return math.nan
    return INFINITIES[value] if isinstance(value, str) else float(value)


def frame_to_json(frame: pd.DataFrame) -> dict[str, Any]:
    """A frame as an object of columns and rows; an index of names becomes the first columns, a bare counter is dropped."""
    flat = flatten(frame)
    columns = [plain(flat.iloc[:, position].tolist()) for position in range(flat.shape[1])]
    return {"columns": [str(name) for name in flat.columns], "rows": [list(row) for row in zip(*columns, strict=True)]}


def frame_from_json(record: Mapping[str, Any]) -> pd.DataFrame:
    """The frame that `frame_to_json` wrote; None in a column of numbers is NaN again."""
    frame = pd.DataFrame(record["rows"], columns=record["columns"])
    for position, name in enumerate(frame.columns):
        cells = [row[position] for row in record["rows"]]
        can_be_numbers = all(cell is None or is_number(cell) or (isinstance(cell, str) and cell in INFINITIES) for cell in cells)
        if can_be_numbers and not all(map(is_number, cells)):
            frame[name] = [number(cell) for cell in cells]
    return frame


def flatten(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with an index of names as columns; an index that only counts is dropped."""
    is_counter = frame.index.name is None and frame.index.nlevels == 1 and pd.api.types.is_integer_dtype(frame.index)
    return frame if is_counter else frame.reset_index()


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as it is shown: without the columns `role` and `row_key`."""
    flat = flatten(frame)
    return flat.drop(columns=[name for name in (ROLE, ROW_KEY) if name in flat.columns])


def rows_of(result: Result, table: str, role: str, *, column: str = ROLE) -> pd.DataFrame:
    """The rows of a result's table whose `role` (or other key column) is this word. Raises `UserError` for a result without them."""
    frame = result.tables.get(table, pd.DataFrame())
    rows = frame[frame[column] == role] if column in frame.columns else frame[:0]
    if rows.empty:
        raise UserError(f"{result.id} has no rows {role!r} in its table {table!r}: it was made by an earlier version", EARLIER)
    return rows


def row_of(result: Result, table: str, key: str) -> pd.Series:
    """The one row of a result's table with this `row_key`. Raises `UserError` for a result without it."""
    return rows_of(result, table, key, column=ROW_KEY).iloc[0]


def figure_of(result: Result | Sequence[Figure], name: str) -> Figure:
    """The figure of a result with this name. Raises `UserError` for a result without it."""
    figures = result.figures if isinstance(result, Result) else result
    figure = next((figure for figure in figures if figure.name == name), None)
    if figure is None:
        raise UserError(f"there is no figure {name!r}: the result was made by an earlier version", EARLIER)
    return figure


def effect_of(result: Result, key: str) -> tuple[float, float]:
    """A statistic of a result and its null. Raises `UserError` for a result without the statistic."""
    if key not in result.statistic:
        raise UserError(f"{result.id} has no statistic {key!r}: it was made by an earlier version", EARLIER)
    return float(result.statistic[key]), float(result.null.get(key, math.nan))


def is_number(value: Any) -> bool:
    """Whether a value is a number of Python or numpy, and not a truth value."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def show_number(value: Any, column: str = "") -> str:
    """A number as text for readers: three significant digits, a per cent where the column is a share, no `-0` or `nan`."""
    if value is None or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    is_share = bool(SHARE_WORDS & set(re.split(r"[^a-z]+", column.lower())))
    if isinstance(value, (int, np.integer)) and not is_share:
        return _signed(f"{int(value):,}" if abs(int(value)) >= 10_000 else str(int(value)))
    real = float(value)
    if math.isinf(real):
        return "∞" if real > 0 else "−∞"
    if is_share and abs(real) <= SHARE_AT_MOST:
        return _signed(f"{_three_digits(100 * real)} %")
    return _signed(_three_digits(real))


def _three_digits(value: float) -> str:
    size = abs(value)
    if size != 0 and (size < 1e-4 or size >= 1e7):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if size >= 999.5:
        return f"{value:,.0f}"
    digits = 2 if size == 0 else max(0, 2 - math.floor(math.log10(float(f"{size:.2e}"))))
    text = f"{value:.{digits}f}" if size else "0"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _signed(text: str) -> str:
    return "−" + text[1:] if text.startswith("-") else text


def file_names(result: Result) -> dict[str, str]:
    """The CSV file of each table, by table name: `<id>-<table>.csv`. Profane words in file names are masked."""
    names: dict[str, str] = {}
    for table in result.tables:
        name = csv_name(result.id, table)
        if name in names.values():
            raise ValueError(f"{result.id}: two tables would be written to {name}; give them names that differ in letters or digits")
        names[table] = name
    return names


def csv_name(id: str, table: str) -> str:
    """The name of the CSV file of a table of the result with this id."""
    return f"{id}-{re.sub(r'[^A-Za-z0-9._-]+', '-', mask(table)).strip('-') or 'table'}.csv"


def csv_files(result: Result, pair: str = "") -> dict[str, str]:
    """The text of every CSV file of a result: raw words and full precision, for machines; `pair` is the last column of each."""
    return {name: to_csv(flatten(result.tables[table]), pair) for table, name in file_names(result).items()}


def to_csv(frame: pd.DataFrame, pair: str = "") -> str:
    """A frame as CSV, with a last column that names the pair that it is of, where one is given."""
    return frame.assign(**({"pair": pair} if pair else {})).to_csv(index=False)


def save_result(result: Result, folder: str | Path, pair: str = "") -> Path:
    """Write `<id>.json` and one CSV per table, all of them or none; returns the path of the JSON file."""
    files = csv_files(result, pair) | {f"{result.id}.json": json.dumps(result.to_json(), indent=1, ensure_ascii=False, allow_nan=False)}
    write_together(files, Path(folder))
    return Path(folder) / f"{result.id}.json"


def load_result(path: str | Path) -> Result:
    """The result in a file that `save_result` wrote. Raises `UserError` where it is absent or damaged."""
    return Result.from_json(read_json(Path(path), "run `bypass report` again"))
