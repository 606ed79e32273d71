"""The page Training: the logs of the run that made the pair or of another run, live while it goes, and the control runs."""

from __future__ import annotations

import time

import streamlit as st

from app import job_view, settings, shell, show
from app.answers import training as answers
from app.answers.training import Run, Signature, Status
from interp import UserError
from interp.runs.logs import shipped_logs
from interp.runs.telemetry import Telemetry

RUN, STAGE, BESIDE, MORE = "run", "stage", "beside", "more"
EVERY = 2.0
WAITING = '<p class="running"><b>○ No line yet.</b> The log is empty; the first numbers appear here when the first step is done.</p>'


def controls_bar(runs: dict[str, answers.Run]) -> tuple[Run, str, Run | None]:
    """The chosen run, its stage, and another run to compare with."""
    left, middle, right = st.columns([3, 4, 3], vertical_alignment="bottom")
    names = list(runs)
    name = left.selectbox(
        "Run", names, key=RUN, bind="query-params",
        help="A run that ships made a pair that ships. Others lie below the folder of runs that the app was started with; "
        "`bypass train` writes them there, and a run that is going on is followed live.",
    )  # fmt: skip
    run = runs[name]
    stages = run.stages
    stage = middle.segmented_control(
        "Stage", stages, default="dpo" if "dpo" in stages else stages[-1], key=STAGE, bind="query-params", required=True,
        help="Stages of one run in the order of the chain: pretraining, further pretraining, tuning on preferences (dpo).",
    )  # fmt: skip
    others = [other.name for other in runs.values() if other.name != name and stage in other.stages]
    if not others:
        return run, stage, None
    beside = right.selectbox(
        "Beside it", others, index=None, key=BESIDE, bind="query-params", placeholder="no other run",
        help="Draws the same stage of another run into the same figures, such as a control run with shuffled labels.",
    )  # fmt: skip
    return run, stage, runs.get(beside) if beside else None


def follow(run: Run, stage: str, drawn: Signature, beside: Run | None, beside_drawn: Signature) -> None:
    """The line that says how the run stands. Below the folder of runs it looks every two seconds, and has the page drawn anew
    when, and only when, the log has changed."""
    since = time.monotonic()

    def look() -> None:
        with shell.errors_shown():
            # Not right after the page was drawn: a log that changes all the time would restart the page for ever.
            changed = answers.signature(run) != drawn or (beside is not None and answers.signature(beside) != beside_drawn)
            if changed and time.monotonic() - since > EVERY / 2:
                st.rerun()
            logs = answers.telemetry(run, drawn)
            if logs is None or stage not in logs.stages:
                st.html(WAITING)
            else:
                st.html(status_html(answers.status(logs.of_stage(stage), answers.age(run, stage))))

    st.fragment(look, run_every=None if run.ships else EVERY)()


def status_html(status: Status) -> str:
    """The status of a run as a sentence in HTML, with a mark beside the colour."""
    words = {
        "finished": "✓ Finished", "stopped": "■ Stopped", "running": "● Running", "silent": "○ Silent",
        "unknown": "– The log does not say how it ended",
    }[status.state]  # fmt: skip
    parts = [f"at step {status.step:,}"]
    if status.seconds is not None:
        parts.append(f"after {job_view.duration(status.seconds)} of training")
    if status.age is not None:
        parts.append(f"last line {ago(status.age)}")
    text = ", ".join(parts)
    if status.state == "stopped" and status.reason:
        text += f": {show.shown(status.reason, False)}"
    if status.state == "running":
        pace = f", {status.pace:.3g} steps a second" if status.pace else ""
        text += f"{pace}. How many steps are planned, and so the time left, is not in the log"
    if status.state == "silent":
        text += ". Nothing for a minute: it was killed, or one of its steps takes longer than that"
    return f'<p class="running {status.state}"><b>{words}</b> {show.escaped(text)}.</p>'


