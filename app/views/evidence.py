"""The page Evidence: every experiment's result beside its null, one of them in full, and a run of those that are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import streamlit as st

from app import job_view, settings, shell, show
from app.answers import evidence as answers
from app.answers.reports import FILE, PairReport, digests, find_report
from app.jobs import runner
from interp.experiments.registry import Experiment
from interp.report.headlines import exploratory, sentence_of
from interp.report.page import Report
from interp.report.prompt_sets import PromptSet, on_other_prompts
from interp.results.result import Result, file_names, flatten

# The link holds the id alone; a bound select box would put the whole label of the choice there.
EXPERIMENT, CHOSEN, LINKED = "experiment", "chosen_experiment", "evidence-linked"
MISSING, QUICK, ROW, ROUND = "missing", "quick", "evidence-row", "evidence-round"


def heading(pair_report: PairReport, page: shell.Page) -> None:
    """Draw whose report this is, where that is not plain."""
    if pair_report.shipped is not None:
        results = pair_report.report.results if pair_report.report is not None else ()
        quick = any(result.settings.get("quick") is True for result in results)
        command = answers.command_of(page.source, run_settings={"quick": quick})
        st.caption(f"This report ships with Bypass: `{command}` makes it again.")
    elif pair_report.other is not None:
        sentence = f"The report folder holds the report of another pair ({show.shown(pair_report.other, page.words)})."
        st.info(show.plain(sentence) + " The report of this pair is kept beside it, and neither touches the other.", icon=":material/info:")


def facts(report: Report) -> None:
    """Counts of verdicts, and when the report was written."""
    written = str(report.environment.get("written", ""))
    try:
        moment = datetime.fromisoformat(written)
        date = f"{moment.day} {moment:%B %Y}"
    except ValueError:
        date = "–"
    seconds = sum(float(result.seconds) for result in report.results)
    lacking = {"Missing": str(len(answers.missing(report)))}
    pairs = {**answers.counts(report.results), **lacking, "Written": date, "Time of the experiments": job_view.duration(seconds)}
    st.html(show.facts(show.fact(name, (str(value), None)) for name, value in pairs.items()))


@st.fragment
def verdicts(report: Report, page: shell.Page) -> None:
    """Draw the table of all experiments, and the chosen one in full; a row and the select box choose the same thing."""
    with shell.errors_shown():
        frame = answers.summary(report.results)
        ids = [result.id for result in report.results]
        turn = st.session_state.setdefault(ROUND, 0)
        row = show.table(
            frame, f"verdicts-{turn}", page.words, select=True, height=min(38 + 35 * len(frame), 740),
            alt="One row per experiment: claim, verdict, what it says, effect, null, interval, what is measured, experiment.",
            column_config={"What it says": st.column_config.TextColumn(width="large")},
        )  # fmt: skip
        st.caption(
            "Click a row for the experiment behind it. An effect says something only by its distance from the null: what chance or a "
            f"matched control gives. A dash is a null that does not exist. Claims: {show.plain(answers.first_letters(report.results))}."
        )
        from_link(ids)
        if row is not None and row != st.session_state.get(ROW) and row < len(ids):
            st.session_state[CHOSEN] = ids[row]
        st.session_state[ROW] = row
        st.header("One experiment")
        titles = {result.id: f"{result.id}  {show.shown(result.title, page.words)}" for result in report.results}
        chosen = st.selectbox(
            "Experiment", ids, format_func=lambda name: titles.get(name, name), key=CHOSEN, on_change=forget_row,
            help="The same choice as a click on a row above; it is kept in the link.",
        )  # fmt: skip
        to_link(chosen, ids)
        experiment(next(result for result in report.results if result.id == chosen), page, report.prompt_sets)


def from_link(ids: list[str]) -> None:
    """Choose the experiment of the link, unless this page itself wrote the link."""
    linked = st.query_params.get(EXPERIMENT)
    if linked in ids and (linked != st.session_state.get(LINKED) or CHOSEN not in st.session_state):
        st.session_state[CHOSEN] = linked
    elif st.session_state.get(CHOSEN) not in ids:
        st.session_state.pop(CHOSEN, None)


def to_link(chosen: str, ids: list[str]) -> None:
    """Write the chosen experiment into the link."""
    st.session_state[LINKED] = chosen
    if chosen != ids[0]:
        st.query_params[EXPERIMENT] = chosen
    else:
        st.query_params.pop(EXPERIMENT, None)


def forget_row() -> None:
    """Unmark the row of the table after a choice in the select box."""
    st.session_state[ROUND] = st.session_state.get(ROUND, 0) + 1
    st.session_state[ROW] = None


def experiment(result: Result, page: shell.Page, prompt_sets: Sequence[PromptSet] = ()) -> None:
    """Draw one experiment: verdict, effects beside nulls, criterion, verdicts on other prompts, figures, tables, and its command."""
    st.subheader(show.plain(show.shown(result.title, page.words)))
    st.html(
        f'<p class="verdict {result.verdict}"><b>{show.escaped(answers.verdict_of(result))}.</b> '
        f"{show.escaped(show.shown(sentence_of(result), page.words))}</p>{effects(result, page.words)}"
        f"{reasons(result, page.words, prompt_sets)}"
    )
    if len(result.criteria) > 1:
        st.markdown("**Every version of the criterion, and the verdict under it**")
        show.table(answers.versions_of(result), f"versions-{result.id}", page.words, alt=f"Versions of the criterion of {result.id}")
    if result.id in answers.SEEN_ON:
        name = answers.SEEN_ON[result.id]
        shell.link(name, f"See it at work: {shell.PAGES[name][0]}")
    for place, figure in enumerate(result.figures):
        show.draw(figure, f"{result.id}-{place}", page.words)
    files = file_names(result)
    for name, frame in result.tables.items():
        title = show.shown(name.replace("_", " ").replace("-", " "), page.words)
        left, right = st.columns([5, 1], vertical_alignment="bottom")
        left.markdown(f"**{show.plain(title[:1].upper() + title[1:])}**")
        right.download_button(
            "CSV", partial(csv_of, frame), files[name], "text/csv", key=f"csv-{files[name]}", on_click="ignore", type="tertiary",
            icon=":material/download:", help=f"The table “{show.plain(title)}” in full precision and with raw words.", width="stretch",
        )  # fmt: skip
        show.table(answers.readable(frame), f"table-{files[name]}", page.words, alt=f"{title}, {len(frame)} rows", placeholder="–")
    with st.expander("Settings and how to repeat it"):
        show.table(answers.settings_of(result), f"settings-{result.id}", page.words, alt=f"Settings of {result.id}")
        st.markdown(f"It took {job_view.duration(float(result.seconds))}. This command repeats it into a folder of its own:")
        out = f"again-{result.id}"
        st.code(answers.command_of(page.source, only=result.id, folder=out, run_settings=result.settings), language="bash", wrap_lines=True)
        if not answers.shipped_prompts(result):
            st.caption(
                "This result used other prompts than those that ship: add `--prompts` (and `--passages`) with the files it was made from."
            )


def csv_of(frame: object) -> str:
    """A table as CSV."""
    return flatten(frame).to_csv(index=False)  # type: ignore[arg-type]


def effects(result: Result, words: bool) -> str:
    """The statistics as rows of HTML with a small drawing: null a tick, interval a bar, value a dot."""
    rows = []
    for key, (name, value, null, interval) in zip(result.statistic, answers.effects(result), strict=True):
        at = answers.places(result, key)
        marks = ""
        if "low" in at and "high" in at:
            marks += f'<i class="span" style="left:{at["low"]}%;width:{at["high"] - at["low"]:.1f}%"></i>'
        marks += f'<i class="null" style="left:{at["null"]}%"></i>' if "null" in at else ""
        marks += f'<i class="value" style="left:{at["value"]}%"></i>' if "value" in at else ""
        rows.append(
            f'<tr><th scope="row">{show.escaped(show.shown(name, words))}</th><td>{show.escaped(value)}</td><td>{show.escaped(null)}</td>'
            f'<td>{show.escaped(interval)}</td><td class="line" aria-hidden="true"><span>{marks}</span></td></tr>'
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Measured", "Effect", "Null", "Interval"))
    head += '<td class="key" aria-hidden="true">● effect &nbsp; │ null &nbsp; ▬ interval</td>'
    return f'<table class="effects"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def reasons(result: Result, words: bool, prompt_sets: Sequence[PromptSet] = ()) -> str:
    """Question, criterion, refutation, caveat, and what was measured on other prompts, as HTML."""
    pairs = {
        "Question": result.question, "In numbers": result.summary if result.sentence not in ("", result.summary) else "",
        **{f"On {item.name} ({item.count})": f"{answers.verdict_of(other)}. {other.sentence}"
           for item, other in on_other_prompts(prompt_sets, result.id)},
        "Exploratory": exploratory(result), "Criterion": result.criterion,
        "Recorded": result.criteria[-1].recorded if result.criteria else "", "Refuted by": result.refuted_by,
        "Limit": result.does_not_show, "Caveat": result.caveat,
    }  # fmt: skip
    shown = {show.escaped(name): show.escaped(show.shown(text, words)) for name, text in pairs.items() if text}
    lines = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in shown.items())
    return f'<dl class="why">{lines}</dl>'


def run_missing(pair_report: PairReport, lacking: Mapping[str, Experiment], page: shell.Page) -> None:
    """Offer to run what the report lacks; in demo mode, show the operator's command."""
    left_out = answers.left_out(pair_report.report)
    if settings.demo():
        st.markdown("Visitors cannot start experiments. Whoever runs this app adds what is missing with one command:")
        st.code(answers.command_of(page.source), language="bash", wrap_lines=True)
        return
    names = {name: f"{name}  {show.shown(item.title, page.words)}" for name, item in lacking.items()}
    key = answers.job_key(page.pair, pair_report.folder)
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    chosen = left.multiselect(
        "Experiments to run", list(names), default=[name for name in names if name not in left_out], key=MISSING,
        format_func=lambda name: names.get(name, name), placeholder="Choose at least one",
        help="Each is added to the report as soon as it is done. A run that is cancelled keeps what is done and goes on from there.",
    )  # fmt: skip
    quick = right.toggle(
        "Quick",
        key=QUICK,
        bind="query-params",
        help="Fewer prompts and random controls: wider intervals, the same criteria.",
    )
    if not chosen and runner.find(key) is None:
        st.caption("Choose at least one experiment.")
        return
    work = partial(answers.run_missing, page.pair, page.source, pair_report.folder, tuple(chosen), quick)
    count = f"{len(chosen)} experiment{'s' * (len(chosen) != 1)}"
    took = job_view.duration(answers.shipped_seconds())
    job_view.ask(
        key, "Experiments of the report", work, f"Run {count}",
        help="Runs on this machine, one experiment after another; the rest of the app stays usable, somewhat slower.",
        note=f"On the pair that ships all of them took {took} on two cores; a larger pair takes longer.",
        cancelled="Cancelled. Experiments that were done are in the report; the rest goes on from where it stopped.",
    )  # fmt: skip


