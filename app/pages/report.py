"""The report: verdicts with their nulls, then every experiment's figures and tables, from a folder that `bypass report` wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import streamlit as st

from app import state
from interp.report import VERDICTS, Report, read_report
from interp.results import Result, flatten, show_number

FOLDER = "report"
COMMAND = "bypass report --out report"


@st.cache_data(show_spinner="Reading the report …", max_entries=4)
def read(folder: str, changed: int) -> Report:
    """The report as it was when its file last changed, which is part of the cache's key."""
    return read_report(folder)


def summary(report: Report, words: bool) -> pd.DataFrame:
    """One row per experiment: claim, title, verdict, the headline effect and its null."""
    rows = []
    for result in report.results:
        key = next(iter(result.statistic), None)
        mark, word = VERDICTS[result.verdict]
        effect = "–" if key is None else show_number(result.statistic[key], key)
        null = "–" if key is None else show_number(result.null.get(key), key)
        rows.append((result.claim, result.title, f"{mark} {word}", effect, null, "" if key is None else key.replace("_", " ")))
    table = pd.DataFrame(rows, columns=["Claim", "What it says", "Verdict", "Effect", "Null", "Measured as"])
    return table.map(lambda cell: state.shown(str(cell), words))


def experiment(result: Result, words: bool) -> None:
    """One experiment as its author wrote it down: question, criterion, answer, figures, tables."""
    st.subheader(state.plain(state.shown(result.title, words)))
    st.markdown(f"**{' '.join(VERDICTS[result.verdict])}.** {state.plain(state.shown(result.summary, words))}")
    with st.expander("Question, criterion, and what would refute it"):
        for name, text in (
            ("Question", result.question),
            ("Criterion", result.criterion),
            ("Refuted by", result.refuted_by),
            ("Caveat", result.caveat),
        ):
            st.markdown(f"**{name}.** {state.plain(state.shown(text, words))}")
    for place, figure in enumerate(result.figures):
        state.draw(figure, f"{result.id}-{place}", words)
    for name, frame in result.tables.items():
        st.markdown(f"**{state.plain(name.replace('_', ' ').replace('-', ' ').capitalize())}**")
        flat = flatten(frame)
        st.dataframe(flat.map(lambda cell: state.shown(cell, words) if isinstance(cell, str) else cell), hide_index=True, width="stretch")


def page() -> None:
    st.title("Report")
    words = state.show_words()
    folder = Path(os.environ.get(state.REPORT) or FOLDER)
    file = folder / "report.json"
    if not file.is_file():
        st.markdown(
            "There is no report to show yet. This command runs every experiment with its nulls and writes one; "
            "it can be interrupted and continued:"
        )
        st.code(COMMAND, language="bash")
        st.markdown(f"Reload this page afterwards. `{state.REPORT}` names another folder.")
        return
    with state.told():
        report = read(str(folder), file.stat().st_mtime_ns)
        st.markdown(
            "Every claim beside what chance or a matched control gives. A verdict is only as good as the distance between effect and null."
        )
        st.dataframe(summary(report, words), hide_index=True, width="stretch")
        if not report.results:
            return
        titles = {result.id: state.shown(result.title, words) for result in report.results}
        chosen = st.selectbox("Experiment", list(titles), format_func=lambda name: f"{name}  {titles[name]}", key="experiment")
        experiment(next(result for result in report.results if result.id == chosen), words)


page()
