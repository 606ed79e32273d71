"""The role of every token of a rendered conversation: where the template put each turn's text, and which tokens hold it.

The template is rendered a second time with a placeholder in place of each turn's text. What stands between the placeholders is the
template's own text, and the turns must be what fills the gaps in the rendered conversation. Templates may trim a turn, so a turn
with and without the blanks at its ends is tried; if no way fits, or more than one, the roles are not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

from interp.models.positions import Role

Span = tuple[int, int]
# Copies of tokenizers that report offsets untrimmed; an entry goes when the tokenizer does.
_UNTRIMMED: WeakKeyDictionary[Any, Tokenizer] = WeakKeyDictionary()


def token_roles(tokenizer: Any, text: str, row: Sequence[int], skeleton: str, turns: Sequence[tuple[str, str]]) -> tuple[Role, ...] | None:
    """The role of each token of a rendered conversation, or None where it cannot be told.

    A token is a turn's where it holds at least one character of that turn's text, and else the template's.

    Args:
        text: the rendered conversation; `row` is its token ids.
        skeleton: the same conversation rendered with the placeholders `\\ue000NUMBER\\ue001` in place of the turns' texts.
        turns: role and text of each turn.
    """
    spans = turn_spans(text, skeleton, [content for _, content in turns])
    offsets = None if spans is None else token_spans(tokenizer, text, row)
    if spans is None or offsets is None:
        return None
    roles: list[Any] = []
    for start, end in offsets:
        # A token without characters, such as a blank that the tokenizer adds, is a turn's inside of its text alone.
        inside = [role for (role, _), (a, b) in zip(turns, spans, strict=True) if (max(start, a) < min(end, b)) or (a < start == end < b)]
        if len(inside) > 1:
            return None
        roles.append(inside[0] if inside else "template")
    return tuple(roles)


def turn_spans(text: str, skeleton: str, contents: Sequence[str]) -> list[Span] | None:
    """Where each turn's text stands in the rendered conversation, or None where there is no such way to read it, or more than one."""
    parts = re.split("\ue000(\\d+)\ue001", skeleton)
    pieces, order = parts[::2], [int(number) for number in parts[1::2]]
    if sorted(order) != list(range(len(contents))):
        return None
    ways = list(islice(_ways(text, pieces, [contents[number] for number in order]), 2))
    if len(ways) != 1:
        return None
    spans = dict(zip(order, ways[0], strict=True))
    return [spans[number] for number in range(len(contents))]


def _ways(text: str, pieces: Sequence[str], contents: Sequence[str], at: int = 0) -> Iterator[list[Span]]:
    """Every way to read `text` from `at` on as the pieces with the contents between them, each with or without blanks at its ends."""
    if not text.startswith(pieces[0], at):
        return
    at += len(pieces[0])
    if not contents:
        if at == len(text):
            yield []
        return
    whole = contents[0]
    for content in dict.fromkeys((whole, whole.strip(), whole.lstrip(), whole.rstrip())):
        if text.startswith(content, at):
            for later in _ways(text, pieces[1:], contents[1:], at + len(content)):
                yield [(at, at + len(content)), *later]


def token_spans(tokenizer: Any, text: str, row: Sequence[int]) -> list[Span] | None:
    """The characters of `text` that each token holds, or None where the tokenizer does not say."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
    ends = [0, *(end for _, end in spans)]
    if any(start == end or start > before for (start, end), before in zip(spans, ends, strict=False)):
        # A post-processor may take blanks off the offsets, and no other part of it has an effect here.
        if tokenizer not in _UNTRIMMED:
            copy: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            copy.no_padding()
            copy.no_truncation()
            copy.post_processor = None
            _UNTRIMMED[tokenizer] = copy
        encoding = _UNTRIMMED[tokenizer].encode(text, add_special_tokens=False)
        ids, spans = encoding.ids, encoding.offsets
    return spans if list(ids) == list(row) else None