def missing(pair_report: PairReport, page: shell.Page) -> None:
    """Draw the experiments that the report lacks."""
    lacking, left_out = answers.missing(pair_report.report), answers.left_out(pair_report.report)
    st.header("Missing experiments")
    if not lacking:
        st.caption("None: the report holds every experiment of this version.")
        return
    for name, why in left_out.items():
        st.markdown(f"**{show.plain(name)}** was left out: {show.plain(show.shown(why, page.words))}")
    others = [name for name in lacking if name not in left_out]
    if others:
        st.markdown(f"Not run yet: {show.plain(', '.join(others))}.")
    run_missing(pair_report, lacking, page)


def empty(pair_report: PairReport, page: shell.Page) -> None:
    """Draw what a report will hold, where there is none, and the offer to run it."""
    lacking = answers.missing(None)
    st.header("No report of this pair yet")
    st.markdown(
        f"{len(lacking)} experiments wait, each with its question, its criterion, its null and what would refute it. "
        "They run one after another and appear here as they are done."
    )
    run_missing(pair_report, lacking, page)
    st.header("What will be asked")
    st.html('<div class="claims">' + "".join(
        f'<article><h3>{show.escaped(item.title)}</h3><p class="id">{show.escaped(f"{name} · claim {item.claim}")}</p>'
        f"<p>{show.escaped(item.question)}</p><p><b>Would be refuted by:</b> {show.escaped(item.criterion.refuted_by)}</p></article>"
        for name, item in lacking.items()
    ) + "</div>")  # fmt: skip


