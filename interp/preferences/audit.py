"""The audit of a file of preference pairs under the model that will be trained on them: what the trainer sees, and scores of each pair.

Three levels, each with the columns of those before it: `text` needs the tokenizer alone, `forward` reads every pair once, and `gradient`
takes exact first-order scores of a sample. The scores are those at the given checkpoint; they rank pairs and call none bad.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from interp.errors import UserError
from interp.models.digests import model_key
from interp.models.model import Model
from interp.preferences.formats import Pair, PairData
from interp.preferences.forward_level import (
    Blocks,
    add_derived,
    blocks_done,
    forward_level,
    packed_tokens,
    seconds_a_token,
)
from interp.preferences.gradient_level import gradient_level
from interp.preferences.keep import SCORES, Selection, removal, scorable, select, with_rank
from interp.preferences.pairs import TokenPair
from interp.preferences.summary import summarise
from interp.preferences.text_level import REFUSALS, text_level
from interp.preferences.tokenise import EOS_RULES, EosRule, TokenisedPair, divided_otherwise, tokenise

Level = Literal["text", "forward", "gradient"]
LEVELS: tuple[Level, ...] = ("text", "forward", "gradient")
# The cost of the gradients of a pair, in units of two plain forwards.
GRADIENT_COST = 7
# Pairs on which AutoTokenizer is compared with the model's tokenizer.
COMPARED = 200
# TRL's own default of the longest sequence.
MAX_LENGTH = 1024
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """How a file is audited.

    Attributes:
        max_length: tokens of prompt and side together that the trainer reads; None for 1024, or for the model's context if that is less.
        eos: see `tokenise`.
        limit: so many rows are drawn at random; None for all.
        sample: pairs of the gradient level, drawn at random.
        noisy_below: a pair is `noisy` whose margin lies between zero and so many nats (the rule of ComPO).
        by: the score that ranks the pairs.
        keep: the share that is kept; None for no filter.
    """

    level: Level = "forward"
    max_length: int | None = None
    eos: EosRule = "auto"
    limit: int | None = None
    seed: int = 0
    sample: int = 256
    noisy_below: float | int = 3.0
    by: str = "harm"
    keep: float | int | None = None
    refusals: tuple[str, ...] = REFUSALS

    def __post_init__(self) -> None:
        for name, value, among in (("level", self.level, LEVELS), ("eos", self.eos, EOS_RULES), ("by", self.by, tuple(SCORES))):
            if value not in among:
                raise UserError(f"--{name} is {value!r}", f"use one of {', '.join(among)}")
        for name, number in (("max-length", self.max_length), ("limit", self.limit), ("sample", self.sample)):
            if number is not None and number < 1:
                raise UserError(f"--{name} is {number}", "give at least 1")
        if self.keep is not None and not 0 < self.keep < 1:
            raise UserError(f"--keep is {self.keep}", "give a share between 0 and 1, such as 0.5")


@dataclass(frozen=True, eq=False)
class Audit:
    """The result of an audit: a frame with one row a pair, the pairs as texts and as token ids in the same order, and the summary."""

    data: PairData
    pairs: tuple[Pair, ...]
    tokens: tuple[TokenisedPair, ...]
    frame: pd.DataFrame
    settings: Settings
    about: dict[str, Any]
    summary: dict[str, Any]
    selection: Selection | None = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """What `audit.json` holds."""
        return {**self.about, **self.summary}


def prepare(data: PairData, model: Model, settings: Settings) -> tuple[tuple[Pair, ...], tuple[TokenisedPair, ...], int]:
    """The rows that are audited, their token ids, and the longest sequence that the trainer reads.

    Raises `UserError` for a length beyond the model's context where a row has so many tokens.
    """
    pairs = data.pairs
    if settings.limit is not None and settings.limit < len(pairs):
        drawn = np.random.default_rng(settings.seed).choice(len(pairs), settings.limit, replace=False)
        pairs = tuple(pairs[index] for index in sorted(drawn.tolist()))
    length = min(MAX_LENGTH, model.context) if settings.max_length is None else settings.max_length
    tokens = tuple(tokenise(model.tokenizer, pair, max_length=length, eos=settings.eos) for pair in pairs)
    for pair, ids in zip(pairs, tokens, strict=True):
        count = len(ids.prompt) + max(len(ids.chosen), len(ids.rejected))
        if count > model.context and not ids.is_dropped:
            problem = f"{pair.place}: the pair has {count} tokens, and {model.name} reads at most {model.context}"
            raise UserError(problem, f"give --max-length {model.context}, and train with it")
        highest = max((*ids.prompt, *ids.chosen, *ids.rejected), default=0)
        if highest >= model.d_vocab:
            raise UserError(f"{pair.place}: token {highest} has no row in {model.name}", "leave the row out, or write the token otherwise")
    return pairs, tokens, length


def audit(
    data: PairData, model: Model, settings: Settings, *, folder: Path | None = None, say: Callable[[str], None] = lambda text: None,
    tell: Tell = lambda phrase, done, total: None,
) -> Audit:  # fmt: skip
    """The audit of a file's pairs.

    Args:
        folder: where blocks of scores are stored and looked for, so that an interrupted audit goes on.
        say: is called with the cost before the work begins.
        tell: is called with what is done, and how much of it.
    """
    tell("reading texts", 0, 1)
    pairs, tokens, length = prepare(data, model, settings)
    frame = text_level(pairs, tokens, settings.refusals)
    frame["prompt_key"] = [json.dumps(pair.prompt, sort_keys=True, default=str) for pair in pairs]
    can_score = scorable(frame)
    positions = np.flatnonzero(can_score.to_numpy())
    token_pairs = [tokens[index].token_pair() for index in positions]
    blocks = Blocks(folder, model_key(model), "forward")
    sample = sample_of(positions, settings)
    check_sample(settings, len(positions))
    if settings.level != "text" and token_pairs:
        say(cost(model, token_pairs, blocks, settings, len(sample)))
        scores = forward_level(model, token_pairs, blocks, tell=tell)
        frame = add_derived(_placed(frame, scores, positions), settings.noisy_below)
    if settings.level == "gradient" and sample:
        sampled = [tokens[index].token_pair() for index in sample]
        exact = gradient_level(model, sampled, blocks, tell=lambda done, total: tell("gradients", done, total))
        frame = _placed(frame, exact, sample)
    by = default_score(frame, settings)
    frame = with_rank(frame, by, settings.seed)
    selection = None if settings.keep is None else select(frame, by, settings.keep, settings.seed)
    summary: dict[str, Any] = {"ranked_by": by, **summarise(frame, seed=settings.seed)}
    if selection is not None:
        frame["keep"] = frame.index.isin(selection.kept)
        summary["filter"] = removal(frame, selection)
    notes = [*data.notes, *tokenizer_notes(model, pairs[:COMPARED])]
    about = {
        "file": str(data.file.source), "file_digest": data.file.digest, "container": data.file.container, "layout": data.layout,
        "rows_in_file": len(data.pairs), "notes": notes, "model": {"name": model.name, "digest": model.digest},
        "settings": {**asdict(settings), "max_length": length, "refusals": len(settings.refusals)},
        "sample": [int(frame["row"][index]) for index in sample] if settings.level == "gradient" else None,
    }  # fmt: skip
    # Random numbers are no measure of a pair, unless they were asked for.
    helpers = ["prompt_key"] if by == "random" else ["prompt_key", "random"]
    return Audit(data, pairs, tokens, frame.drop(columns=helpers), settings, about, summary, selection)


def tokenizer_notes(model: Model, pairs: Sequence[Pair]) -> list[str]:
    """What has to be known where TRL would read the texts with another tokenizer than this one."""
    count = divided_otherwise(model, pairs)
    if not count:
        return []
    fix = "pass processing_class=PreTrainedTokenizerFast.from_pretrained(FOLDER) to the trainer"
    return [f"AutoTokenizer, TRL's default, divides {count} of the first {len(pairs)} pairs otherwise than tokenizer.json: {fix}"]


def check_sample(settings: Settings, scorable_pairs: int) -> None:
    """Raise `UserError`, before any work is done, for a filter by a score that will be known of a sample alone."""
    if settings.keep is not None and settings.level == "gradient" and settings.by in ("harm", "total") and settings.sample < scorable_pairs:
        raise UserError(
            f"--by {settings.by} will be known of a sample of {settings.sample} pairs, and a filter needs it of all {scorable_pairs}",
            f"give --sample {scorable_pairs}, or --level forward for the version of the unembedding",
        )


def sample_of(positions: np.ndarray, settings: Settings) -> list[int]:
    """The positions of the pairs that the gradient level reads, in order."""
    if len(positions) <= settings.sample:
        return [int(index) for index in positions]
    drawn = np.random.default_rng([settings.seed, 2]).choice(positions, settings.sample, replace=False)
    return sorted(int(index) for index in drawn)


def default_score(frame: pd.DataFrame, settings: Settings) -> str:
    """The score that ranks: `by`, or edit similarity for the default where no model was run and no filter was asked for."""
    not_there = not any(name in frame for name in SCORES[settings.by][0])
    return "edit" if settings.by == "harm" and settings.keep is None and not_there else settings.by


def cost(model: Model, pairs: Sequence[TokenPair], blocks: Blocks, settings: Settings, sample: int) -> str:
    """What the audit will cost, in a sentence, from the time that a few of the pairs take here."""
    a_token, done = seconds_a_token(model, pairs), blocks_done(blocks, pairs)
    tokens = packed_tokens(pairs)
    # Total and influence of the unembedding take about as long again, and are not divided into blocks.
    left = a_token * tokens * (2 - done / len(pairs))
    words = f"forward: {len(pairs):,} pairs of {tokens:,} tokens, about {in_words(left)}"
    if done:
        words += f" ({done:,} are there from an earlier run)"
    if settings.level == "gradient":
        share = sample / len(pairs)
        twice = sum(2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs)
        words += f"; gradients: a sample of {sample:,} pairs, about {in_words(GRADIENT_COST * a_token * share * twice)}"
    return words


def in_words(seconds: float) -> str:
    """A time for readers."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _placed(frame: pd.DataFrame, scores: pd.DataFrame, positions: Sequence[int] | np.ndarray) -> pd.DataFrame:
    """The frame with the columns of `scores` at these positions, and NaN elsewhere."""
    return frame.join(scores.set_index(pd.Index(positions)))
