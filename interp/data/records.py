"""Reads the rows of a user's file by what its suffix says it is: txt, csv, tsv, json or jsonl.

A file is read strictly, because a line that is skipped or misread in silence would shift every score after it: each fault is an
error with its line and fix, and a file of any other suffix is refused rather than guessed at.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from interp.errors import UserError

TABLES = {".csv": ",", ".tsv": "\t"}
JSONL = (".jsonl", ".ndjson")
SUFFIXES = (".txt", ".csv", ".tsv", ".json", *JSONL)
Row = str | dict[str, Any]


def read_rows(file: Path, what: str, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Each row of a file with the place where it stands: a string (a line of text, a string of a JSON list), or an object by column.

    Args:
        what: the name of what the file holds, such as prompts.
        columns: the columns that a row of a table has to have.

    Raises `UserError` with the file, the line and a fix for anything that cannot be used.
    """
    check_suffix(file, what, columns)
    content = content_of(file, what)
    suffix = file.suffix.lower()
    if suffix in JSONL:
        return ((f"{file}, line {number}", row) for number, row in objects(file, content))
    if suffix in TABLES:
        return iter(_table(file, content, TABLES[suffix], columns))
    if suffix == ".json":
        return iter(_list(file, content, columns))
    return ((f"{file}, line {number}", line) for number, line in plain_lines(file, content))


def check_suffix(file: Path, what: str, columns: Sequence[str]) -> None:
    """Raise `UserError` for a file that is not there, whose suffix does not say what it is, or that cannot hold such rows."""
    check_there(file, what)
    named = " and ".join(f"`{name}`" for name in columns)
    tables = f".csv, .tsv, .json or .jsonl with {named}"
    if file.suffix.lower() not in SUFFIXES:
        ending = f"of the kind {file.suffix}" if file.suffix else "without a suffix"
        fix = f"save it as {tables}" if len(columns) > 1 else f"save it as .txt with one a line, or as {tables}"
        raise UserError(f"{file} is a file {ending}, and what it holds is not guessed at", fix)
    if file.suffix.lower() == ".txt" and len(columns) > 1:
        raise UserError(f"{file} is plain text, and each of the {what} has {len(columns)} parts", f"save it as {tables}")


def text_of(place: str, row: Row, field: str, expected: str = "a string", of: str = "the object") -> str:
    """The text of a row, with its spaces: the row itself, or one of its fields. Raises `UserError` unless that is a string, not blank."""
    if isinstance(row, str):
        return _checked(place, "it", row)
    if field not in row:
        fields = ", ".join(f"`{name}`" for name in row) or "no field"
        raise UserError(f"{place}: {of} has no field `{field}`; it has {fields}", f"add `{field}` to the line")
    value = row[field]
    if not isinstance(value, str):
        raise UserError(f"{place}: `{field}` is {_name(value)}", f"make it {expected}")
    return _checked(place, f"`{field}`", value)


def _checked(place: str, name: str, value: str) -> str:
    if not value.strip():
        raise UserError(f"{place}: {name} is empty", "fill it in or remove the line")
    # JSON can spell half of a surrogate pair, which is no character and cannot be tokenized or written out again.
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise UserError(f"{place}: {name} holds half of a surrogate pair", "write the character itself, in UTF-8")
    return value


def content_of(file: Path, what: str) -> str:
    """The text of a file in UTF-8, without its byte order mark."""
    check_there(file, what)
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", "check its permissions") from error
    return decoded(file, raw)


def check_there(file: Path, what: str) -> None:
    """Raise `UserError` for a file that does not exist, and for a folder."""
    if file.is_dir():
        raise UserError(f"{file} is a folder, not a file of {what}", "name a file in it")
    if not file.exists():
        raise UserError(f"there is no file {file}", f"check the path; a file of {what} is txt, csv, tsv, json or jsonl")


def decoded(file: Path, raw: bytes, first: int = 1) -> str:
    """The text of a whole file, or of the part of it that begins with line `first`."""
    # UTF-16 of Latin text is full of NUL bytes too, so the fix that helps most people comes first.
    if b"\x00" in raw:
        line = first + raw[: raw.index(b"\x00")].count(b"\n")
        raise UserError(f"{file}, line {line} holds a NUL byte, so this is not UTF-8 text", "save the file as UTF-8, or name a text file")
    try:
        # Decoded without `utf-8-sig`, whose error positions leave out the mark; the mark is taken off afterwards.
        content = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first + raw[: error.start].count(b"\n")
        raise UserError(f"{file}, line {line} is not UTF-8 (byte 0x{raw[error.start]:02x})", "save the file as UTF-8") from error
    return content.removeprefix("\ufeff") if first == 1 else content


