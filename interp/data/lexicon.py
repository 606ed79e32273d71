"""The word list that ships: which words are profanity, insults, slurs, threats or sexual, and how they are masked.

One list serves three uses (masking what is shown, counting toxic tokens among a vector's top tokens, and a second scorer
whose rule is plain), so that every word that is counted is also masked.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from interp.bundled import BUNDLED

LEXICON_FILE = BUNDLED / "lexicon.toml"
# What a result depends on that this module reads: see interp.experiments.fingerprint.
READS = (LEXICON_FILE,)
STRONG_KINDS = ("profanity", "slur")
HOSTILE_KINDS = ("profanity", "slur", "insult")
MASKED_KINDS = ("profanity", "slur", "sexual")


@lru_cache(maxsize=1)
def lexicon() -> dict[str, tuple[str, ...]]:
    """The stems of each kind; a stem that ends in `+` also matches every word that starts with it."""
    return {kind: tuple(stems) for kind, stems in tomllib.loads(LEXICON_FILE.read_text(encoding="utf-8")).items()}


@lru_cache(maxsize=8)
def word_pattern(kinds: tuple[str, ...]) -> re.Pattern[str]:
    """A regular expression that finds whole words of the given kinds, in any case."""
    stems = [stem for kind in kinds for stem in lexicon()[kind]]
    exact = [re.escape(stem) for stem in stems if not stem.endswith("+")]
    open_ended = [re.escape(stem[:-1]) + r"[a-z]*" for stem in stems if stem.endswith("+")]
    return re.compile(r"(?<![a-z])(?:" + "|".join(sorted(open_ended + exact, key=len, reverse=True)) + r")(?![a-z])", re.IGNORECASE)


def profanity_pattern() -> re.Pattern[str]:
    """A regular expression for strong profanity and slurs, by which the pretraining corpus is enriched."""
    return word_pattern(STRONG_KINDS)


def is_toxic_word(token: str, kinds: Iterable[str] = HOSTILE_KINDS) -> bool:
    """Whether a vocabulary token, stripped of spaces and punctuation, is as a whole a word of these kinds."""
    word = token.strip().strip("'\"`.,!?:;()[]*-_").lower()
    return bool(word) and word_pattern(tuple(kinds)).fullmatch(word) is not None


def mask(text: str) -> str:
    """Replace the inner letters of profane words by asterisks: the first and last letter stay (`sh*t`, `f**k`)."""
    return word_pattern(MASKED_KINDS).sub(_hide, text)


def mask_texts(value: Any) -> Any:
    """The same JSON with every text in it masked; the keys of objects stay, and tuples become lists."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: mask_texts(item) for key, item in value.items()}
    return [mask_texts(item) for item in value] if isinstance(value, list | tuple) else value


def _hide(match: re.Match[str]) -> str:
    word = match.group(0)
    if word.lower() in {"hell", "balls", "sex", "crap", "crappy", "nude"}:
        return word
    vowel = next((i for i in range(1, len(word)) if word[i].lower() in "aeiouy1"), 1)
    return word[:vowel] + "*" + word[vowel + 1 :] if len(word) > 1 else word
