"""The rules of B-E2, B-E4 and B-E5, as functions of one number for each run: one source of pairs and one draw of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from interp.experiments.displacement.criteria import CRITERIA
from interp.experiments.displacement.single_token_rules import Answer
from interp.results.result import Verdict, number
from interp.stats.intervals import Interval
from interp.stats.repeats import repeats_mean

B_E2, B_E4, B_E5 = (CRITERIA[name][-1].thresholds for name in ("B-E2", "B-E4", "B-E5"))
# What the paper says does not rank pairs, and the difference of lengths, which costs nothing.
RIVALS = ("edit_similarity", "last_hidden", "length_difference")
OTHER_FILTERS = ("ches", "ln_ches", "length", "edit")
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Part:
    """One of the things that a claim asks for, so turned that it speaks for the claim where it is positive.

    Attributes:
        mean: over runs, with Student's interval.
        by_source: the mean over the runs of each source of pairs.
        over_sources: the mean of these, with Student's interval: what is known of sources of pairs in general.
        answer: `no` where both intervals refute it, `yes` where both show it, else `open`.
        answer_1: the same by the interval over runs alone, as version 1 of the criteria has it.
    """

    mean: Interval
    by_source: Mapping[str, float]
    over_sources: Interval
    answer: Answer
    answer_1: Answer


def part_of(rows: Rows, values: Sequence[float], *, above: float = 0.0, refuted: float = 0.0, of_one_sign: bool = False) -> Part:
    """The part of which each run has one value.

    Args:
        above: the bound above which an interval shows it.
        refuted: the bound below which an interval refutes it.
        of_one_sign: whether a source with a negative mean keeps it open.
    """
    mean = repeats_mean(values)
    sources: dict[str, list[float]] = {str(row["source"]): [] for row in rows}
    for row, value in zip(rows, values, strict=True):
        sources[row["source"]].append(value)
    means = {name: float(np.mean(some)) for name, some in sources.items()}
    over_sources = repeats_mean(list(means.values()))
    agree = not of_one_sign or all(value > 0 for value in means.values())

    def answer(*intervals: Interval) -> Answer:
        if all(interval.high < refuted for interval in intervals):
            return "no"
        return "yes" if agree and all(interval.low > above for interval in intervals) else "open"

    return Part(mean, means, over_sources, answer(mean, over_sources), answer(mean))


def verdict_of(parts: Sequence[Part], rows: Rows, thresholds: Mapping[str, float], *, version: int = 2) -> Verdict:
    """`fails` where a part is refuted, `holds` where all are shown; `inconclusive` with too few runs or sources."""
    if len(rows) < thresholds["runs"] or len({row["source"] for row in rows}) < thresholds["sources"]:
        return "inconclusive"
    answers = {part.answer_1 if version == 1 else part.answer for part in parts}
    return "fails" if "no" in answers else "holds" if answers == {"yes"} else "inconclusive"


def rank_of(row: Mapping[str, Any], score: str, kind: str = "plain", when: str = "epoch") -> float:
    """A run's rank correlation of a score with the falls of its trained pairs; 0 for a score that has one value, which ranks nothing."""
    value = number(row["correlations"][when][score][kind])
    return 0.0 if np.isnan(value) else value


def best_of(rows: Rows, names: Sequence[str], value: Any) -> str:
    """The name whose values have the highest mean over runs."""
    return max(names, key=lambda name: float(np.mean([value(row, name) for row in rows])) if rows else 0.0)


@dataclass(frozen=True)
class Ranked:
    """The numbers of B-E2: CHES's rank correlation, that given the lengths, and its lead over `rival`."""

    ches: Part
    given_length: Part
    lead: Part
    rival: str

    @property
    def parts(self) -> tuple[Part, ...]:
        """All three."""
        return self.ches, self.given_length, self.lead


def ranked(rows: Rows) -> Ranked:
    """The numbers of B-E2 from the rows `ranks` of the study of pairs."""
    rival = best_of(rows, RIVALS, rank_of)
    lead = [rank_of(row, "ches") - rank_of(row, rival) for row in rows]
    partial = part_of(rows, [rank_of(row, "ches", "given_length") for row in rows], refuted=B_E2["given"])
    if partial.mean.value < B_E2["given"]:
        # What is shown to be above 0 is still too little.
        partial = replace(partial, answer=_at_most_open(partial.answer), answer_1=_at_most_open(partial.answer_1))
    ches = part_of(rows, [rank_of(row, "ches") for row in rows], above=B_E2["rank"], refuted=B_E2["rank"])
    return Ranked(ches, partial, part_of(rows, lead), rival)


def _at_most_open(answer: Answer) -> Answer:
    return "open" if answer == "yes" else answer


def held_out(row: Mapping[str, Any], arm: str, measure: str = "chosen_per_token") -> float:
    """A run's change on held-out pairs after training on an arm, the mean of its draws.

    A filter that was not possible, because its score has one value, keeps pairs at random.
    """
    values = [item["held_out"][measure] for item in row["arms"] if item["arm"] == arm]
    return float(np.mean(values)) if values else held_out(row, "random", measure)


@dataclass(frozen=True)
class Displacers:
    """The numbers of B-E4: the lead of total over own; what the influence filter gains, and what the worst half loses, beside random
    halves; and the influence filter's lead over `rival`."""

    rank: Part
    gain: Part
    loss: Part
    lead: Part
    rival: str

    @property
    def parts(self) -> tuple[Part, ...]:
        """All four."""
        return self.rank, self.gain, self.loss, self.lead


def displacers(rows: Rows) -> Displacers:
    """The numbers of B-E4 from the rows `filters` of the study of pairs."""
    rival = best_of(rows, OTHER_FILTERS, held_out)
    gain, loss, lead = (
        [held_out(row, one) - held_out(row, other) for row in rows]
        for one, other in (("influence", "random"), ("random", "worst"), ("influence", rival))
    )
    rank = [rank_of(row, "total") - rank_of(row, "own") for row in rows]
    return Displacers(
        part_of(rows, rank, of_one_sign=True), part_of(rows, gain, refuted=B_E4["negligible"], of_one_sign=True),
        part_of(rows, loss, refuted=B_E4["negligible"], of_one_sign=True), part_of(rows, lead, of_one_sign=True), rival,
    )  # fmt: skip


def at_end(row: Mapping[str, Any], loss: str, measure: str = "chosen_per_token") -> float:
    """A run's change on held-out pairs at the end of training by a loss."""
    return float(next(item for item in row["losses"] if item["loss"] == loss)["course"][-1][measure])


@dataclass(frozen=True)
class Cured:
    """The numbers of B-E5: how far DPO lowers held-out chosen answers, and what the SFT term gives back."""

    fall: Part
    cure: Part

    @property
    def parts(self) -> tuple[Part, ...]:
        """Both."""
        return self.fall, self.cure


def cured(rows: Rows) -> Cured:
    """The numbers of B-E5 from the rows `losses` of the study of pairs."""
    cure = [at_end(row, "dpo+sft") - at_end(row, "dpo") for row in rows]
    return Cured(
        part_of(rows, [-at_end(row, "dpo") for row in rows], of_one_sign=True),
        part_of(rows, cure, refuted=B_E5["negligible"], of_one_sign=True),
    )  # fmt: skip
