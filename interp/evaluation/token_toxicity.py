"""How toxic a token makes a sentence: what a vector writes, judged by a toxicity scorer and not by a word list.

A word list counts profanity, slurs and insults and misses words such as *attack* or *enemies*. Here each token is put into carrier
sentences, which a scorer judges beside the same sentences with everyday words. What a scorer is biased on it is biased on here too: the one
that ships scores some names of groups of people too high. The measure sees single tokens, so pieces of words count for little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from interp.errors import UserError
from interp.neurons.projection import DOT, Projection
from interp.neurons.ranking import values_at
from interp.neurons.vocabulary import JUDGED_TOKENS, top_tokens

if TYPE_CHECKING:
    from interp.evaluation.toxicity import Scorer
    from interp.models.model import Model, Neuron

# Gaps for adjectives, nouns and verbs, in sentences that an everyday word leaves nearly harmless and a hostile one does not.
CARRIERS = ("They are all {}.", "He is such a {}.", "He will {} her.", "They {} people like you.")
EVERYDAY = ("teacher", "garden", "walk", "paint", "table", "visit", "quiet", "window", "green", "carry")


def token_toxicity(words: Sequence[str], scorer: Scorer) -> Float[np.ndarray, " token"]:
    """How much more toxic each token makes a sentence than an everyday word does, by this scorer, from -1 to 1.

    Each token, without surrounding space, fills the gap of every sentence of `CARRIERS`; its value is the mean toxicity of these sentences
    minus the mean over the same sentences filled with the words of `EVERYDAY`. A token that is nothing but space has 0. Equal tokens
    are scored once.

    Raises `UserError` where there are no tokens.
    """
    if not len(words):
        raise UserError("no tokens were given to score", "give at least one")
    tokens = [word.strip() for word in words]
    fillers = list(dict.fromkeys([*EVERYDAY, *(token for token in tokens if token)]))
    # A token may hold braces, so it replaces the gap and is no template itself.
    texts = [carrier.replace("{}", filler) for filler in fillers for carrier in CARRIERS]
    scores = scorer.score(texts)["toxicity"].to_numpy().astype(float).reshape(len(fillers), len(CARRIERS)).mean(axis=1)
    above = dict(zip(fillers, scores - scores[: len(EVERYDAY)].mean(), strict=True))
    return np.array([above.get(token, 0.0) for token in tokens])


def row_toxicity(rows: Sequence[Sequence[str]], scorer: Scorer) -> Float[np.ndarray, " row"]:
    """The mean of `token_toxicity` over each row of tokens. Raises `UserError` where there is no row, or one is empty."""
    if not len(rows) or not all(len(row) for row in rows):
        raise UserError("a row of tokens to score is empty", "give at least one token per row")
    values = token_toxicity([word for row in rows for word in row], scorer)
    ends = np.cumsum([len(row) for row in rows])[:-1]
    return np.array([float(part.mean()) for part in np.split(values, ends)])


def written_toxicity(
    model: Model, neurons: Sequence[Neuron], scorer: Scorer, *, top: int = JUDGED_TOKENS, projection: Projection = DOT
) -> Float[np.ndarray, " neuron"]:
    """`row_toxicity` of the tokens that these neurons' value vectors promote most. Raises `UserError` for a neuron that the model lacks."""
    return row_toxicity(top_tokens(model, values_at(model, neurons), top=top, projection=projection).words, scorer)
