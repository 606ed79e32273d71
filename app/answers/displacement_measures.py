"""What each measure of a preference pair means, in words, and how it is divided among the tokens of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from app.model_queue import model_queue
from interp.models.model import Model
from interp.preferences.logprobs import log_probs
from interp.preferences.page import token_texts
from interp.preferences.pairs import TokenPair
from interp.preferences.similarity import reason_not_applicable, similarity
from interp.preferences.states import answer_states

# By what the tokens of an answer are coloured.
Parts = Literal["alpha-CHES", "CHES", "log-probability"]


@dataclass(frozen=True)
class Measure:
    """A measure of a pair: its column in an audit, its unit, and what its values mean.

    Attributes:
        above, below: what a value above and below the reference says; without a reference `above` is said of every value.
        not_shown: what a reader may take it for and it is not.
        parts: which division among tokens colours them.
    """

    column: str
    unit: str
    above: str
    below: str
    not_shown: str
    parts: Parts = "alpha-CHES"
    reference: float | None = 0.0
    reference_name: str = "reference:"

    def says(self, value: float) -> str:
        """What a value means."""
        return self.above if self.reference is None or value > self.reference else self.below


MEASURES = {
    "alpha-CHES": Measure(
        "alpha_ches", "",
        "a first step on the unembedding alone and on this pair alone lowers its chosen answer.",
        "a first step on the unembedding alone and on this pair alone does not lower its chosen answer.",
        "It does not show what other pairs do to this one, nor what an epoch does.",
    ),
    "CHES": Measure(
        "ches", "",
        "the summed states of the rejected answer are so alike to the chosen one's, or so many more, that the paper expects displacement.",
        "the chosen answer's own states outweigh what they share with the rejected one's.",
        "It does not compare answers of different length: beside likeness it measures how much longer the rejected answer is.",
        "CHES",
    ),
    "ln-CHES": Measure(
        "ln_ches", "",
        "the mean states are alike, and the rejected answer's is the longer vector.",
        "the chosen answer's mean state outweighs what it shares with the rejected one's.",
        "It orders pairs by the likeness of their answers, and does not show which of them fall.",
        "CHES",
    ),
    "CHES given the lengths": Measure(
        "ches_given_length", "ranks",
        "CHES ranks it higher than its difference of lengths does.", "CHES ranks it no higher than its difference of lengths does.",
        "It compares ranks within this file, and says nothing of one pair by itself.",
        "CHES",
    ),
    "difference of lengths": Measure(
        "length_difference", "tokens, rejected − chosen",
        "the rejected answer is longer.", "the rejected answer is not longer.",
        "It knows nothing of meaning: a filter by CHES that does no better than this one is a filter by length.",
    ),
    "edit similarity": Measure(
        "edit_similarity", "of 1",
        "the share of the longer answer's tokens that need no edit to make the other answer of it.", "",
        "It knows nothing of meaning: one word can turn an answer into its opposite.",
        reference=None,
    ),
    "margin": Measure(
        "margin", "nats",
        "before any tuning the model finds the chosen answer likelier.",
        "before any tuning the model finds the rejected answer as likely or likelier.",
        "A longer answer is less likely as a whole, so that it does not show what the model prefers.",
        "log-probability",
    ),
    "log-probability of chosen": Measure(
        "logp_chosen", "nats",
        "how likely the model finds the chosen answer before any tuning.", "",
        "It is a sum over tokens and falls with length; it does not show whether tuning will lower it.",
        "log-probability", reference=None,
    ),
    "influence (unembedding)": Measure(
        "influence_head", "",
        "a first step of the unembedding on it raises the chosen answers of these pairs, taken together.",
        "a first step of the unembedding on it does not raise the chosen answers of these pairs, taken together.",
        "It holds for these pairs and a first step; whether it helps to leave low ones out is what the study of filters below asks.",
    ),
    "total (unembedding)": Measure(
        "total_head", "",
        "a first step of the unembedding on all of these pairs together raises its chosen answer.",
        "a first step of the unembedding on all of these pairs together does not raise its chosen answer.",
        "It stands in for the exact total, over all weights, only roughly.",
    ),
}  # fmt: skip
COLOURED = {
    "alpha-CHES": "Share of each token in the negative term of α-CHES, the part by which the rejected answer pushes the chosen one down. "
    "Orange adds to it; blue, underlined with dots, takes away from it.",
    "CHES": "Share of each token in the inner product of the summed states of both answers. Orange adds to it; blue, underlined with "
    "dots, takes away from it.",
    "log-probability": "Share of each token in −log π of its answer: the darker, the less the model expected it.",
}


@dataclass(frozen=True, eq=False)
class Side:
    """An answer as tokens in text, each with its share, signed, of the whole (in per cent); None where nothing is divided."""

    tokens: tuple[str, ...]
    shares: tuple[float, ...] | None


def sides(model: Model, pair: TokenPair, parts: Parts) -> tuple[Side, Side]:
    """The chosen and the rejected answer with the shares of their tokens."""
    with model_queue.turn():
        values = divided(model, pair, parts)
    answers = (pair.chosen, pair.rejected)
    return tuple(side(model, ids, None if values is None else values[place]) for place, ids in enumerate(answers))  # type: ignore[return-value]


def divided(model: Model, pair: TokenPair, parts: Parts) -> tuple[Float[np.ndarray, " chosen"], Float[np.ndarray, " rejected"]] | None:
    """What each token of the two answers adds to a measure; None for CHES of a pair for which it is not defined."""
    if parts == "log-probability":
        read = log_probs(model, [pair])
        return -read.chosen_tokens[0], -read.rejected_tokens[0]
    if parts == "alpha-CHES":
        alike = similarity(model, [pair])
        return alike.chosen_negative[0], alike.rejected_negative[0]
    if reason_not_applicable(pair):
        return None
    states = next(iter(answer_states(model, [pair])))
    chosen, rejected = states.chosen.cpu().double(), states.rejected.cpu().double()
    return (chosen @ rejected.sum(dim=0)).numpy(), (rejected @ chosen.sum(dim=0)).numpy()


def side(model: Model, ids: Sequence[int], values: Float[np.ndarray, " token"] | None) -> Side:
    """The tokens of an answer and their shares in per cent of the sum of sizes; tokens that make up one character are one piece."""
    texts = token_texts(model.tokenizer, ids)
    sizes = np.zeros(len(ids)) if values is None else 100 * values / (float(np.abs(values).sum()) or 1.0)
    pieces: list[tuple[str, float]] = []
    waiting = 0.0
    for text, size in zip(texts, sizes, strict=True):
        waiting += float(size)
        if text:
            pieces.append((text, waiting))
            waiting = 0.0
    return Side(tuple(text for text, _ in pieces), None if values is None else tuple(share for _, share in pieces))
