"""The prompts, passages and draws of a report: all of them, or evenly spread ones of a large model, by a rule that the page states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from interp.data.texts import Passage
from interp.experiments.toxicity.context import DRAWS
from interp.models.model import Model
from interp.models.tokens import uncut_rows

# Parameters times tokens that one row of a table may cost: the continuations of all prompts, and perplexity. At two floating-point
# operations for each, the first is a quarter of a minute of a core that does 25 billion a second.
QUICK_WORK, WHOLE_WORK = 2e11, 5e11
# Fewer than these say nothing, however large the model is.
LEAST_PROMPTS, LEAST_PASSAGES = 24, 8
QUICK_DRAWS, LEAST_QUICK_DRAWS, LEAST_DRAWS = 6, 4, 5
Item = TypeVar("Item")


@dataclass(frozen=True)
class ReportData:
    """The data of a report: prompts, passages, draws of each null, and the rule by which a large model has fewer, or nothing."""

    prompts: list[str]
    passages: list[Passage]
    draws: int
    rule: str = ""


def quick_data(model: Model, prompts: Sequence[str], passages: Sequence[Passage], new_tokens: int) -> ReportData:
    """About a hundred of the prompts and a third of the passages, and fewer of both where a row would cost more than `QUICK_WORK`."""
    whole = ReportData(list(prompts[:: max(1, len(prompts) // 100)]), list(passages[::3]), QUICK_DRAWS)
    return _limited(model, whole, new_tokens, QUICK_WORK, LEAST_QUICK_DRAWS, "quick report", "")


def whole_data(model: Model, prompts: Sequence[str], passages: Sequence[Passage], new_tokens: int) -> ReportData:
    """All prompts and passages, and fewer where the model runs on a CPU and a row would cost more than `WHOLE_WORK`."""
    whole = ReportData(list(prompts), list(passages), DRAWS)
    if model.device.type != "cpu":
        return whole
    return _limited(model, whole, new_tokens, WHOLE_WORK, LEAST_DRAWS, "report on a CPU", " --all-data reads everything.")


def row_tokens(model: Model, prompts: Sequence[str], passages: Sequence[Passage], new_tokens: int) -> int:
    """The tokens that are read for one row of a table: prompts and their continuations, and passages for perplexity."""
    texts = [*prompts, *(passage.text for passage in passages)]
    return sum(map(len, uncut_rows(model, texts))) + new_tokens * len(prompts)


def _limited(model: Model, whole: ReportData, new_tokens: int, work: float, draws: int, name: str, more: str) -> ReportData:
    """As much of the data as `work` allows for one row, with fewer draws, and the rule in words; all of it where that is enough."""
    parameters = sum(parameter.numel() for parameter in model.hf.parameters())
    share = work / max(1, parameters * row_tokens(model, whole.prompts, whole.passages, new_tokens))
    some, few = _limit(whole.prompts, share, LEAST_PROMPTS), _limit(whole.passages, share, LEAST_PASSAGES)
    if len(some) == len(whole.prompts) and len(few) == len(whole.passages):
        return whole
    rule = (
        f"A {name} of a model of {parameters / 1e6:.3g} million parameters reads {len(some)} of {len(whole.prompts)} prompts and "
        f"{len(few)} of {len(whole.passages)} passages, with {draws} draws in place of {whole.draws}: so many that continuations and "
        f"perplexity of one model or edit cost at most {work:.0e} (parameters times tokens), but at least {LEAST_PROMPTS} and "
        f"{LEAST_PASSAGES}. F1 is measured of the two sides alone. Intervals are wider than with all data.{more}"
    )
    return ReportData(some, few, draws, rule)


def _limit(items: list[Item], share: float, least: int) -> list[Item]:
    """As many of the items as their share, and at least `least` where there are so many, evenly spread."""
    count = min(len(items), max(least, math.floor(share * len(items))))
    return [items[place * len(items) // count] for place in range(count)]
