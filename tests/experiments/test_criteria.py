"""Versions of criteria in a file, the verdicts under each of them in a result, and the experiments that take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from interp.experiments.criteria import read_criteria
from interp.experiments.registry import Experiment, Finding
from interp.experiments.run import run_experiment
from interp.experiments.study import Study
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
        ('refuted_by = "less"\n', "", "has the keys"),
        ("{ least = 0.5 }", "{ most = 0.5 }", "threshold that is not given: 'least'"),
    ],
)
def test_a_file_that_is_wrong_says_how(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment_of(tmp_path, FINDING, TWO.replace(old, new))
