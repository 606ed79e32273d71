"""What every page shares: the models loaded once per process, and the ways in which text reaches the screen.

Prompts, tokens and continuations are data: whatever a visitor types or a model says is escaped here before it is laid
out, and masked unless the visitor asked to see it.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import streamlit as st

from interp import ModelPair, UserError
from interp.commands.common import Sides
from interp.figure_style import COLOURS
from interp.lexicon import mask
from interp.neurons import Neuron, rank_values
from interp.probe import probe_for
from interp.results import Figure
from interp.toxicity import Scorer, load_scorer

PAIR, REPORT, DEMO = "BYPASS_PAIR", "BYPASS_REPORT", "BYPASS_DEMO"
SHOW = "show_words"
MOST_KEYS = 16
# ASCII punctuation has a meaning in Markdown, in Streamlit's directives or in its formulas; escaped it is itself.
MARKDOWN = re.compile(r"([!-/:-@\[-`{-~])")


def demo() -> bool:
    """Whether visitors use this app: prompts and continuations are then short."""
    return os.environ.get(DEMO, "0") not in ("", "0")


def pair_source() -> tuple[str, str] | None:
    """The pair that the environment names as `base::tuned`, or None for the one that ships."""
    text = os.environ.get(PAIR, "").strip()
    if not text:
        return None
    base, separator, tuned = text.partition("::")
    if not (separator and base.strip() and tuned.strip()):
        raise UserError(f"{PAIR} is {text!r}, which does not name two models", f"write {PAIR}=base::tuned, each a folder or a hub id")
    return base.strip(), tuned.strip()


@st.cache_resource(show_spinner="Loading the pair …")
def load_pair(source: tuple[str, str] | None) -> ModelPair:
    """Both models, once per process; hooks read a context variable, so sessions can share them."""
    return Sides(source).both()


@st.cache_resource(show_spinner="Ranking the value vectors …")
def toxic_neurons(source: tuple[str, str] | None) -> list[Neuron]:
    """The tuned model's neurons whose value vectors point most along the probe, which ships or is fitted now."""
    pair = load_pair(source)
    probe = probe_for(pair.base)
    return rank_values(pair.tuned, probe.direction, top=MOST_KEYS).neurons


@st.cache_resource(show_spinner="Loading the scorer …")
def scorer() -> Scorer:
    """The classifier that ships, or the word list where detoxify is not installed."""
    return load_scorer("bundled" if find_spec("detoxify") is not None else "lexicon")


@contextmanager
def told() -> Iterator[None]:
    """Show what is wrong with what was given, and how to mend it, in place of the rest of the page."""
    try:
        yield
    except UserError as error:
        st.error(
            plain(error.problem) + (f"  \n{plain(error.mend[:1].upper() + error.mend[1:])}." if error.mend else ""), icon=":material/info:"
        )
        st.stop()


def show_words() -> bool:
    """The switch that is in the sidebar of every page."""
    return st.sidebar.toggle("Show words", key=SHOW, help="Profanity is masked (`sh*t`) unless this is on.")


def shown(text: str, words: bool) -> str:
    """A text as a person may see it: masked unless asked for, control characters as escapes. It keeps its place in HTML only escaped."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "replace").decode() for c in (text if words else mask(text))
    )


def plain(text: str) -> str:
    """Text as Markdown that shows as exactly this text."""
    return MARKDOWN.sub(r"\\\1", text)


def escaped(text: str) -> str:
    """Text as HTML that shows as exactly this text."""
    return html.escape(text, quote=True)


def draw(figure: Figure, key: str, words: bool) -> None:
    """A figure with the sentence that says what to see in it."""
    spec = figure.spec if words else masked(figure.spec)
    st.plotly_chart(spec, width="stretch", theme=None, key=key, config={"displaylogo": False, "displayModeBar": False})
    st.caption(plain(shown(figure.caption, words)))


def masked(value: Any) -> Any:
    """The same JSON with every text in it masked."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: masked(item) for key, item in value.items()}
    return [masked(item) for item in value] if isinstance(value, list | tuple) else value


def colour(role: str) -> str:
    """The one colour that a role has everywhere."""
    return COLOURS[role]
