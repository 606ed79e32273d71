"""Pages read a report by keys and roles: wording its labels anew changes no number, and an earlier report says that it is one."""

from __future__ import annotations

import re
from dataclasses import replace

import pandas as pd
import pytest

from app.answers import argument, summary
from app.answers.argument import Step, steps
from app.answers.bypass_sources import drawn
from app.settings import SHIPPED_REPORT
from interp.errors import UserError
from interp.experiments.registry import Finding
from interp.report.page import Report, read_report, render
from interp.results.result import ROLE, ROW_KEY, Figure, Result, effect_of, figure_of, row_of, rows_of


@pytest.fixture(scope="module")
def report() -> Report:
    return read_report(SHIPPED_REPORT)


def reworded(result: Result) -> Result:
    """The same result with every word that is for show replaced: in the cells of its tables, its texts and its figures' titles."""

    def table(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.map(lambda cell: "other words" if isinstance(cell, str) else cell).assign(
            **{name: frame[name] for name in (ROLE, ROW_KEY) if name in frame.columns}
        )

    def figure(one: Figure) -> Figure:
        return replace(one, caption="other words", spec=one.spec | {"layout": one.spec["layout"] | {"title": {"text": "other words"}}})

    return replace(
        result, title="other words", summary="other words", caveat="other words",
        tables={name: table(frame) for name, frame in result.tables.items()}, figures=tuple(map(figure, reversed(result.figures))),
    )  # fmt: skip


def without_roles(result: Result) -> Result:
    """The result as an earlier version wrote it."""
    tables = {name: frame.drop(columns=[ROLE, ROW_KEY], errors="ignore") for name, frame in result.tables.items()}
    return replace(result, tables=tables)


def told(report: Report, monkeypatch: pytest.MonkeyPatch) -> tuple[summary.Measured | None, list[Step]]:
    """What the first page says of a report."""
    monkeypatch.setattr(summary, "report_of", lambda source: report)
    measured, results = summary.measured_by_report(None), summary.argued_by_report(None)
    assert results is not None
    return measured, steps(measured, results, argument.in_place())


def numbers_in(text: str | None) -> list[str]:
    return re.findall(r"\d+\.\d+", text or "")


def test_no_number_of_the_first_page_hangs_on_the_wording_of_a_label(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(report, results=tuple(map(reworded, report.results)))
    (first, said), (second, again) = told(report, monkeypatch), told(other, monkeypatch)
    assert first is not None
    assert second is not None
    pd.testing.assert_frame_equal(first.table, second.table)
    # What chance does names the control run that comes nearest, which is a label; its number is checked without the names.
    assert [(step.claim, set(numbers_in(step.chance)[:1]), step.problem) for step in said] == [
        (step.claim, set(numbers_in(step.chance)[:1]), step.problem) for step in again
    ]
    assert all(step.figure is not None for number, step in enumerate(again) if number != 1)
    assert all(any(letter.isdigit() for letter in step.claim) for number, step in enumerate(again) if number != 1)
    for one, two in zip(said, again, strict=True):
        if one.figure is not None and two.figure is not None:
            assert one.figure.name == two.figure.name
            assert [trace.get("x" if trace.get("orientation") == "h" else "y") for trace in one.figure.spec["data"]] == [
                trace.get("x" if trace.get("orientation") == "h" else "y") for trace in two.figure.spec["data"]
            ]


def test_the_controls_of_the_shift_are_found_by_their_keys(report: Report) -> None:
    result = next(result for result in report.results if result.id == "A-E11")

    def numbers(one: Result) -> tuple[float, float]:
        finding = Finding(one.verdict, one.summary, one.statistic, one.null, one.interval, one.tables, one.figures)
        figure, last, least = drawn(finding)
        assert figure.name == "by-layer"
        return last, least

    assert numbers(reworded(result)) == numbers(result)
    table = result.tables["changes"].set_index(ROW_KEY)["median cosine, last layer"]
    assert numbers(result) == (table["tuned"], min(table.loc["plain step"].min(), table.loc["shuffled step"].min()))


def test_a_report_of_an_earlier_version_is_measured_anew_or_says_what_it_is(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = replace(report, results=tuple(map(without_roles, report.results)))
    measured, said = told(earlier, monkeypatch)
    assert measured is None
    assert "made by an earlier version" in str(said[0].problem)
    assert [step.problem for step in said[2:4]] == [None, None], "what needs no role is read as ever"


def test_columns_for_programs_are_saved_and_not_shown(report: Report) -> None:
    result = next(result for result in report.results if result.id == "X-U1")
    assert {ROLE, ROW_KEY} <= set(result.tables["keys"].columns)
    page = render([result], report.pair, report.environment)
    assert "row key" not in page
    assert "selective 7<" not in page
    assert render([without_roles(result)], report.pair, report.environment) == page


def test_what_a_result_lacks_is_named(report: Report) -> None:
    result = next(result for result in report.results if result.id == "X-U1")
    assert row_of(result, "keys", "selective 7")["model"] == "7 selective keys × 10"
    assert len(rows_of(result, "keys", "un-aligned")) == 4
    for read in (
        lambda: row_of(result, "keys", "selective 8"), lambda: rows_of(result, "no such table", "null"),
        lambda: effect_of(result, "no such number"), lambda: figure_of(result, "no such figure"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"made by an earlier version.*run `bypass report` again"):
            read()
