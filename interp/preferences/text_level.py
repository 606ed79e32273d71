"""What can be said of preference pairs before any forward pass: flags, lengths, repeats, and the kind of both answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.data.records import content_of, lines
from interp.errors import UserError
from interp.preferences.distance import levenshtein
from interp.preferences.duplicates import repeats
from interp.preferences.formats import Pair, Text
from interp.preferences.tokenise import TokenisedPair, common_start
from interp.stats.intervals import Interval, resampled_means, tails

# So many characters of the prompt within a side count as an echo.
ECHO = 40
# How answers that refuse begin, in lower case: a list of prefixes, not a judgement.
REFUSALS = (
    "i'm sorry", "i am sorry", "sorry, ", "sorry but", "i apologize", "i apologise", "my apologies", "i cannot", "i can't", "i can not",
    "i could not", "i couldn't", "i won't", "i will not", "i would not", "i wouldn't", "i'm not able to", "i am not able to",
    "i'm unable", "i am unable", "i don't think i can", "i don't feel comfortable", "i'm not comfortable", "i refuse", "i must decline",
    "i have to decline", "i must refuse", "i'm afraid i can", "unfortunately, i can", "no, i can", "no, i won't", "no, i will not",
    "as an ai", "as a language model", "as an artificial intelligence", "it is not appropriate", "it's not appropriate",
    "that is not something i", "that's not something i", "i do not support", "i don't support",
)  # fmt: skip
# Flags that are counted, each with what it means.
FLAGS = {
    "truncated": "tokens are cut off at the maximal length",
    "identical": "both sides are the same tokens: no gradient",
    "identical_after_truncation": "the sides differ only beyond the maximal length: no gradient",
    "prompt_fills_context": "the prompt alone fills the maximal length: the trainer leaves the row out",
    "empty_side": "a side holds no token",
    "empty_prompt": "the prompt holds no token, so that the first token of a side has no probability; no scores",
    "doubled_prompt": "both sides repeat the prompt, which is read twice",
    "prompt_echoed": f"{ECHO} characters of the prompt or more stand in a side again",
}


def text_level(pairs: Sequence[Pair], tokens: Sequence[TokenisedPair], refusals: Sequence[str] = REFUSALS) -> pd.DataFrame:
    """The columns of the text level, one row a pair. Indices in `duplicate_of` and the like are rows of the file."""
    texts = [(plain(pair.prompt), plain(pair.chosen), plain(pair.rejected)) for pair in pairs]
    repeated = repeats(texts)
    rows = [pair.row for pair in pairs]

    def in_file(indices: Sequence[int | None]) -> list[int | None]:
        return [None if index is None else rows[index] for index in indices]

    frame = pd.DataFrame({
        "row": rows,
        "format_notes": ["; ".join([*pair.notes, *_lost(ids)]) for pair, ids in zip(pairs, tokens, strict=True)],
        "n_prompt": [len(ids.prompt) for ids in tokens],
        "n_chosen": [len(ids.chosen) for ids in tokens],
        "n_rejected": [len(ids.rejected) for ids in tokens],
        "truncated": [ids.is_truncated for ids in tokens],
        "identical": [ids.was_identical for ids in tokens],
        "identical_after_truncation": [ids.is_identical and not ids.was_identical and not ids.is_dropped for ids in tokens],
        "prompt_fills_context": [ids.is_dropped for ids in tokens],
        "empty_side": [min(ids.full[1:]) == 0 for ids in tokens],
        "empty_prompt": [not ids.prompt for ids in tokens],
        "doubled_prompt": [pair.has_doubled_prompt for pair in pairs],
        "prompt_tokens_lost": [len(ids.lost) for ids in tokens],
        "length_difference": [len(ids.rejected) - len(ids.chosen) for ids in tokens],
        "edit_similarity": [_edit_similarity(ids) for ids in tokens],
        "shared_start": [common_start(ids.chosen, ids.rejected) for ids in tokens],
        "shared_end": [_shared_end(ids) for ids in tokens],
        "prompt_count": list(repeated.prompt_count),
        "prompt_echoed": [any(echoes(text[0], side) for side in text[1:]) for text in texts],
        "same_type": [answer_types(text[1], text[2], refusals) for text in texts],
    })  # fmt: skip
    for name in ("duplicate_of", "near_duplicate_of", "contradicts"):
        frame[name] = pd.array(in_file(getattr(repeated, name)), dtype="Int64")
    return frame


def plain(text: Text) -> str:
    """A text, or the contents of messages, one a line."""
    if isinstance(text, str):
        return text
    return "\n".join(_content(message.get("content")) for message in text)


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return "" if content is None else str(content)


def _lost(ids: TokenisedPair) -> list[str]:
    count = len(ids.lost)
    return [f"the last {count} tokens of the prompt are in neither sequence: with a side they are divided otherwise"] if count else []


def _edit_similarity(ids: TokenisedPair) -> float:
    longest = max(len(ids.chosen), len(ids.rejected))
    return 1.0 - levenshtein(ids.chosen, ids.rejected) / longest if longest else float("nan")


def _shared_end(ids: TokenisedPair) -> int:
    """The tokens that both sides end with, beyond those that they begin with; an end token that both have is one of them."""
    room = min(len(ids.chosen), len(ids.rejected)) - common_start(ids.chosen, ids.rejected)
    return min(room, common_start(ids.chosen[::-1], ids.rejected[::-1]))


def echoes(prompt: str, side: str, size: int = ECHO) -> bool:
    """Whether a run of `size` characters of the prompt stands in a side."""
    if min(len(prompt), len(side)) < size:
        return False
    windows = {prompt[start : start + size] for start in range(len(prompt) - size + 1)}
    return any(side[start : start + size] in windows for start in range(len(side) - size + 1))


def answer_types(chosen: str, rejected: str, refusals: Sequence[str] = REFUSALS) -> str:
    """`refusal/refusal`, `answer/answer` or `mixed`, by how the two sides begin."""
    refused = sum(refuses(side, refusals) for side in (chosen, rejected))
    return ("answer/answer", "mixed", "refusal/refusal")[refused]


def refuses(text: str, refusals: Sequence[str] = REFUSALS) -> bool:
    """Whether a text begins as a refusal does: with one of these prefixes, whatever the case, after spaces and quotation marks."""
    start = text.replace("\u2019", "'").lstrip(" \t\r\n\"'*").lower()
    return start.startswith(tuple(refusals))


def read_refusals(path: Path | None) -> tuple[str, ...]:
    """The prefixes of a file, one a line, in lower case; those of `REFUSALS` without a file. Raises `UserError` for an empty file."""
    if path is None:
        return REFUSALS
    prefixes = tuple(line.strip().lower().replace("\u2019", "'") for _, line in lines(content_of(path, "refusals")))
    if not prefixes:
        raise UserError(f"{path} holds no prefix", "write one a line, such as: I'm sorry")
    return prefixes


def length_effect(frame: pd.DataFrame, *, seed: int = 0, draws: int = 2000) -> Interval | None:
    """Cohen's d of the lengths: (mean chosen - mean rejected) by the pooled standard deviation, with a bootstrap interval over pairs.

    None where all lengths are the same, or there are fewer than three pairs.
    """
    chosen, rejected = (frame[name].to_numpy(dtype=float) for name in ("n_chosen", "n_rejected"))
    table = np.stack([chosen, rejected, chosen**2, rejected**2], axis=1)
    if len(table) < 3 or not _d(table.mean(axis=0)[None])[1][0] > 0:
        return None
    value = float(_d(table.mean(axis=0)[None])[0][0])
    drawn, pooled = _d(resampled_means(table, draws, seed))
    low, high = np.quantile(drawn[pooled > 0], tails(0.95))
    return Interval(value, float(low), float(high), len(table))


def _d(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cohen's d and the pooled variance, of rows of means of both lengths and of their squares."""
    pooled = ((moments[:, 2] - moments[:, 0] ** 2) + (moments[:, 3] - moments[:, 1] ** 2)) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return (moments[:, 0] - moments[:, 1]) / np.sqrt(pooled), pooled
