"""Reads the rows of a file of preference pairs, whatever holds them, and writes rows as jsonl.

jsonl (also packed with gzip), json, csv, tsv, parquet, and a folder that `Dataset.save_to_disk` wrote. A file is read strictly: what
cannot be used is an error with its row and a fix. `pyarrow` and `datasets` are imported only for the files that need them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.data.records import JSONL, decoded, objects, read_rows
from interp.errors import UserError
from interp.files import read_json

KINDS = ".jsonl, .jsonl.gz, .json, .csv, .tsv, .parquet, or a folder of save_to_disk"
EXTRA = "pip install 'bypass-workbench[train]', or save the file as jsonl"
# What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write into a folder.
DATASET, SPLITS = "state.json", "dataset_dict.json"


@dataclass(frozen=True)
class PairFile:
    """The rows of a file by column, in order, each with the place where it stands; `container` is the kind of file."""

    source: Path
    container: str
    rows: tuple[dict[str, Any], ...]
    places: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The SHA-256 of all rows."""
        hasher = hashlib.sha256()
        for row in self.rows:
            hasher.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
        return hasher.hexdigest()


def read_pair_file(path: str | Path, *, split: str = "train", columns: Sequence[str] = ("chosen", "rejected")) -> PairFile:
    """The rows of a file or folder.

    Args:
        split: which part of a folder with several is read.
        columns: the columns that a table of text (csv, tsv) must have.

    Raises `UserError` for a file that is absent, empty, of another kind, or damaged.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if not file.exists():
        problem, fix = f"there is no file {file}", f"check the path; pairs are read from {KINDS}"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
            fix += f". A data set of the hub is saved first: load_dataset('{path}').save_to_disk(FOLDER)"
        raise UserError(problem, fix)
    if file.is_dir():
        container, rows = "folder of save_to_disk", _folder(file, split)
    elif suffix == ".gz" and Path(file.stem).suffix.lower() in JSONL:
        container, rows = "jsonl, packed", _located(file, "line", objects(file, decoded(file, _unpacked(file))))
    elif suffix == ".parquet":
        container, rows = "parquet", _located(file, "row", enumerate(_parquet(file)))
    elif suffix in (*JSONL, ".json", ".csv", ".tsv"):
        container = suffix.removeprefix(".")
        # Of JSON a row may have other columns, which the layout of the file decides.
        needed = tuple(columns) if suffix in (".csv", ".tsv") else ("chosen", "rejected")
        rows = [(place, row) for place, row in read_rows(file, "pairs", needed) if isinstance(row, dict)]
    else:
        raise UserError(f"{file} is no kind of file that pairs are read from", f"save it as {KINDS}")
    if not rows:
        raise UserError(f"{file} holds no pair", "give a file with at least one row")
    return PairFile(file, container, tuple(row for _, row in rows), tuple(place for place, _ in rows))


def write_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as jsonl: one JSON object a line; what JSON has no form for, such as a date, as text."""
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _located(file: Path, unit: str, numbered: Iterable[tuple[int, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{file}, {unit} {number}", row) for number, row in numbered]


def _unpacked(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be unpacked ({error})", "write it again with gzip, or unpack it") from error


def _parquet(file: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"reading {file} needs the package pyarrow", EXTRA) from error
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(file).to_pylist()
    except Exception as error:  # pyarrow has many errors for a damaged file
        raise UserError(f"{file} is no readable parquet file ({str(error).splitlines()[0][:200]})", "write it again") from error
    return rows


def _folder(folder: Path, split: str) -> list[tuple[str, dict[str, Any]]]:
    place = folder
    if (folder / SPLITS).is_file():
        splits = read_json(folder / SPLITS, "save the data set again").get("splits", [])
        if split not in splits:
            raise UserError(f"{folder} has no split {split!r}", f"name one with --split: {', '.join(map(str, splits)) or 'it has none'}")
        place = folder / split
    if not (place / DATASET).is_file():
        raise UserError(f"{folder} is a folder that save_to_disk did not write: it has no {DATASET}", f"give {KINDS}")
    try:
        from datasets import load_from_disk
        from datasets.utils.logging import disable_progress_bar
    except ImportError as error:
        raise UserError(f"reading {folder} needs the package datasets", EXTRA) from error
    disable_progress_bar()
    try:
        rows: list[dict[str, Any]] = load_from_disk(str(place)).to_list()
    except Exception as error:  # datasets and pyarrow have many errors for a damaged folder
        raise UserError(f"{place} cannot be read ({str(error).splitlines()[0][:200]})", "save the data set again") from error
    return _located(place, "row", enumerate(rows))
