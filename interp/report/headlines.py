"""What a report says first: five results in plain sentences, the marks of their criteria, and how two scorers agree."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from interp.results.judged import Judged
from interp.results.result import Result

# The order in which results are told: what tuning did, what is said to undo it, how it came about, and what was there before.
FIRST = ("A-E6", "A-E12", "X-C1", "A-E10", "A-E2")
SENTENCES = 5
SECOND_SCORER = "second scorer"
EXPLORATORY = "exploratory: its criterion was fixed or changed after a result of this pair was known"


def headlines(results: Sequence[Result]) -> list[Result]:
    """The five results that are told first: those of `FIRST` in its order whatever their verdict, then others in order."""
    judged = {result.id: result for result in results if result.verdict != "not applicable"}
    order = [name for name in FIRST if name in judged]
    return [judged[name] for name in [*order, *(name for name in judged if name not in order)][:SENTENCES]]


def sentence_of(result: Result) -> str:
    """A result's sentence; its summary where an earlier version of bypass wrote it without one."""
    return result.sentence or result.summary


def exploratory(result: Result) -> str:
    """Why the verdict of a result is exploratory; empty where it is not, or where that is not known."""
    return result.criteria[-1].exploratory if result.criteria else ""


def other_verdicts(result: Result) -> list[Judged]:
    """The earlier versions of the criterion under which the verdict is another one."""
    return [item for item in result.criteria if item.verdict != result.verdict]


def caveats(result: Result) -> str:
    """What a result does not show, and its caveat."""
    return " ".join(filter(None, (result.does_not_show, result.caveat)))


def exploratory_in_words(results: Sequence[Result]) -> str:
    """How many of the verdicts are exploratory, as a sentence; empty where no result says when its criterion was recorded."""
    known = [result for result in results if result.criteria and result.verdict != "not applicable"]
    count = sum(bool(exploratory(result)) for result in known)
    if not known:
        return ""
    if not count:
        return "No criterion was fixed or changed after a result of this pair was known."
    return f"{count} of {len(known)} verdicts are exploratory: their criterion was fixed or changed after a result of this pair was known."


def second_scorers(results: Sequence[Result]) -> pd.DataFrame:
    """The mean toxicity of each row of the results' tables "second scorer" under both scorers, and the scores' correlation.

    Empty where no result has such a table.
    """
    rows = []
    for result in results:
        table = result.tables.get(SECOND_SCORER, pd.DataFrame())
        if not {"model", "scorer", "toxicity"} <= set(table.columns):
            continue
        for model, pair in table.groupby("model", sort=False):
            scorers = list(pair["scorer"])
            row = {"experiment": result.id, "model": model, "scorer": scorers[0], "toxicity": pair["toxicity"].iloc[0]}
            if len(pair) > 1:
                row |= {"second scorer": scorers[1], "toxicity by it": pair["toxicity"].iloc[1]}
            rows.append(row | {"correlation": pair.get("correlation with the other scorer", pd.Series([float("nan")])).iloc[0]})
    return pd.DataFrame(rows)
