"""Verdicts counted against chance, and Holm's correction by its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scipy.stats import binom

from interp.report.multiplicity import holm, in_words, multiplicity
from interp.results.result import Result

BARE = Result("A-E1", "A-C1", "t", "q?", "c", "holds", "s", {}, {}, {}, {}, (), "r", "v", {})


def results(*verdicts: str) -> list[Result]:
    return [replace(BARE, id=f"A-E{place}", verdict=verdict) for place, verdict in enumerate(verdicts)]  # type: ignore[arg-type]


def test_holm_multiplies_by_the_number_of_those_not_smaller_and_never_falls() -> None:
    assert holm({"a": 0.03, "b": 0.01, "c": 0.04, "d": 0.5}) == pytest.approx({"b": 0.04, "a": 0.09, "c": 0.09, "d": 0.5})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize("count", [1, 2, 19, 20, 60])
def test_the_number_of_holds_by_chance_is_that_of_the_binomial_distribution(count: int) -> None:
    counts = multiplicity(results(*["holds"] * count))
    assert (counts.judged, counts.holding) == (count, count)
    assert counts.expected == pytest.approx(0.05 * count)
    assert counts.most == binom.ppf(0.95, count, 0.05)


def test_what_is_not_applicable_does_not_count_and_p_values_are_corrected_for_their_number() -> None:
    first, second, third = results("holds", "fails", "not applicable")
    with_p = [replace(first, settings={"p": 0.02}), replace(second, settings={"p": 0.5}), replace(third, settings={"p": 0.001})]
    counts = multiplicity(with_p)
    assert (counts.judged, counts.holding, counts.adjusted) == (2, 1, {"A-E0": 0.04, "A-E1": 0.5})
    words = " ".join(in_words(counts))
    assert words.startswith("2 verdicts were given, 1 of them “holds”.")
    assert "A-E0 0.04, A-E1 0.5" in words
    assert in_words(multiplicity([first])) == []
