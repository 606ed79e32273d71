"""How many verdicts a report gives, and how many of them could say "holds" by chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from interp.results.result import Result, is_number, show_number

# The share of studies of a false claim in which a rule may say "holds": docs/verdicts.md shows it for each rule.
AT_MOST = 0.05


@dataclass(frozen=True)
class Multiplicity:
    """The verdicts of a report counted against chance.

    Attributes:
        judged: the number of verdicts, without those that are not applicable.
        holding: how many of them say "holds".
        expected: how many would say so on average if every claim were false and every rule at its bound of 5 %.
        most: the number that is then exceeded with a probability of at most 5 %, were the verdicts independent.
        adjusted: Holm's adjusted p-value by id, of the results whose settings hold a p-value `p`.
    """

    judged: int
    holding: int
    expected: float
    most: int
    adjusted: Mapping[str, float]


def multiplicity(results: Sequence[Result]) -> Multiplicity:
    """The counts and adjusted p-values of a report's results."""
    judged = [result for result in results if result.verdict != "not applicable"]
    p_values = {result.id: float(result.settings["p"]) for result in judged if is_number(result.settings.get("p"))}
    holding = sum(result.verdict == "holds" for result in judged)
    return Multiplicity(len(judged), holding, AT_MOST * len(judged), _most(len(judged)), holm(p_values))


def _most(count: int) -> int:
    """The least number that a binomial count of `count` trials at 5 % exceeds with a probability of at most 5 %."""
    total = 0.0
    for number in range(count + 1):
        total += math.comb(count, number) * AT_MOST**number * (1 - AT_MOST) ** (count - number)
        if total >= 1 - AT_MOST:
            return number
    return count


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p-values (Holm 1979), by name, the smallest first."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = largest
    return adjusted


def in_words(counts: Multiplicity) -> list[str]:
    """The counts as sentences for readers; none for fewer than two verdicts."""
    if counts.judged < 2:
        return []
    sentences = [
        f"{counts.judged} verdicts were given, {counts.holding} of them “holds”. A rule may say “holds” in at most 5 % of the studies "
        f"in which its claim is false. Were every claim false, up to {show_number(counts.expected)} “holds” would be expected by chance"
        f", and more than {counts.most} with a probability below 5 % if the verdicts were independent. They share one pair and its "
        "prompts, so this is a guide; no verdict is corrected for the number of the others."
    ]
    if len(counts.adjusted) > 1:
        values = ", ".join(f"{name} {show_number(p)}" for name, p in counts.adjusted.items())
        sentences.append(f"P-values that decide a verdict, after Holm's correction for their number ({len(counts.adjusted)}): {values}.")
    return sentences
