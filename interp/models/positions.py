"""Positions of tokens in texts: the words for them, and the parser that capture, edits and patching share.

A word means the same everywhere; each caller says which of the words it accepts. Numbers are absolute, counted from 0 at the
start of each text, so that a KV cache changes nothing. `mean` and `mean_after_first` are no positions: they ask a capture for the mean
over all of them, or over all but the first.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from interp.errors import UserError

MEANINGS: Mapping[str, str] = {
    "last": "the last token of each text; of a prompt that is continued, the last one before the answer",
    "all": "every token, together",
    "each": "every token, one after the other",
    "prompt": "the tokens of the prompt",
    "generated": "the tokens after the prompt",
    "from_last": "the prompt's last token and all after it, that is every position from which a token is sampled",
    "system": "the tokens of the system prompt (with a chat template)",
    "user": "the tokens of the user's turns (with a chat template)",
    "assistant": "the tokens of the assistant's turns, and every generated token (with a chat template)",
    "template": "the tokens that the chat template writes itself: what marks turns, and a system prompt of its own",
}
# The words that name the role of a token in a conversation.
Role = Literal["template", "system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("template", "system", "user", "assistant")
# Not positions: the mean over all of them, and over all but the first, which in many models is an attention sink: all heads that have
# nothing to read attend to it, and its residual stream is hundreds of times as long as that of any other position.
MEAN, MEAN_AFTER_FIRST = "mean", "mean_after_first"


def parse_positions(positions: Any, words: Sequence[str]) -> str | tuple[int, ...]:
    """The positions as one of the words, or as a tuple of absolute positions (whole numbers from 0).

    Raises `UserError` for any other word, for anything that is not such a number, and for an empty list.
    """
    if isinstance(positions, str):
        if positions not in words:
            raise _unknown(positions, words)
        return positions
    if not isinstance(positions, bool) and hasattr(positions, "__index__") and not getattr(positions, "shape", ()):
        return (whole_number(positions, "position"),)
    if not isinstance(positions, Iterable) or isinstance(positions, Mapping | set | frozenset | bytes):
        raise _unknown(positions, words)
    return _numbers(positions, words)


def parse_positions_per_text(positions: Any, words: Sequence[str], lengths: Sequence[int]) -> str | list[tuple[int, ...]]:
    """The positions as one of the words, or as a tuple of absolute positions for every text.

    `positions` is a word, a list for all texts, or one list of equal length per text.

    Args:
        lengths: the number of tokens of each text.

    Raises `UserError` as `parse_positions`, and for a position that a text does not have.
    """
    nested = isinstance(positions, Iterable) and not isinstance(positions, str | Mapping) and any(map(_is_list, positions))
    if not nested:
        shared = parse_positions(positions, words)
        if isinstance(shared, str):
            return shared
        per_text = [shared] * len(lengths)
    else:
        if not all(map(_is_list, positions)) or len(positions) != len(lengths) or len(set(map(len, positions))) > 1:
            raise UserError("positions per text must be one list of equal length for each text", f"give {len(lengths)} lists")
        per_text = [_numbers(numbers, words) for numbers in positions]
    for number, (numbers_of_text, length) in enumerate(zip(per_text, lengths, strict=True)):
        check_positions(numbers_of_text, length, f"text {number}")
    return per_text


def check_positions(positions: Iterable[int], length: int, text: str) -> None:
    """Raise `UserError` for a position beyond a text of `length` tokens."""
    for position in positions:
        if position >= length:
            raise UserError(
                f"{text} has {length} tokens, but position {position} is asked for", f"use 0 to {length - 1}, counted within each text"
            )


def whole_number(value: Any, name: str) -> int:
    """A whole number from 0; raises `UserError`, calling it by `name`, for anything else, truth values too."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < 2**31:
        raise UserError(f"{name} {str(value)[:40]!r} is not a whole number from 0", "count from 0")
    return number


def _numbers(positions: Iterable[Any], words: Sequence[str]) -> tuple[int, ...]:
    numbers = tuple(whole_number(position, "position") for position in positions)
    if not numbers:
        raise UserError("an empty list of positions was given", f"name at least one position, or use {' or '.join(words)}")
    return numbers


def _is_list(item: Any) -> bool:
    return (not isinstance(item, str) and not hasattr(item, "__index__") and isinstance(item, Iterable)) or bool(getattr(item, "shape", ()))


def _unknown(positions: Any, words: Sequence[str]) -> UserError:
    return UserError(f"positions {positions!r} is unknown", f"use {', '.join(words)}, or absolute positions counted from 0, such as [0, 3]")
