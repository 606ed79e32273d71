"""Pairs of prompts with equally many tokens, as patching needs them.

Patching reads position by position, so a pair whose tokens do not line up gives meaningless numbers. Alignment is checked by token
ids; a pair that does not line up is reported with the position where its tokens first differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import pandas as pd

from interp.data.lexicon import mask
from interp.errors import UserError
from interp.models.chat import Chat, prompt_rows

if TYPE_CHECKING:
    from interp.models.model import Model


@dataclass(frozen=True)
class PromptPair:
    """Two prompts of equal length in tokens; `differs` are the positions at which they are not the same."""

    clean: str
    corrupted: str
    clean_ids: tuple[int, ...]
    corrupted_ids: tuple[int, ...]

    @property
    def differs(self) -> tuple[int, ...]:
        """The positions at which the two prompts have different tokens."""
        return tuple(at for at, (a, b) in enumerate(zip(self.clean_ids, self.corrupted_ids, strict=True)) if a != b)

    @property
    def mirrored(self) -> PromptPair:
        """The same pair with the roles exchanged."""
        return PromptPair(self.corrupted, self.clean, self.corrupted_ids, self.clean_ids)


@dataclass(frozen=True)
class Mismatch:
    """Two prompts that cannot be aligned: their token counts, and the first position at which they differ."""

    clean: str
    corrupted: str
    counts: tuple[int, int]
    position: int
    tokens: tuple[str, str]

    def __str__(self) -> str:
        return (
            f"{mask(self.clean)!r} has {self.counts[0]} tokens and {mask(self.corrupted)!r} has {self.counts[1]}; they part at "
            f"position {self.position} ({mask(self.tokens[0])!r}, {mask(self.tokens[1])!r})"
        )


@dataclass(frozen=True)
class SymmetricPairs:
    """Pairs in which every prompt is clean once and corrupted once, and the fillers that do not line up."""

    pairs: tuple[PromptPair, ...]
    mismatches: tuple[Mismatch, ...]

    @property
    def clean(self) -> list[str]:
        """The clean prompt of each pair."""
        return [pair.clean for pair in self.pairs]

    @property
    def corrupted(self) -> list[str]:
        """The corrupted prompt of each pair."""
        return [pair.corrupted for pair in self.pairs]

    def to_frame(self) -> pd.DataFrame:
        """One row per pair made or not: clean, corrupted, aligned, tokens_clean, tokens_corrupted, position (where they first differ)."""
        rows = [
            (p.clean, p.corrupted, True, len(p.clean_ids), len(p.corrupted_ids), p.differs[0] if p.differs else None) for p in self.pairs
        ] + [(m.clean, m.corrupted, False, *m.counts, m.position) for m in self.mismatches]
        return pd.DataFrame(rows, columns=["clean", "corrupted", "aligned", "tokens_clean", "tokens_corrupted", "position"])


def compare_tokens(model: Model, clean: str, corrupted: str, chat: Chat | bool = False) -> PromptPair | Mismatch:
    """The pair of these prompts, or the first mismatch where their token counts differ; with `chat` as user turns of the template."""
    first, second = (tuple(row) for row in prompt_rows(model, [clean, corrupted], chat))
    if len(first) == len(second):
        return PromptPair(clean, corrupted, first, second)
    shared = min(len(first), len(second))
    at = next((place for place in range(shared) if first[place] != second[place]), shared)
    words = tuple(model.tokenizer.decode(list(row[at : at + 1])) for row in (first, second))
    return Mismatch(clean, corrupted, (len(first), len(second)), at, (words[0], words[1]))


def align(model: Model, clean: str, corrupted: str, chat: Chat | bool = False) -> PromptPair:
    """The pair of these prompts; raises `UserError` where their token counts differ."""
    compared = compare_tokens(model, clean, corrupted, chat)
    if isinstance(compared, Mismatch):
        raise UserError(f"the prompts cannot be patched into one another: {compared}", "use words of equal length in tokens")
    return compared


def symmetric_pairs(model: Model, template: str, fillers: Sequence[tuple[str, str]]) -> SymmetricPairs:
    """Pairs of prompts that differ in one filler, each in both roles, so that the effect of a filler alone cancels in the mean.

    Args:
        template: a text with one `{}`, for example `"You are such a{}"`.
        fillers: pairs of texts to put there; a space before a word belongs to the filler, as it does to the token.

    Raises:
        UserError: a template without exactly one `{}`, no fillers, or none of the pairs lines up. Pairs that do not line up
        beside others that do are listed in `mismatches`.
    """
    if template.count("{}") != 1:
        raise UserError(f"the template {mask(template)!r} has {template.count('{}')} places", "put exactly one {} into it")
    if not len(fillers):
        raise UserError("no fillers were given", "give pairs such as (' fool', ' friend')")
    before, after = template.split("{}")
    compared = [compare_tokens(model, before + first + after, before + second + after) for first, second in fillers]
    pairs = [item for item in compared if isinstance(item, PromptPair)]
    failed = tuple(item for item in compared if isinstance(item, Mismatch))
    if not pairs:
        raise UserError(f"no pair lines up: {failed[0]}", "use fillers of equal length in tokens")
    return SymmetricPairs(tuple(chain.from_iterable((pair, pair.mirrored) for pair in pairs)), failed)
