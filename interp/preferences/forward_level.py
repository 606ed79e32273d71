"""The scores of preference pairs that one forward pass gives, computed in blocks of rows that a later run finds again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from interp.errors import UserError
from interp.files import read_json, write_json
from interp.models.model import Model
from interp.preferences.head_influence import fits, head_scores
from interp.preferences.pairs import TokenPair
from interp.preferences.side_by_side import side_by_side, workers
from interp.preferences.similarity import similarity
from interp.preferences.states import AnswerStates
from interp.results.result import number, plain

BLOCK = 64
# Changed with what a block holds, so that blocks of an earlier version are computed again.
VERSION = "1"
COLUMNS = (
    "logp_chosen", "logp_rejected", "ches", "ln_ches", "alpha_ches", "share_alpha_positive", "share_hidden_positive",
)  # fmt: skip
# The pairs that are timed before a run, to say how long it will take.
TRIAL = 4
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Blocks:
    """Blocks of results in a folder, each under the digest of what it was computed from: model, token ids and version.

    `model` is its `model_key`, since a score depends on settings that no weight shows, such as a rope or a soft cap.

    A run that was killed, or is repeated with more rows, computes only what is not there. Without a folder nothing is stored.
    """

    folder: Path | None
    model: str
    kind: str

    def of(self, kind: str) -> Blocks:
        """The same folder for blocks of another kind."""
        return Blocks(self.folder, self.model, kind)

    def path(self, pairs: Sequence[TokenPair]) -> Path | None:
        """The file of a block of these pairs."""
        if self.folder is None:
            return None
        hasher = hashlib.sha256(f"{self.kind} {VERSION} {self.model}".encode())
        for pair in pairs:
            hasher.update(repr((pair.prompt, pair.chosen, pair.rejected)).encode())
        return self.folder / f"{self.kind}-{hasher.hexdigest()[:24]}.json"

    def read(self, pairs: Sequence[TokenPair]) -> dict[str, list[float]] | None:
        """The columns of a block, or None where it is not there or is damaged."""
        path = self.path(pairs)
        if path is None or not path.is_file():
            return None
        try:
            columns = {str(name): [number(value) for value in values] for name, values in read_json(path).items()}
        except (UserError, TypeError, ValueError, KeyError, AttributeError):
            return None
        return columns if all(len(values) == len(pairs) for values in columns.values()) else None

    def write(self, pairs: Sequence[TokenPair], columns: dict[str, Any]) -> None:
        """Store the columns of a block, one value a pair each."""
        path = self.path(pairs)
        if path is not None:
            write_json(path, plain(columns))


def in_blocks(
    blocks: Blocks, pairs: Sequence[TokenPair], compute: Callable[[int, Sequence[TokenPair]], dict[str, Any]], *,
    tell: Tell | None = None, size: int | None = None, at_once: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """The columns that `compute` returns for the pairs, one row a pair, in blocks of `size` pairs, by default of `BLOCK`.

    `compute` is given the place of a block's first pair, and its pairs; `at_once` blocks are computed side by side.
    """
    size = size or BLOCK

    def made(start: int) -> dict[str, Any]:
        block = pairs[start : start + size]
        columns = blocks.read(block)
        if columns is None:
            columns = {name: list(map(float, values)) for name, values in compute(start, block).items()}
            blocks.write(block, columns)
        return columns

    frames: list[pd.DataFrame] = []
    for columns in side_by_side(made, range(0, len(pairs), size), at_once):
        frames.append(pd.DataFrame(columns))
        if tell is not None:
            tell(min(size * len(frames), len(pairs)), len(pairs))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def blocks_done(blocks: Blocks, pairs: Sequence[TokenPair]) -> int:
    """The number of pairs whose blocks an earlier run has left."""
    parts = [pairs[start : start + BLOCK] for start in range(0, len(pairs), BLOCK)]
    return sum(len(part) for part in parts if blocks.read(part) is not None)


def forward_level(
    model: Model, pairs: Sequence[TokenPair], blocks: Blocks, *, tell: Callable[[str, int, int], None] = lambda phrase, done, total: None
) -> pd.DataFrame:
    """Log-probabilities in nats, CHES and its relatives of each pair (`COLUMNS`); NaN where a measure is not applicable.

    Then `total_head` and `influence_head`, with respect to these pairs together. The states are read once where they fit into memory
    and no block is there from an earlier run.
    """
    read: dict[int, list[AnswerStates]] = {}
    may_keep = fits(model, pairs)

    def compute(start: int, block: Sequence[TokenPair]) -> dict[str, Any]:
        kept: list[AnswerStates] | None = [] if may_keep else None
        scores = similarity(model, block, keep=kept)
        read[start] = kept or []
        values = (
            scores.log_probs.chosen, scores.log_probs.rejected, scores.ches, scores.ln_ches, scores.alpha_ches,
            scores.share_alpha_positive, scores.share_hidden_positive,
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))

    def of_head(_: int, block: Sequence[TokenPair]) -> dict[str, Any]:
        states = [replace(one, number=start + one.number) for start, some in sorted(read.items()) for one in some]
        scores = head_scores(model, block, stored=states if len(states) == len(block) else None)
        return {"total_head": scores.total, "influence_head": scores.influence}

    said = lambda done, total: tell("forward", done, total)  # noqa: E731
    frame = in_blocks(blocks, pairs, compute, tell=said, at_once=workers(model))
    tell("total and influence of the unembedding", 0, 1)
    return frame.join(in_blocks(blocks.of("head"), pairs, of_head, size=max(1, len(pairs))))


def packed_tokens(pairs: Sequence[TokenPair]) -> int:
    """The tokens that a packed forward reads."""
    return sum(len(pair.prompt) + len(pair.chosen) + len(pair.rejected) - 2 for pair in pairs)


def seconds_a_token(model: Model, pairs: Sequence[TokenPair]) -> float:
    """The seconds that one token of a packed row takes here, timed on a few of the pairs."""
    step = max(1, len(pairs) // TRIAL)
    trial = sorted(pairs, key=lambda pair: packed_tokens([pair]))[::step][:TRIAL]
    # The first call of a model takes longer than all later ones.
    similarity(model, trial[:1])
    begun = time.perf_counter()
    similarity(model, trial)
    return (time.perf_counter() - begun) / max(1, packed_tokens(trial))


def add_derived(frame: pd.DataFrame, noisy_below: float | int) -> pd.DataFrame:
    """The frame with margin, log-probabilities per token, `noisy`, and CHES given the difference of lengths."""
    out = frame.copy()
    for side in ("chosen", "rejected"):
        out[f"logp_{side}_per_token"] = out[f"logp_{side}"] / out[f"n_{side}"].where(out[f"n_{side}"] > 0)
    out["margin"] = out["logp_chosen"] - out["logp_rejected"]
    out["noisy"] = (out["margin"] > 0) & (out["margin"] < noisy_below)
    out["ches_given_length"] = rank_residual(out["ches"], out["length_difference"])
    return out


def rank_residual(values: pd.Series, given: pd.Series) -> pd.Series:
    """What is left of the ranks of `values` after a straight line on the ranks of `given`; NaN where a value is missing."""
    known = values.notna() & given.notna()
    residual = pd.Series(np.nan, index=values.index, dtype=float)
    if known.sum() < 3:
        return residual
    first, second = stats.rankdata(values[known]), stats.rankdata(given[known])
    centred = second - second.mean()
    slope = float(centred @ first) / float(centred @ centred) if (centred != 0).any() else 0.0
    residual[known] = first - first.mean() - slope * centred
    return residual
