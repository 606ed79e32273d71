"""Whether a model still speaks: how likely its continuations are under the base model, how varied, and how many are empty.

A model that repeats itself or says nothing has lost every behaviour, so a dose at which it no longer speaks shows nothing about a tuning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from interp.evaluation.metrics import distinct_n
from interp.models.model import Model
from interp.models.tokens import batches, next_token_losses, pad, predicted

# A model speaks while the perplexity of its continuations is within this factor of the reference's, their share of different pairs of
# words is at least this share of the reference's, and at most so many more of them are empty.
PERPLEXITY_FACTOR, DISTINCT_SHARE, MORE_EMPTY = 4.0, 0.5, 0.3
# A larger loss has no finite exponential.
MOST_NATS = 700.0


@dataclass(frozen=True)
class Fluency:
    """How a model's continuations read.

    Attributes:
        perplexity: under the base model, given the prompt; NaN where all continuations are empty.
        distinct_2: the share of different pairs of words, over all continuations; NaN where there are none.
        share_empty: the share of continuations without a token.
    """

    perplexity: float
    distinct_2: float
    share_empty: float

    def to_json(self) -> dict[str, Any]:
        """The three numbers as a JSON object."""
        return asdict(self)


def fluency(base: Model, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> Fluency:
    """How these continuations of these prompts read, both as rows of token ids."""
    spoken = [place for place, row in enumerate(continuations) if len(row)]
    texts = [base.tokenizer.decode(list(continuations[place]), skip_special_tokens=True) for place in spoken]
    empty = 1 - len(spoken) / len(continuations)
    if not spoken:
        return Fluency(math.nan, math.nan, empty)
    nats = sum(_continuation_nats(base, [prompts[place] for place in spoken], [continuations[place] for place in spoken]))
    tokens = sum(len(continuations[place]) for place in spoken)
    return Fluency(math.exp(min(nats / tokens, MOST_NATS)), distinct_n(texts, 2), empty)


@torch.no_grad()
def _continuation_nats(model: Model, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[float]:
    """The loss of each continuation given its prompt in nats, added up in double precision."""
    rows = [[*prompt, *new] for prompt, new in zip(prompts, continuations, strict=True)]
    nats = [0.0] * len(rows)
    for group in batches([len(row) for row in rows], batch_size=32, batch_tokens=4096):
        tokens = pad([rows[place] for place in group], model.tokenizer.pad_token_id or 0, "right").to(model.device)
        losses = next_token_losses(model.hf(**tokens.inputs(), use_cache=False).logits, tokens.ids)
        scored = (losses.double() * predicted(tokens, [len(prompts[place]) for place in group])).sum(dim=1).tolist()
        for place, value in zip(group, scored, strict=True):
            nats[place] = value
    return nats


def speaks(model: Fluency, references: Sequence[Fluency]) -> bool:
    """Whether a model's continuations read as well as those of the references, by the rule at the head of this module."""
    perplexity = max(reference.perplexity for reference in references)
    distinct = min(reference.distinct_2 for reference in references)
    empty = max(reference.share_empty for reference in references)
    if math.isnan(model.perplexity):
        return empty > 1 - MORE_EMPTY
    return (
        not model.perplexity > PERPLEXITY_FACTOR * perplexity
        and not model.distinct_2 < DISTINCT_SHARE * distinct
        and model.share_empty <= empty + MORE_EMPTY
    )
