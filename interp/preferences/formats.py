"""The layouts in which preference data is written, and every row as the prompt and two sides that a preference trainer gets.

TRL's `DPOTrainer` decides by the first row of a file whether the prompt stands in a column of its own, and reads two common layouts
otherwise than their authors meant: it cuts prompts that are implicit at the first character (or turn) that differs, and it trains on
a doubled prompt where messages of the prompt are repeated in both sides. A row is read here as TRL reads it, and its notes say so;
three layouts that TRL cannot read as they are meant (`NORMALISED`) are brought into one that it can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from interp.errors import UserError
from interp.preferences.files import PairFile

Layout = Literal[
    "standard explicit", "standard implicit", "conversational explicit", "conversational implicit",
    "prompt text and whole conversations", "prompt messages and whole conversations", "HH text",
]  # fmt: skip
Messages = list[dict[str, Any]]
Text = str | Messages
COLUMNS = ("prompt", "chosen", "rejected")
# Layouts that TRL refuses, or would cut elsewhere than at the last turn: what is written of them has the columns that were read.
NORMALISED: tuple[Layout, ...] = ("prompt text and whole conversations", "HH text")
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
NONE = "none"
# A prompt of fewer characters may begin both answers without being repeated.
SHORT_TEXT = 20


@dataclass(frozen=True)
class Pair:
    """A preference pair as the trainer gets it, before it is tokenised: all three parts are texts, or all are lists of messages.

    Attributes:
        row: its index in the file.
        place: where it stands, for messages.
        notes: what was normalised, and what the trainer does that its author may not expect.
        tools: what the chat template gets beside the messages, as its `tools`.
        template: further arguments of the chat template (`chat_template_kwargs`).
    """

    row: int
    place: str
    prompt: Text
    chosen: Text
    rejected: Text
    notes: tuple[str, ...] = ()
    tools: Any = None
    template: tuple[tuple[str, Any], ...] = ()

    @property
    def is_conversation(self) -> bool:
        """Whether the parts are messages, which a chat template turns into text."""
        return isinstance(self.prompt, list)

    @property
    def has_doubled_prompt(self) -> bool:
        """Whether both sides begin with the whole prompt again, so that the trainer reads it twice; a short text may do so by chance."""
        size = len(self.prompt)
        return size >= (1 if self.is_conversation else SHORT_TEXT) and self.chosen[:size] == self.prompt == self.rejected[:size]


@dataclass(frozen=True)
class PairData:
    """The pairs of a file in their layout, and the file's rows with the columns as they were named."""

    file: PairFile
    layout: Layout
    columns: dict[str, str]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_rewritten(self) -> bool:
        """Whether rows are written otherwise than they were read, because TRL would not read them so."""
        return self.layout in NORMALISED or any(self.columns[name] not in (name, NONE) for name in COLUMNS) or self.ignores_prompt

    @property
    def ignores_prompt(self) -> bool:
        """Whether a column `prompt` is there and was asked to be left out."""
        return self.columns["prompt"] == NONE and any("prompt" in row for row in self.file.rows)


def parse_columns(text: str | None) -> dict[str, str]:
    """The column of each part from `prompt=question,chosen=better`; a part that is not named has its own name.

    `prompt=none` leaves the column `prompt` out. Raises `UserError` for another form.
    """
    columns = {name: name for name in COLUMNS}
    for item in (text or "").split(","):
        name, sign, column = (part.strip() for part in item.partition("="))
        if not item.strip():
            continue
        if not sign or not column or name not in COLUMNS or (column == NONE and name != "prompt"):
            raise UserError(f"--columns holds {item.strip()!r}", "write prompt=COLUMN,chosen=COLUMN,rejected=COLUMN, or prompt=none")
        columns[name] = column
    return columns


def read_pairs(file: PairFile, *, columns: Mapping[str, str] | None = None, layout: str | None = None) -> PairData:
    """The pairs of a file in the layout that it is found to have, or in `layout`.

    Raises `UserError`, with the row, for a column that is missing or of another kind than in other rows, and for an unknown layout.
    """
    named = dict(columns or parse_columns(None))
    if layout is not None and layout not in get_args(Layout):
        raise UserError(f"there is no layout {layout!r}", f"use one of: {', '.join(get_args(Layout))}")
    if "image" in file.rows[0] or "images" in file.rows[0]:
        raise UserError(f"{file.source} has images, and only text is read", "leave out the rows with images, and their column")
    parts = [_parts(row, place, named) for row, place in zip(file.rows, file.places, strict=True)]
    kinds = {name: _kind(file, parts, name) for name in COLUMNS}
    recognised: Layout = detect(file, parts, kinds) if layout is None else layout  # type: ignore[assignment]
    _check_kinds(file, recognised, kinds)
    pairs = tuple(
        _pair(number, place, values, recognised, row)
        for number, (values, place, row) in enumerate(zip(parts, file.places, file.rows, strict=True))
    )
    return PairData(file, recognised, named, pairs, _file_notes(file, recognised, pairs))


