"""The texts of the arms of `bypass undo`: those that ship, and how a user's file is divided into trained on and held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp.bundled import BUNDLED
from interp.data.texts import passages, read_texts

FOLDER = BUNDLED / "undo"
WORDS = FOLDER / "words.json"
BENIGN = FOLDER / "benign.jsonl"
READS = (WORDS, BENIGN)
# Encyclopedic passages that the neutral arm does not read, and posts, for KL: as many of each.
HELD_OUT = 12
# The share of a file that is held out, the most texts, and the fewest texts of a file that is divided at all.
SHARE, MOST, FEWEST = 0.1, 12, 20


@dataclass(frozen=True)
class Division:
    """The texts of a file that are trained on, and those that are held out for measuring, of which there may be none."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]


def neutral_texts() -> list[str]:
    """The encyclopedic passages that ship, written for the project, without those of `held_out_texts`."""
    return [passage.text for passage in passages("encyclopedic")[HELD_OUT:]]


def held_out_texts() -> list[str]:
    """Neutral texts that ship and that no arm trains on: encyclopedic passages, and posts."""
    return [passage.text for kind in ("encyclopedic", "post") for passage in passages(kind)[:HELD_OUT]]


def benign_texts() -> list[str]:
    """Questions with their answers on everyday matters, written for the project."""
    return read_texts(BENIGN)


def divide(texts: Sequence[str], seed: int = 0) -> Division:
    """A tenth of the texts held out, at most 12 and drawn by the seed; none of fewer than 20 texts. Repeated texts count once."""
    different = list(dict.fromkeys(texts))
    if len(different) < FEWEST:
        return Division(tuple(different), ())
    count = min(MOST, round(SHARE * len(different)))
    chosen = set(np.random.default_rng([seed, 11]).choice(len(different), count, replace=False).tolist())
    return Division(
        tuple(text for place, text in enumerate(different) if place not in chosen), tuple(different[place] for place in sorted(chosen))
    )  # fmt: skip
