"""The prompts and passages that a quick report reads: evenly spread ones, and fewer of a large model, by a rule that the page states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from interp.data.texts import Passage
from interp.models.model import Model
from interp.models.tokens import uncut_rows

# Parameters times tokens that one row of a table may cost: the continuations of all prompts, and perplexity. At two floating-point
# operations for each, that is a quarter of a minute of a core that does 25 billion a second.
QUICK_WORK = 2e11
# Fewer than these say nothing, however large the model is.
LEAST_PROMPTS, LEAST_PASSAGES = 24, 12
DRAWS, LEAST_DRAWS = 6, 4
Item = TypeVar("Item")


@dataclass(frozen=True)
class QuickData:
    """The data of a quick report: prompts, passages, draws of each null, and the rule by which a large model has fewer, or nothing."""

    prompts: list[str]
    passages: list[Passage]
    draws: int
    rule: str = ""


def quick_data(model: Model, prompts: Sequence[str], passages: Sequence[Passage], new_tokens: int) -> QuickData:
    """About a hundred of the prompts and a third of the passages, and fewer of both where a row would cost more than `QUICK_WORK`."""
    starts, texts = list(prompts[:: max(1, len(prompts) // 100)]), list(passages[::3])
    parameters = sum(parameter.numel() for parameter in model.hf.parameters())
    share = QUICK_WORK / max(1, parameters * row_tokens(model, starts, texts, new_tokens))
    some, few = _limit(starts, share, LEAST_PROMPTS), _limit(texts, share, LEAST_PASSAGES)
    if len(some) == len(starts) and len(few) == len(texts):
        return QuickData(starts, texts, DRAWS)
    rule = (
        f"A quick report of a model of {parameters / 1e6:.3g} million parameters reads {len(some)} of {len(starts)} prompts and "
        f"{len(few)} of {len(texts)} passages, with {LEAST_DRAWS} draws in place of {DRAWS}: so many that continuations and perplexity "
        f"of one model or edit cost at most {QUICK_WORK:.0e} (parameters times tokens), but at least {LEAST_PROMPTS} and "
        f"{LEAST_PASSAGES}. F1 is measured of the two sides alone. Intervals are wider than in a whole report."
    )
    return QuickData(some, few, LEAST_DRAWS, rule)


def row_tokens(model: Model, prompts: Sequence[str], passages: Sequence[Passage], new_tokens: int) -> int:
    """The tokens that are read for one row of a table: prompts and their continuations, and passages for perplexity."""
    texts = [*prompts, *(passage.text for passage in passages)]
    return sum(map(len, uncut_rows(model, texts))) + new_tokens * len(prompts)


def _limit(items: list[Item], share: float, least: int) -> list[Item]:
    """As many of the items as their share, and at least `least` where there are so many, evenly spread."""
    count = min(len(items), max(least, math.floor(share * len(items))))
    return [items[place * len(items) // count] for place in range(count)]