def detect(file: PairFile, parts: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> Layout:
    """The layout of rows whose parts are of these kinds (`text`, `messages`, or `none` for a prompt that no row has)."""
    sides = kinds["chosen"]
    if kinds["prompt"] == "none":
        return "conversational implicit" if sides == "messages" else _hh_or_implicit(file, parts)
    if sides == "text":
        return "standard explicit"
    if kinds["prompt"] == "text":
        return "prompt text and whole conversations"
    whole = all(part["chosen"][: len(part["prompt"])] == part["prompt"] == part["rejected"][: len(part["prompt"])] for part in parts)
    return "prompt messages and whole conversations" if whole else "conversational explicit"


def extract_prompt(chosen: Text, rejected: Text, place: str) -> tuple[Text, Text, Text]:
    """Prompt, chosen and rejected of a pair whose prompt is implicit, cut as TRL cuts it.

    The cut lies before the first character (or turn) that differs, and before a space there. Where the first one differs already, that
    space is looked for at the end of `chosen`; where none differs, the last one of the shorter side is taken for a difference. Raises
    `UserError` for an empty side, at which TRL stops.
    """
    shorter = min(len(chosen), len(rejected))
    if not shorter:
        raise UserError(f"{place}: a side is empty, and the prompt is to be found in it", "fill it in or remove the row")
    cut = shorter - 1
    for index in range(shorter):
        if chosen[index] != rejected[index]:
            cut = index - 1 if chosen[index - 1] == " " else index
            break
    return chosen[:cut], chosen[cut:], rejected[cut:]


def hh_cut(chosen: str, rejected: str, place: str) -> int:
    """The number of characters up to the end of the last `Assistant:` turn's name that both sides share."""
    shared = next((index for index, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
    start = chosen.rfind(ASSISTANT, 0, shared)
    if start < 0:
        raise UserError(f"{place}: the sides share no {ASSISTANT!r}", "correct the row, or read the file as --layout 'standard implicit'")
    return start + len(ASSISTANT)


def written_row(data: PairData, pair: Pair) -> dict[str, Any]:
    """The row of a pair for a new file: as it was read, or with the columns that TRL reads, and its index as `bypass_row`."""
    row = dict(data.file.rows[pair.row])
    if data.is_rewritten:
        read = {*COLUMNS, *(column for column in data.columns.values() if column != NONE)}
        row = {name: value for name, value in row.items() if name not in read}
        row = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, **row}
    return {**row, "bypass_row": pair.row}


def _parts(row: Mapping[str, Any], place: str, columns: Mapping[str, str]) -> dict[str, Any]:
    parts = {name: None if columns[name] == NONE else row.get(columns[name]) for name in COLUMNS}
    for name in ("chosen", "rejected"):
        if parts[name] is None:
            has = ", ".join(f"`{column}`" for column in row) or "no column"
            problem = f"{place}: `{columns[name]}` is {'null' if columns[name] in row else 'missing'}; the row has {has}"
            raise UserError(problem, "fill it in or remove the row, or name the columns: --columns chosen=COLUMN,rejected=COLUMN")
    return parts


def _kind(file: PairFile, parts: Sequence[Mapping[str, Any]], name: str) -> str:
    kinds = [_kind_of(part[name], place, name) for part, place in zip(parts, file.places, strict=True)]
    other = next((index for index, kind in enumerate(kinds) if kind != kinds[0]), None)
    if other is None:
        return kinds[0]
    if "none" in (kinds[0], kinds[other]):
        with_it, without = (file.places[other], file.places[0]) if kinds[0] == "none" else (file.places[0], file.places[other])
        raise UserError(
            f"{with_it}: the row has a `prompt`, and {without} has none; TRL looks at the first row alone",
            "give every row a prompt, or none, or leave the column out: --columns prompt=none",
        )
    problem = f"{file.places[other]}: `{name}` is {_words(kinds[other])}, and in {file.places[0]} it is {_words(kinds[0])}"
    raise UserError(problem, "write all rows in one layout")


def _kind_of(value: Any, place: str, name: str) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise UserError(f"{place}: `{name}` holds half of a surrogate pair", "write the character itself, in UTF-8")
        if value.lstrip().startswith(('[{"role"', "[{'role'", '[{"content"', "[{'content'")):
            raise UserError(f"{place}: `{name}` is a list of messages written as text, which would be trained on as it stands",
                            "save the file as jsonl or parquet, with the list itself")  # fmt: skip
        return "text"
    if isinstance(value, list) and value and all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in value):
        for item in value:
            _kind_of(item.get("content") if isinstance(item.get("content"), str) else "", place, name)
        return "messages"
    problem = f"{place}: `{name}` is {'an empty list' if value == [] else f'of the type {type(value).__name__}'}"
    raise UserError(problem, 'make it a string, or a list of messages such as {"role": "user", "content": "Hello"}')


def _words(kind: str) -> str:
    return {"text": "a string", "messages": "a list of messages", "none": "absent"}[kind]


def _check_kinds(file: PairFile, layout: Layout, kinds: Mapping[str, str]) -> None:
    prompt, side = {
        "standard explicit": ("text", "text"), "standard implicit": ("none", "text"), "HH text": ("none", "text"),
        "conversational explicit": ("messages", "messages"), "conversational implicit": ("none", "messages"),
        "prompt text and whole conversations": ("text", "messages"), "prompt messages and whole conversations": ("messages", "messages"),
    }[layout]  # fmt: skip
    for name, expected in (("prompt", prompt), ("chosen", side), ("rejected", side)):
        if kinds[name] != expected:
            problem = f"{file.source}: `{name}` is {_words(kinds[name])}, and in the layout {layout!r} it is {_words(expected)}"
            raise UserError(problem, "write all three parts as strings or all three as lists of messages, or name the columns: --columns")


def _hh_or_implicit(file: PairFile, parts: Sequence[Mapping[str, Any]]) -> Layout:
    """`HH text` where every row is a dialogue of that form; raises `UserError` where most are, and not all."""
    is_hh = [all(part[side].startswith(HUMAN) and ASSISTANT in part[side] for side in ("chosen", "rejected")) for part in parts]
    if all(is_hh):
        return "HH text"
    if 2 * sum(is_hh) <= len(is_hh):
        return "standard implicit"
    raise UserError(
        f"{file.places[is_hh.index(False)]}: a side is no dialogue of {HUMAN!r} and {ASSISTANT!r}, as most rows are",
        "correct or remove the row, or name the layout: --layout 'standard implicit'",
    )


def _pair(number: int, place: str, parts: Mapping[str, Any], layout: Layout, row: Mapping[str, Any]) -> Pair:
    prompt, chosen, rejected = (parts[name] for name in COLUMNS)
    notes: list[str] = []
    if layout == "HH text":
        cut = hh_cut(chosen, rejected, place)
        if {cut} != {side.rfind(ASSISTANT) + len(ASSISTANT) for side in (chosen, rejected)}:
            notes.append("the sides part before their last Assistant turn: the prompt ends at the last one that they share")
        prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
    elif layout == "prompt text and whole conversations" and chosen[0]["role"] == rejected[0]["role"] == "assistant":
        notes.append("the prompt became a user turn")
        prompt = [{"role": "user", "content": prompt}]
    elif layout == "prompt text and whole conversations":
        turns = [turn.get("content") for turn in chosen if turn["role"] == "user"]
        notes.append(
            "`prompt` is left out: the conversations hold it" if prompt in turns else "`prompt` is left out, and no user turn says it"
        )
        prompt, chosen, rejected = extract_prompt(chosen, rejected, place)
    elif prompt is None:
        prompt, chosen, rejected = extract_prompt(chosen, rejected, place)
    if isinstance(prompt, list) and not prompt:
        raise UserError(f"{place}: the sides share no first message, so that there is no prompt", "begin both with the same user turn")
    template = row.get("chat_template_kwargs") or {}
    pair = Pair(number, place, prompt, chosen, rejected, tuple(notes), row.get("tools"), tuple(template.items()))
    return pair


def _file_notes(file: PairFile, layout: Layout, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """What a user has to know of the whole file before training on it with TRL."""
    notes = []
    if layout == "HH text":
        notes.append("TRL itself would cut this file at the first character that differs; the rows are read up to the last Assistant turn")
    if layout == "prompt text and whole conversations":
        notes.append("TRL refuses a prompt that is text beside conversations: leave out its column, as was done here")
    doubled = sum(pair.has_doubled_prompt for pair in pairs)
    if doubled:
        notes.append(f"{doubled} of {len(pairs)} rows repeat the prompt in both sides, and TRL reads it twice: "
                     "leave the column out (--columns prompt=none audits that)")  # fmt: skip
    stray = [
        name
        for name in ("completion", "messages")
        if name in file.rows[0] and isinstance(file.rows[0][name], list) != pairs[0].is_conversation
    ]
    if stray:
        notes.append(f"TRL may tell the layout by the column {' or '.join(stray)}: leave it out")
    return tuple(notes)
