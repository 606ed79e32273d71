"""The frame of every page: title and lead, the sidebar with the switch for words and the choice of the pair, a note on the first
visit, and errors as a sentence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from app import pins, settings, show, state
from app.settings import Source
from interp.errors import UserError

if TYPE_CHECKING:
    from interp import ModelPair

WORDS, SEEN = "show_words", "note_seen"
PAGES = {
    "start": ("Start", ":material/alt_route:"),
    "vectors": ("Toxic vectors", ":material/scatter_plot:"),
    "bypass": ("Bypass", ":material/moving:"),
    "steer": ("Steer", ":material/tune:"),
    "patching": ("Patching", ":material/grid_on:"),
    "displacement": ("Displacement", ":material/swap_vert:"),
    "elasticity": ("Elasticity", ":material/undo:"),
    "evidence": ("Evidence", ":material/fact_check:"),
    "training": ("Training", ":material/show_chart:"),
}
# The first page has a question as its heading; the others have their title.
HEADINGS = {"start": "What does tuning leave behind?"}
# The next page of the argument.
NEXT = {
    "start": ("vectors", "Next: find the most toxic value vector, and see that tuning left it in place"),
    "vectors": ("bypass", "Next: see how the residual stream is shifted around it"),
    "bypass": ("steer", "Next: bring the toxicity back"),
    "steer": ("patching", "Next: find where in the model the difference lies"),
    "patching": ("displacement", "Next: see what preference pairs do to the answers that they prefer"),
    "displacement": ("elasticity", "Next: see which texts undo a tuning, and whether that is a return to the base"),
    "elasticity": ("evidence", "Next: every claim beside its null"),
    "evidence": ("training", "Next: how the pair was made"),
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Page:
    """The state of this session that the body of a page needs."""

    words: bool
    name: str
    source: Source

    @property
    def pair(self) -> ModelPair:
        """The loaded pair."""
        return state.load_pair(self.source)


@contextmanager
def page(name: str, lead: str, early: bool = False) -> Iterator[Page]:
    """The frame of one page: `with shell.page("vectors", "What to do here.") as page:`.

    A `UserError` ends the page with its problem and fix; any other exception ends it with one line, and is logged.

    Args:
        early: begin the body before the pair has been loaded, where it is the one that ships.
    """
    st.title(heading(name), anchor=False)
    st.html(f'<p class="lead">{show.escaped(lead)}</p>')
    words = st.sidebar.toggle("Show words", key=WORDS, persist_state="session", help="Profanity is masked (`sh*t`) unless this is on.")
    note()
    with errors_shown():
        chosen, source = state.chosen_pair()
        choose(chosen)
        this_page = Page(words, chosen, source)
        early = early and source is None and not state.loaded(source)
        if not early:
            about(this_page)
        yield this_page
        if early:
            about(this_page)
        if name in NEXT:
            st.divider()
            link(*NEXT[name])


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show a `UserError` and its fix in place of the rest of the page or fragment."""
    try:
        yield
    except UserError as error:
        problem(error)
        st.stop()
    except Exception as error:
        # Streamlit stops and restarts scripts by exceptions of its own, which are not faults.
        if type(error).__module__.startswith("streamlit.runtime"):
            raise
        log.exception("a page failed")
        problem(UserError("this did not work, through a fault in Bypass itself", "reload the page; the log of the app says more"))
        st.stop()


def problem(error: UserError) -> None:
    """Show an error: one sentence on what is wrong, one on how to fix it."""
    fix = f"  \n{show.plain(error.fix[:1].upper() + error.fix[1:])}." if error.fix else ""
    st.error(show.plain(show.shown(error.problem[:600], False)) + fix, icon=":material/info:")


def heading(name: str) -> str:
    """The title of a page."""
    return HEADINGS.get(name, PAGES[name][0])


def note() -> None:
    """On the first visit, a note on what the app shows."""
    if st.session_state.get(SEEN):
        return
    left, right = st.columns([6, 1], vertical_alignment="center")
    left.info(
        "This is research on reducing harm: models here can say hostile things. Profanity is masked unless you switch **Show words** on.",
        icon=":material/visibility_off:",
    )
    right.button("Understood", key="understood", on_click=lambda: st.session_state.update({SEEN: True}), width="stretch")


def choose(chosen: str) -> None:
    """The choice of the pair, where there are several."""
    names = list(settings.offered())
    if chosen not in names:
        names.append(chosen)
    if len(names) > 1:
        picked = st.sidebar.selectbox("Pair", names, index=names.index(chosen), format_func=show.plain, help="Every page reads this pair.")
        if picked != chosen:
            state.choose_pair(picked)
            st.rerun()


def about(page: Page) -> None:
    """Three lines on the pair. Raises `UserError` where it cannot be loaded, or the link pins neurons that it does not have."""
    pair = page.pair
    pins.pinned(pair.base)
    size = sum(weight.numel() for weight in pair.base.hf.parameters()) / 1e6
    st.sidebar.caption(
        f"{show.plain(pair.name)}  \n{size:.3g} M parameters, {pair.base.n_layers} layers, {pair.base.d_model} wide  \n"
        f"Toxicity by: {show.plain(state.scorer().name)}"
    )


def link(name: str, label: str, **parameters: str) -> None:
    """A link to another page that keeps the pair and the pinned sets, and sets that page's widgets."""
    kept_parameters = {key: st.query_params[key] for key in (state.CHOSEN, pins.PINS) if key in st.query_params}
    st.page_link(f"views/{name}.py", label=label, icon=PAGES[name][1], query_params=kept_parameters | parameters)
