"""Streams documents out of local corpora (jsonl, csv, tsv, text; plain, gz or xz) and splits them by document hash.

The split depends on the text alone, so a document that is held out from pretraining is held out from the scorer, the
probe and the measurements too, in whichever file it turns up again.
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

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
HELD_OUT_SHARE = 0.05


def open_text(path: Path) -> TextIO:
    """Open a text file, decompressing `.gz` and `.xz` on the way."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8", errors="replace")
    return path.open("rt", encoding="utf-8", errors="replace")


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file: jsonl objects, csv or tsv rows, or `{"text": line}` for plain text.

    Raises `UserError` for a line that is not a JSON object, and for a compressed file that is cut off.
    """
    kind = path.name.removesuffix(".gz").removesuffix(".xz").rsplit(".", 1)[-1]
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
    """Whether a document belongs to the held-out part (5 % of all, by hash)."""
    return document_hash(text) % 10_000 < HELD_OUT_SHARE * 10_000
