"""The prompts and texts that ship with the project, and the readers for the files that users bring.

The texts that ship were written for this project, so that everything can be tried without a corpus. A user's file is read by what
its suffix says it is (see `interp.data.records`), and each fault is an error with its line and fix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from interp.bundled import BUNDLED
from interp.data.records import JSONL, Row, check_suffix, content_of, decoded, lines, objects, plain_lines, read_rows, text_of
from interp.errors import UserError

TEXTS_FOLDER = BUNDLED / "texts"
# What a result depends on that this module reads: see interp.experiments.fingerprint.
READS = (TEXTS_FOLDER,)
Kind = TypeVar("Kind")


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
    """The prompts of a user's file, in order: txt with one a line, or csv, tsv, json or jsonl with `prompt`.

    In JSON a prompt is a string or an object with `text`, and a json file may hold a list of strings. Blank lines are skipped and a
    byte order mark is tolerated. A prompt keeps its spaces: a space at the end changes what the model sees. Raises `UserError` with
    the file, the line and a fix for anything that cannot be used, and for a file of another suffix.
    """
    file = Path(path)
    return _not_empty(file, [_prompt(place, row) for place, row in read_rows(file, "prompts", ("prompt",))], "prompt")


def read_passages(path: str | Path) -> list[Passage]:
    """The passages of a user's file, in order: csv, tsv, json or jsonl with `prompt` and `continuation`, and `kind` where it matters.

    Raises `UserError` as `read_prompts` does.
    """
    file = Path(path)
    rows = [
        Passage(
            text_of(place, row, "prompt"), text_of(place, row, "continuation"), text_of(place, row, "kind") if "kind" in row else "given"
        )
        for place, row in read_rows(file, "passages", ("prompt", "continuation"))
    ]
    return _not_empty(file, rows, "passage")


def read_texts(path: str | Path) -> list[str]:
    """The texts of a user's file, in order: txt with one a line, or csv, tsv, json or jsonl with `text`; json may hold a list of strings.

    Blank lines are skipped and a byte order mark is tolerated. Raises `UserError` as `read_prompts` does.
    """
    file = Path(path)
    return _not_empty(file, [text_of(place, row, "text") for place, row in read_rows(file, "texts", ("text",))], "text")


def stream_texts(path: str | Path) -> Iterator[str]:
    """As `read_texts`, but one text at a time, so that a txt or jsonl file may be larger than memory (others are read whole).

    Raises `UserError` as `read_texts` does, when the line at fault is reached.
    """
    file = Path(path)
    check_suffix(file, "texts", ("text",))
    by_line = file.suffix.lower() in JSONL
    if not by_line and file.suffix.lower() != ".txt":
        yield from read_texts(file)
        return
    any_text = False
    try:
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                content = decoded(file, raw, number)
                if by_line:
                    texts = [text_of(f"{file}, line {at}", row, "text") for at, row in objects(file, content, number)]
                else:
                    numbered = lines(content) if any_text else plain_lines(file, content, number)
                    texts = [line for _, line in numbered]
                any_text = any_text or bool(texts)
                yield from texts
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", "check its permissions") from error
    if not any_text:
        _not_empty(file, [], "text")


def _prompt(place: str, row: Row) -> str:
    if isinstance(row, dict) and isinstance(row.get("prompt"), dict):
        return text_of(place, row["prompt"], "text", of="`prompt`")
    return text_of(place, row, "prompt", expected="a string or an object with `text`")


def _of_kind(name: str, kind: str | None) -> list[dict[str, Any]]:
    file = TEXTS_FOLDER / name
    rows = [row for _, row in objects(file, content_of(file, "texts"))]
    kinds = dict.fromkeys(row["kind"] for row in rows)
    if kind is not None and kind not in kinds:
        raise UserError(f"there is no kind {kind!r} in {name}", f"choose one of {', '.join(kinds)}")
    return [row for row in rows if kind in (None, row["kind"])]


def _not_empty(file: Path, items: list[Kind], what: str) -> list[Kind]:
    """The items of a file; raises `UserError` where there are none."""
    if not items:
        raise UserError(f"{file} is empty: it holds no {what}", f"write at least one {what} into it")
    return items