def downloads(folder: Path) -> None:
    """Draw the downloads of the report as JSON and as a page."""
    left, middle, _ = st.columns([1, 1, 2])
    left.download_button(
        "report.json", (folder / FILE).read_bytes, "report.json", "application/json", key="download-json", on_click="ignore",
        icon=":material/download:", help="All results with raw words and full precision, for machines.", width="stretch",
    )  # fmt: skip
    if (folder / "index.html").is_file():
        middle.download_button(
            "Report as a page", (folder / "index.html").read_bytes, "report.html", "text/html", key="download-page", on_click="ignore",
            icon=":material/download:", help="One self-contained HTML file, words masked, that opens without a network.", width="stretch",
        )  # fmt: skip


LEAD = (
    "Every claim beside what chance or a matched control gives. A verdict follows a criterion, whose versions and days are shown with "
    "it; one that was fixed after a result was known makes a verdict exploratory. Each experiment says what would have refuted it."
)
with shell.page("evidence", LEAD) as page:
    pair_report = find_report(digests(page.source))
    heading(pair_report, page)
    if pair_report.report is None or not pair_report.report.results:
        empty(pair_report, page)
    else:
        st.header("Verdicts")
        facts(pair_report.report)
        downloads(pair_report.shipped or pair_report.folder)
        verdicts(pair_report.report, page)
        missing(pair_report, page)
