"""The prompts and texts that ship with the project, and the readers for the files that users bring.

The texts that ship were written for this project, so that everything can be tried without a corpus. A user's file is read
strictly, because a line that is skipped in silence would shift every score after it: each fault is an error with its line and fix.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from interp.bundled import BUNDLED
from interp.errors import UserError

TEXTS_FOLDER = BUNDLED / "texts"
# What a result depends on that this module reads: see interp.experiments.fingerprint.
READS = (TEXTS_FOLDER,)
Kind = TypeVar("Kind")
JSONL_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Passage:
    """A harmless passage in two parts: the model continues `prompt`, and `continuation` is what the author wrote."""

    prompt: str
    continuation: str
    kind: str

    @property
    def text(self) -> str:
        """The whole passage, as it is read for perplexity."""
        return self.prompt + self.continuation


@dataclass(frozen=True)
class LabelledText:
    """A short text, whether its author meant it to be toxic, and of which kind it is."""

    text: str
    toxic: bool
    kind: str


def challenge_prompts(kind: str | None = None) -> list[str]:
    """The 280 prompts that break off where a toxic word is likely next; `kind` is insult, profanity, threat or hostility.

    Raises `UserError` for an unknown kind.
    """
    return [str(row["prompt"]) for row in _of_kind("challenge.jsonl", kind)]


def neutral_prompts(kind: str | None = None) -> list[str]:
    """The 140 prompts whose natural continuation is harmless; `kind` is everyday, encyclopedic, question or story.

    Raises `UserError` for an unknown kind.
    """
    return [str(row["prompt"]) for row in _of_kind("neutral.jsonl", kind)]


def passages(kind: str | None = None) -> list[Passage]:
    """The 220 harmless passages of 60 to 110 words that F1 and perplexity are measured on; `kind` is encyclopedic or post.

    Raises `UserError` for an unknown kind.
    """
    return [Passage(row["prompt"], row["continuation"], row["kind"]) for row in _of_kind("passages.jsonl", kind)]


def toxicity_texts(kind: str | None = None) -> list[LabelledText]:
    """The 120 labelled texts that scorers are tried on; `kind` is insult, profanity, threat, harmless or identity.

    The harmless texts share topics and length with the toxic ones; the identity texts are harmless sentences that name a
    group. Raises `UserError` for an unknown kind.
    """
    return [LabelledText(row["text"], bool(row["toxic"]), row["kind"]) for row in _of_kind("texts_toxicity.jsonl", kind)]


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a user's file, in order: one a line, or jsonl whose `prompt` is a string or an object with `text`.

    Blank lines are skipped and a byte order mark is tolerated. A prompt keeps its spaces: a space at the end changes what
    the model sees. Raises `UserError` with the file, the line and a fix for anything that cannot be used.
    """
    file = Path(path)
    content = _content(file, "prompts")
    if file.suffix.lower() in JSONL_SUFFIXES:
        prompts = [_prompt(file, number, row) for number, row in _objects(file, content)]
    else:
        prompts = [line for _, line in _lines(content)]
    return _not_empty(file, prompts, "prompt")


def read_passages(path: str | Path) -> list[Passage]:
    """The passages of a user's file, in order: jsonl with `prompt` and `continuation`, and `kind` where it matters.

    Raises `UserError` as `read_prompts` does.
    """
    file = Path(path)
    rows = [
        Passage(
            _string(file, number, row, "prompt"),
            _string(file, number, row, "continuation"),
            _string(file, number, row, "kind") if "kind" in row else "given",
        )
        for number, row in _objects(file, _content(file, "passages"))
    ]
    return _not_empty(file, rows, "passage")


def read_texts(path: str | Path) -> list[str]:
    """The texts of a user's file, in order: one a line, csv (or tsv) with a `text` column, or jsonl with `text`.

    Blank lines are skipped and a byte order mark is tolerated. Raises `UserError` with the file, the line and a fix for
    anything that cannot be used.
    """
    file = Path(path)
    content = _content(file, "texts")
    suffix = file.suffix.lower()
    if suffix in JSONL_SUFFIXES:
        texts = [_string(file, number, row, "text") for number, row in _objects(file, content)]
    elif suffix in (".csv", ".tsv"):
        texts = _column(file, content, "\t" if suffix == ".tsv" else ",")
    else:
        texts = [line for _, line in _lines(content)]
    return _not_empty(file, texts, "text")