def ago(seconds: float) -> str:
    """Seconds as text: how long ago."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def facts(log: Telemetry) -> None:
    """Draw first and last value of the measures that sum a stage up."""
    pairs = answers.ends(log)
    if pairs:
        st.html(show.facts(show.fact(name, (last, f"from {first}")) for name, (first, last) in pairs.items()))


def grid(names: list[str], logs: dict[str, Telemetry], key: tuple[object, ...], stage: str, page: shell.Page) -> None:
    """Draw figures, two in a row where there is room."""
    for place in range(0, len(names), 2):
        for column, name in zip(st.columns(2, gap="large"), names[place : place + 2], strict=False):
            with column:
                try:
                    figure = answers.figure(logs, (*key, stage), name, stage)
                except UserError as error:
                    shell.problem(error)
                    continue
                show.draw(figure, f"measure-{name}", page.words)


def figures(logs: dict[str, Telemetry], key: tuple[object, ...], stage: str, page: shell.Page) -> None:
    """Draw the most important measures, the others on request."""
    names = list(dict.fromkeys(name for run in logs.values() for name in answers.measures(run.of_stage(stage))))
    st.header("What was measured")
    if not names:
        st.caption("Nothing that could be drawn has been logged yet.")
        return
    grid(names[: answers.AT_FIRST], logs, key, stage, page)
    others = names[answers.AT_FIRST :]
    if not others:
        return
    titles = ", ".join(answers.title(name).lower() for name in others)
    with st.expander(f"{len(others)} more: {titles}", key=MORE, on_change="rerun") as more:
        if more.open:
            grid(others, logs, key, stage, page)


def words(log: Telemetry, page: shell.Page) -> None:
    """Draw the samples and the events of the run."""
    samples, events = answers.samples(log), answers.events(log)
    if len(samples):
        st.header("What it said on the way")
        st.caption("Greedy continuations of the same prompts at every measurement: the numbers above in words.")
        show.table(
            samples, "samples", page.words, alt=f"Continuations by step, {len(samples)} rows", height=min(38 + 35 * len(samples), 390)
        )
    if len(events):
        st.header("Events")
        show.table(events, "events", page.words, alt=f"Events of the run, {len(events)} rows", placeholder="–")


def controls(run: Run, page: shell.Page) -> None:
    """Draw the control runs, the null of the claim that preference tuning made the change."""
    record = answers.controls(page.pair, run.folder)
    if record is None:
        if run.ships:
            st.header("Control runs")
            st.caption("No control run was measured beside the pair that you look at. The log above is of another pair.")
        return
    table = answers.control_table(record)
    st.header("Control runs: the null")
    st.markdown(show.plain(answers.null_words(table)))
    show.draw(answers.control_figure(table), "control-figure", page.words)
    show.table(table, "controls", page.words, alt=f"Control runs, {len(table)} rows", placeholder="–")
    missing = record.get("missing")
    if isinstance(missing, dict) and missing:
        st.caption("Not run: " + show.plain(show.shown("; ".join(f"{name} ({why})" for name, why in missing.items()), page.words)) + ".")
    shell.link("evidence", "What follows from them: experiment A-E14", experiment="A-E14")


LEAD = "How a run of training went, number by number, and what runs without the preference do. A run that is going on is followed live."
with shell.page("training", LEAD) as page:
    runs = answers.runs(shipped_logs(page.pair))
    if not runs:
        st.header("No training log")
        st.markdown("No run ships with this checkout, and none lies below the folder of runs. This command makes one:")
        st.code("bypass train all shipped", language="bash")
        st.stop()
    run, stage, beside = controls_bar(runs)
    drawn, other = answers.signature(run), answers.signature(beside) if beside else ()
    follow(run, stage, drawn, beside, other)
    logs_of = {run.name: answers.telemetry(run, drawn)}
    if beside is not None:
        logs_of[beside.name] = answers.telemetry(beside, other)
    with_stage = {name: log for name, log in logs_of.items() if log is not None and stage in log.stages}
    if run.name in with_stage:
        facts(with_stage[run.name].of_stage(stage))
        figures(with_stage, (run.name, drawn, beside.name if beside else "", other), stage, page)
        controls(run, page)
        words(with_stage[run.name].of_stage(stage), page)
    elif len(runs) == 1:
        st.caption(f"Runs of `bypass train` below {show.plain(str(settings.runs_folder().name))} would be offered here as well.")
