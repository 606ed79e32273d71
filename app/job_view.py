"""The display of a job: its progress, the time left, and a button that cancels it. It survives a reload, as the job does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import streamlit as st

from app import shell, show
from app.jobs import Job, Runner, Step, runner


def ask(
    key: str, title: str, work: Callable[[Step], Any], label: str, *, help: str | None = None, note: str = "",
    cancelled: str = "Cancelled; nothing was kept.", line: Runner | None = None,
) -> Any:  # fmt: skip
    """The result of a job, or None; until there is one, a button that starts it or its progress is drawn.

    The key is a hash of the question (`jobs.key_of`): visitors with the same question share one job, whether it runs or is done.

    Args:
        line: what runs the job, where it is not to wait for those of other pages.
    """
    line = runner if line is None else line
    job = line.find(key)
    if job is None or job.state in ("cancelled", "failed"):
        if job is not None and job.problem is not None:
            shell.problem(job.problem)
        elif job is not None:
            st.caption(cancelled)
        elif note:
            st.caption(note)
        if st.button(label, key=f"start-{key}", type="primary", help=help, icon=":material/play_arrow:"):
            with shell.errors_shown():
                line.start(key, title, work)
            st.rerun()
        return None
    if not job.over:
        watch(job, line)
        return None
    return job.result


@st.fragment(run_every=0.5)
def watch(job: Job, line: Runner | None = None) -> None:
    """Progress that updates itself; the page runs again only when the job is over."""
    line = runner if line is None else line
    if job.over:
        st.rerun()
    ahead = line.ahead(job)
    left = job.left(time.monotonic())
    text = f"{ahead} in line before this" if ahead else job.phrase or "starting"
    text += f" · {duration(left)} left" if left is not None else ""
    bar, button = st.columns([5, 1], vertical_alignment="center")
    bar.progress(job.share, text=show.plain(show.shown(text, False)))
    if button.button("Cancel", key=f"cancel-{job.key}", width="stretch", disabled=job.stop.is_set()):
        line.cancel(job.key)


def duration(seconds: float) -> str:
    """Seconds as text, in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