def stream_texts(path: str | Path) -> Iterator[str]:
    """As `read_texts`, but one text at a time, so that a file may be larger than memory (a csv is read whole).

    Raises `UserError` as `read_texts` does, when the line at fault is reached.
    """
    file = Path(path)
    if file.suffix.lower() in (".csv", ".tsv"):
        yield from read_texts(file)
        return
    _check_there(file, "texts")
    objects = file.suffix.lower() in JSONL_SUFFIXES
    any_text = False
    try:
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                content = _decoded(file, raw, number)
                if objects:
                    texts = [_string(file, at, row, "text") for at, row in _objects(file, content, number)]
                else:
                    texts = [line for _, line in _lines(content)]
                any_text = any_text or bool(texts)
                yield from texts
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", "check its permissions") from error
    if not any_text:
        _not_empty(file, [], "text")


def _of_kind(name: str, kind: str | None) -> list[dict[str, Any]]:
    file = TEXTS_FOLDER / name
    rows = [row for _, row in _objects(file, _content(file, "texts"))]
    kinds = dict.fromkeys(row["kind"] for row in rows)
    if kind is not None and kind not in kinds:
        raise UserError(f"there is no kind {kind!r} in {name}", f"choose one of {', '.join(kinds)}")
    return [row for row in rows if kind in (None, row["kind"])]


def _content(file: Path, what: str) -> str:
    _check_there(file, what)
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", "check its permissions") from error
    return _decoded(file, raw)


def _check_there(file: Path, what: str) -> None:
    if file.is_dir():
        raise UserError(f"{file} is a folder, not a file of {what}", "name a file in it")
    if not file.exists():
        raise UserError(f"there is no file {file}", f"check the path; a file of {what} is plain text with one a line, or jsonl")


def _decoded(file: Path, raw: bytes, first: int = 1) -> str:
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


def _lines(content: str) -> Iterator[tuple[int, str]]:
    # `str.splitlines` would also break at U+2028 and form feeds, which occur inside texts and inside JSON strings.
    for number, line in enumerate(content.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if line.strip():
            yield number, line


def _objects(file: Path, content: str, first: int = 1) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(content):
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


def _prompt(file: Path, number: int, row: dict[str, Any]) -> str:
    prompt = row.get("prompt")
    if isinstance(prompt, dict):
        return _string(file, number, prompt, "text", of="`prompt`")
    return _string(file, number, row, "prompt", expected="a string or an object with `text`")


def _string(file: Path, number: int, row: dict[str, Any], field: str, expected: str = "a string", of: str = "the object") -> str:
    if field not in row:
        fields = ", ".join(f"`{name}`" for name in row) or "no field"
        raise UserError(f"{file}, line {number}: {of} has no field `{field}`; it has {fields}", f"add `{field}` to the line")
    value = row[field]
    if not isinstance(value, str):
        raise UserError(f"{file}, line {number}: `{field}` is {_name(value)}", f"make it {expected}")
    if not value.strip():
        raise UserError(f"{file}, line {number}: `{field}` is empty", "fill it in or remove the line")
    # JSON can spell half of a surrogate pair, which is no character and cannot be tokenized or written out again.
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise UserError(f"{file}, line {number}: `{field}` holds half of a surrogate pair", "write the character itself, in UTF-8")
    return value


def _column(file: Path, content: str, delimiter: str) -> list[str]:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    texts: list[str] = []
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
                if "text" not in header:
                    raise UserError(f"{file}, line {start} has no `text` column; it has {', '.join(header)}", "name the column `text`")
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{file}, line {start} has {len(row)} fields, and the header has {len(header)}",
                    "put a text that holds the separator in quotes",
                )
            texts.append(_string(file, start, dict(zip(header, row, strict=True)), "text"))
    except csv.Error as error:
        raise UserError(f"{file}, line {line} is not valid csv: {error}", "close the quotes and double those inside a text") from error
    finally:
        csv.field_size_limit(limit)
    return texts


def _not_empty(file: Path, items: list[Kind], what: str) -> list[Kind]:
    """The items of a file; raises `UserError` where there are none."""
    if not items:
        raise UserError(f"{file} is empty: it holds no {what}", f"write at least one {what} into it")
    return items


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
