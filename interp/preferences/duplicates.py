"""Which pairs of a file repeat another: the same texts, nearly the same, or the same answers with their labels exchanged."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

# Shingles are of so many words; from this Jaccard similarity on, two pairs are nearly the same.
WORDS, NEARLY = 5, 0.9
# 16 bands of 8 hash functions: two pairs of similarity .9 share a band with probability .9999, two of .5 with .06.
BANDS, ROWS_OF_A_BAND = 16, 8


@dataclass(frozen=True)
class Repeats:
    """By pair, the index of the first other pair that it repeats, or None.

    Attributes:
        duplicate_of: the same prompt and sides, in an earlier pair.
        near_duplicate_of: at least `NEARLY` alike, in an earlier pair, and not a duplicate.
        contradicts: the same prompt with the sides exchanged, anywhere.
        prompt_count: how many pairs have this prompt.
    """

    duplicate_of: tuple[int | None, ...]
    near_duplicate_of: tuple[int | None, ...]
    contradicts: tuple[int | None, ...]
    prompt_count: tuple[int, ...]


def repeats(pairs: Sequence[tuple[str, str, str]]) -> Repeats:
    """What repeats what among pairs of prompt, chosen and rejected text."""
    first: dict[Hashable, int] = {}
    prompts: dict[str, int] = defaultdict(int)
    for index, pair in enumerate(pairs):
        first.setdefault(pair, index)
        prompts[pair[0]] += 1
    duplicate = tuple(first[pair] if first[pair] < index else None for index, pair in enumerate(pairs))
    contrary = tuple(first.get((prompt, rejected, chosen)) if chosen != rejected else None for prompt, chosen, rejected in pairs)
    originals = [index for index, earlier in enumerate(duplicate) if earlier is None]
    near = _near({index: shingles(pairs[index]) for index in originals})
    return Repeats(duplicate, tuple(near.get(index) for index in range(len(pairs))), contrary, tuple(prompts[pair[0]] for pair in pairs))


def shingles(pair: tuple[str, str, str]) -> frozenset[int]:
    """The hashes of all runs of five words of each part, by part; a shorter part is one run."""
    runs = []
    for name, text in zip("pcr", pair, strict=True):
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        runs += [name + " ".join(words[start : start + WORDS]) for start in range(max(1, len(words) - WORDS + 1))]
    return frozenset(int.from_bytes(hashlib.blake2b(run.encode("utf-8", "replace"), digest_size=8).digest(), "little") for run in runs)


def jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    """The size of the intersection by that of the union."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0


def _near(sets: Mapping[int, frozenset[int]]) -> dict[int, int]:
    """For each set the first earlier one that is at least `NEARLY` alike: candidates by MinHash, then counted exactly."""
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    alike: dict[int, int] = {}
    for index, members in sets.items():
        signature = min_hash(members)
        keys = [(band, part.tobytes()) for band, part in enumerate(np.split(signature, BANDS))]
        candidates: Iterable[int] = sorted({other for key in keys for other in buckets[key]})
        match = next((other for other in candidates if jaccard(members, sets[other]) >= NEARLY), None)
        if match is None:
            # A near duplicate is compared with what it repeats, not with its other copies.
            for key in keys:
                buckets[key].append(index)
        else:
            alike[index] = match
    return alike


def min_hash(members: Iterable[int]) -> UInt64[np.ndarray, " hash"]:
    """The least value of every hash function over a set of 64-bit numbers."""
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 2**63, BANDS * ROWS_OF_A_BAND, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    offsets = rng.integers(0, 2**63, BANDS * ROWS_OF_A_BAND, dtype=np.uint64)
    values = np.fromiter(members, dtype=np.uint64)
    # Multiplication modulo 2^64 mixes the upper half of the product only.
    mixed = values[None] * factors[:, None] + offsets[:, None]
    least: np.ndarray = (mixed >> np.uint64(32)).min(axis=1)
    return least
