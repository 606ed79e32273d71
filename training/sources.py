"""Streams documents out of corpora (files, folders of text, Hugging Face data sets) and splits them by document hash.

The split depends on the beginning of the text alone, so a document that is held out from pretraining is held out from the
scorer, the probe and the measurements too, whichever file it comes from and however much of it is kept.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from interp.errors import UserError
from training.grammar import grammar_rows
from training.recipe import data_file
from training.sections import SourceSettings

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
HELD_OUT_SHARE = 0.05
# The split reads this many characters of a document, however many of them a stage keeps.
DECIDING_CHARACTERS = 3000
TEXT_FILES = frozenset({"txt", "text", "md", "tokens", "raw"})


def open_text(path: Path) -> TextIO:
    """Open a text file, decompressing `.gz` and `.xz` on the way."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8", errors="replace")
    return path.open("rt", encoding="utf-8", errors="replace")


def source_rows(source: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a recipe's source, each with the name of where it came from, streamed.

    A source names a `path` (a file, a glob, or a folder, each text file of which is one document) or a `dataset` on the
    Hugging Face hub or in a local folder, with `config` and `split` ("train" by default), or a `grammar` of the project
    that writes `documents`. With `whole = true` each text file is one document, otherwise each line. Raises `UserError` for
    what cannot be found or read.
    """
    if len(source.keys() & {"path", "dataset", "grammar"}) != 1:
        raise UserError(f"the source {source.get('name', source)!r} needs a path, a dataset or a grammar", "give one of the three")
    if "grammar" in source:
        yield from ((f"the grammar {source['grammar']}", row) for row in grammar_rows(source))
        return
    if "dataset" in source:
        yield from ((source["dataset"], row) for row in _dataset_rows(source))
        return
    for path in data_file(source["path"]):
        if path.is_dir() or source.get("whole"):
            for file in text_files(path) if path.is_dir() else [path]:
                yield str(file), {"text": _whole(file)}
        else:
            yield from ((str(path), row) for row in rows(path))


def text_files(folder: Path) -> list[Path]:
    """The text files below a folder, in order of their names; raises `UserError` where there are none."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _kind(path) in TEXT_FILES)
    if not files:
        raise UserError(
            f"the folder {folder} holds no text file", f"text files end in {', '.join(sorted(TEXT_FILES))}, or these and .gz or .xz"
        )
    return files


def _kind(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".xz").rsplit(".", 1)[-1]


def _whole(path: Path) -> str:
    try:
        with open_text(path) as stream:
            return stream.read()
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read to its end: {error}", "download or copy it again") from error


def _dataset_rows(source: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a data set through `datasets`, streamed; a name that is a folder below the data is read from there."""
    from datasets import load_dataset

    name, config, split = source["dataset"], source.get("config"), source.get("split", SourceSettings.split)
    try:
        place = str(data_file(name)[0])
    except UserError:
        place = name
    title = " ".join(str(part) for part in (name, config) if part)
    try:
        dataset = load_dataset(place, config, split=split, streaming=True)
        yield from dataset
    except ValueError as error:
        # An unknown configuration or split; the library's message lists the known ones.
        raise UserError(f"the data set {title} has no split {split!r} as asked: {_first_line(error)}", "correct config or split") from error
    except OSError as error:
        # Its errors of an unreachable hub, an unknown name and an absent cache are all of this kind.
        raise UserError(
            f"the data set {title} is neither on this machine nor can it be had from the hub ({_first_line(error)})",
            "connect to the network, put a copy into a folder below BYPASS_DATA and name that, or leave the source out",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file: jsonl objects, csv or tsv rows, or `{"text": line}` for plain text.

    Raises `UserError` for a line that is not a JSON object, and for a compressed file that is cut off.
    """
    kind = _kind(path)
    with open_text(path) as stream:
        try:
            if kind == "jsonl":
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield _record(path, number, line)
            elif kind in {"csv", "tsv"}:
                yield from csv.DictReader(stream, delimiter="\t" if kind == "tsv" else ",")
            else:
                yield from ({"text": line.rstrip("\n")} for line in stream)
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, csv.Error) as error:
            raise UserError(f"{path} cannot be read to its end: {error}", "download or copy it again") from error


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number} is not JSON: {error.msg}", "repair or remove the line") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}, line {number} is not a JSON object", "give one object a line, with the text under a name")
    return record


def document_hash(text: str) -> int:
    """A 64-bit hash of the text, without regard to case and spacing, that decides its split and finds its copies."""
    normal = " ".join(text.lower().split())
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def held_out(text: str) -> bool:
    """Whether a document belongs to the held-out part (5 % of all), by the hash of its first 3,000 characters.

    Every stage calls this with the whole document, or with at least that beginning, before it truncates the text.
    """
    return document_hash(text.strip()[:DECIDING_CHARACTERS]) % 10_000 < HELD_OUT_SHARE * 10_000
