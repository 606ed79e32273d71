"""Versions of criteria in a file, the verdicts under each of them in a result, and the experiments that take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from interp.experiments.criteria import read_criteria, read_replaced
from interp.experiments.criteria_page import PHASES, SHIPPED_PAIR, page, phase
from interp.experiments.displacement.criteria import CRITERIA as OF_PAPER_B
from interp.experiments.elasticity.criteria import CRITERIA as OF_PAPER_C
from interp.experiments.registry import Experiment, Finding
from interp.experiments.run import run_experiment
from interp.experiments.study import Study
from interp.experiments.toxicity.criteria import CRITERIA, FILE
from interp.results.result import Result

TWO = """
[[MY-E1]]
recorded = 2026-01-02
text = "Holds if at least {least:.0%}, fails if not."
refuted_by = "less than {least:.0%}"
thresholds = { least = 0.8 }

[[MY-E1]]
recorded = 2026-02-03
text = "Holds if at least {least:.0%}, fails if not."
refuted_by = "less"
thresholds = { least = 0.5 }
exploratory = "The first run had given 60 %."
"""


def experiment_of(tmp_path: Path, finding: Finding, text: str = TWO) -> Experiment:
    file = tmp_path / "criteria.toml"
    file.write_text(text, encoding="utf-8")
    return Experiment("MY-E1", "MY-C1", "t", "q?", read_criteria(file)["MY-E1"], "v", lambda study: finding, Study)


FINDING = Finding("holds", "s", {"share": 0.6}, {}, {}, {}, (), sentence="60 % came back.", earlier={1: "fails"})


def test_the_newest_version_decides_and_every_version_is_shown_with_its_verdict(tmp_path: Path) -> None:
    result = run_experiment(experiment_of(tmp_path, FINDING), Study())
    assert (result.criterion, result.verdict) == ("Holds if at least 50%, fails if not.", "holds")
    assert [(item.version, item.recorded, item.verdict) for item in result.criteria] == [
        (1, "2026-01-02", "fails"),
        (2, "2026-02-03", "holds"),
    ]
    assert result.criteria[0].text == "Holds if at least 80%, fails if not."
    assert result.criteria[0].refuted_by == "less than 80%"
    assert [bool(item.exploratory) for item in result.criteria] == [False, True]
    again = Result.from_json(result.to_json())
    assert (again.criteria, again.sentence) == (result.criteria, "60 % came back.")


def test_a_version_without_a_verdict_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 versions of its criterion, and verdicts under \[2\]"):
        run_experiment(experiment_of(tmp_path, replace(FINDING, earlier={})), Study())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("recorded = 2026-02-03", "recorded = 2025-02-03", "order of their days"),
        ("recorded = 2026-02-03", 'recorded = "yesterday"', "recorded is a date"),
        ("recorded = 2026-02-03", "recorded = 2026-01-01T23:00:00Z", "order of their days"),
        ("recorded = 2026-02-03", "recorded = 2026-02-03T10:00:00", "has no time zone"),
        ('refuted_by = "less"\n', "", "has the keys"),
        ("{ least = 0.5 }", "{ most = 0.5 }", "threshold that is not given: 'least'"),
    ],
)
def test_a_file_that_is_wrong_says_how(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment_of(tmp_path, FINDING, TWO.replace(old, new))


def test_a_moment_is_shown_in_utc_and_versions_of_one_day_are_in_the_order_of_their_moments(tmp_path: Path) -> None:
    def of(first: str, second: str) -> list[str]:
        text = TWO.replace("2026-01-02", first).replace("2026-02-03", second)
        return [item.recorded for item in experiment_of(tmp_path, FINDING, text).criteria]

    assert of("2026-01-02T10:30:00+02:00", "2026-01-02T09:00:00Z") == ["2026-01-02 08:30 UTC", "2026-01-02 09:00 UTC"]
    assert of("2026-01-02T10:30:00Z", "2026-01-02") == ["2026-01-02 10:30 UTC", "2026-01-02"]
    with pytest.raises(ValueError, match="order of their days"):
        of("2026-01-02T10:30:00Z", "2026-01-02T10:29:00Z")


def test_older_wordings_are_no_versions(tmp_path: Path) -> None:
    file = tmp_path / "criteria.toml"
    old = '[[replaced]]\nid = "MY-E1"\nrecorded = 2026-01-01T10:00:00Z\ntext = "Holds."\nwhy = "Too easy."\n'
    file.write_text(old + TWO, encoding="utf-8")
    assert list(read_criteria(file)) == ["MY-E1"]
    assert [(item.id, item.recorded, item.why) for item in read_replaced(file)] == [("MY-E1", "2026-01-01 10:00 UTC", "Too easy.")]
    file.write_text(old.replace("why", "because"), encoding="utf-8")
    with pytest.raises(ValueError, match="older wording has the keys"):
        read_replaced(file)


def test_the_page_of_criteria_is_what_the_file_says() -> None:
    written = (Path(__file__).parents[2] / "docs" / "criteria.md").read_text(encoding="utf-8")
    assert written == page(), "python -m interp.experiments.criteria_page > docs/criteria.md"
    for id, versions in (CRITERIA | OF_PAPER_B | OF_PAPER_C).items():
        assert f"## {id}: " in written
        assert all(item.text in written and item.recorded in written for item in versions)
    assert all(item.id in CRITERIA and item.recorded < CRITERIA[item.id][0].recorded for item in read_replaced(FILE))


def test_what_was_recorded_after_the_pair_that_ships_is_exploratory() -> None:
    assert [phase(day) for day in ("2026-11-21 14:44 UTC", "2026-11-21 16:00 UTC", "2026-11-30")] == list(PHASES)
    for versions in CRITERIA.values():
        assert all(bool(item.exploratory) == (item.recorded > SHIPPED_PAIR) for item in versions)