def lines(content: str) -> Iterator[tuple[int, str]]:
    """Each line that is not blank, with its number."""
    # `str.splitlines` would also break at U+2028 and form feeds, which occur inside texts and inside JSON strings.
    for number, line in enumerate(content.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if line.strip():
            yield number, line


def plain_lines(file: Path, content: str, first: int = 1) -> Iterator[tuple[int, str]]:
    """The lines of plain text, counted from `first`. Raises `UserError` where the first one begins JSON."""
    for place, (number, line) in enumerate(lines(content)):
        number += first - 1
        if not place and _begins_json(line):
            raise UserError(f"{file} is named as plain text, but line {number} begins JSON", "rename it to .jsonl, or .json for one list")
        yield number, line


def _begins_json(line: str) -> bool:
    text = line.strip()
    if text in ("{", "["):
        return True
    try:
        value = json.loads(text) if text[0] in "{[" else None
    except (json.JSONDecodeError, RecursionError):
        return False
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, (str, dict)) for item in value))


def objects(file: Path, content: str, first: int = 1) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON object of each line that is not blank, with the line's number, counted from `first`."""
    for number, line in lines(content):
        number += first - 1
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise UserError(f"{file}, line {number} is not JSON: {reason}", "repair or remove the line") from error
        if not isinstance(row, dict):
            raise UserError(
                f"{file}, line {number} holds {_name(row)}, not an object", 'write each line as an object, such as {"text": "..."}'
            )
        yield number, row


def _list(file: Path, content: str, columns: Sequence[str]) -> list[tuple[str, Row]]:
    """The entries of a JSON file that holds one list of strings or objects."""
    named = " and ".join(f"`{name}`" for name in columns)
    fix = f"write one list of objects with {named}" + (", or of strings" if len(columns) == 1 else "")
    if not content.strip():
        return []
    try:
        entries = json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = f"{error.msg} at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise UserError(f"{file} is not JSON: {reason}", f"{fix}; with one object a line it is .jsonl") from error
    if not isinstance(entries, list):
        fields = f" with {', '.join(f'`{name}`' for name in entries) or 'no field'}" if isinstance(entries, dict) else ""
        raise UserError(f"{file} holds {_name(entries)}{fields}, not a list", fix)
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, (dict, str) if len(columns) == 1 else dict):
            raise UserError(f"{file}, entry {number} is {_name(entry)}", fix)
    return [(f"{file}, entry {number}", entry) for number, entry in enumerate(entries, 1)]


def _table(file: Path, content: str, delimiter: str, columns: Sequence[str]) -> list[tuple[str, Row]]:
    """The records of a csv or tsv file with a header, by column."""
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    records: list[tuple[str, Row]] = []
    line = 1
    limit = csv.field_size_limit(max(len(content), 1))
    try:
        for row in reader:
            # A quoted field may span lines, so a record is named by the line on which it begins.
            start, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if header is None:
                header = [cell.strip() for cell in row]
                lacking = next((name for name in columns if name not in header), None)
                if lacking is not None:
                    problem = f"{file}, line {start} has no `{lacking}` column; it has {', '.join(header)}"
                    raise UserError(problem, f"name the column `{lacking}`")
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{file}, line {start} has {len(row)} fields, and the header has {len(header)}",
                    "put a text that holds the separator in quotes",
                )
            record = dict(zip(header, row, strict=True))
            for name in columns:
                if record[name].lstrip().startswith(('{"', "{'")) and record[name].rstrip().endswith("}"):
                    raise UserError(f"{file}, line {start}: `{name}` is an object written as text", "write its text alone into the column")
            records.append((f"{file}, line {start}", record))
    except csv.Error as error:
        raise UserError(f"{file}, line {line} is not valid csv: {error}", "close the quotes and double those inside a text") from error
    finally:
        csv.field_size_limit(limit)
    return records


def _name(value: object) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
        type(None): "null",
    }
    return names[type(value)]
