"""Text, tables and figures as they are drawn: masked, then escaped.

Prompts, tokens and continuations are data: whatever a visitor types or a model says passes through here, where it is
masked unless the visitor asked to see it, and then escaped for the language (HTML or Markdown) in which it is laid out.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from interp.data.lexicon import mask, mask_texts
from interp.results.figure_style import COLOURS, NEUTRAL
from interp.results.result import Figure, flatten

# ASCII punctuation, which may have a meaning in Markdown, Streamlit's directives or formulas, is escaped.
MARKDOWN = re.compile(r"([!-/:-@\[-`{-~])")
INK = {"light": "#3c4350", "dark": "#c3c8d0"}


def shown(text: str, words: bool) -> str:
    """A text for display: masked unless `words`, control characters as escapes. For HTML or Markdown it has to be escaped too."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "replace").decode() for c in (text if words else mask(text))
    )


def plain(text: str) -> str:
    """Text as Markdown that shows as exactly this text."""
    return MARKDOWN.sub(r"\\\1", text)


def escaped(text: str) -> str:
    """Text as HTML that shows as exactly this text."""
    return html.escape(text, quote=True)


def visible(token: str, words: bool) -> str:
    """A token with its spaces and line ends made visible."""
    return shown(token, words).replace("\n", "⏎").replace(" ", "␣") or "(empty)"


def draw(figure: Figure, key: str, words: bool, *, select: bool = False) -> Any:
    """Draw a figure and its caption; with `select`, return what was clicked."""
    spec = figure.spec if words else mask_texts(figure.spec)
    layout = spec.get("layout", {})
    ink = INK["dark" if st.context.theme.type == "dark" else "light"]
    # The figures' own ink is one grey that is seen on white and on black; on a screen whose ground is known it can be stronger.
    spec = spec | {"layout": layout | {"font": layout.get("font", {}) | {"color": ink}}}
    title = layout.get("title", {})
    name = html.unescape(str(title.get("text", "") if isinstance(title, dict) else title)).replace("<br>", " ") or figure.name
    options: dict[str, Any] = {"on_select": "rerun", "selection_mode": "points"} if select else {}
    event = st.plotly_chart(
        spec, width="stretch", theme=None, key=key, alt=name, config={"displaylogo": False, "displayModeBar": False}, **options
    )
    st.caption(plain(shown(figure.caption, words)))
    return event if select else None


def table(frame: pd.DataFrame, key: str, words: bool, *, alt: str, select: bool = False, **options: Any) -> int | None:
    """Draw a table, its texts masked unless `words`; with `select`, return the row that was clicked."""
    flat = flatten(frame).map(lambda cell: cell_text(cell, words))
    chosen: dict[str, Any] = {"on_select": "rerun", "selection_mode": "single-row"} if select else {}
    event: Any = st.dataframe(flat, hide_index=True, width="stretch", key=key, alt=alt, **chosen, **options)
    if not select:
        return None
    rows = event.selection.rows
    return int(rows[0]) if rows else None


def cell_text(cell: Any, words: bool) -> Any:
    """A cell of a table for display: texts masked, a list as one text."""
    if isinstance(cell, list | tuple):
        return " · ".join(str(cell_text(item, words)) for item in cell)
    return shown(cell, words) if isinstance(cell, str) else cell


def strip(
    tokens: Sequence[str], values: Sequence[float], hue: str, words: bool, *, label: str, unit: str = "", top: float | None = None,
    below: str = "",
) -> str:  # fmt: skip
    """Tokens as HTML, each shaded by its value, with the number on hover; full colour is `top`, by default the largest.

    Args:
        below: the hue of values below zero, which are underlined besides; empty for that of the others.
    """
    # Masked as a whole, because a word may be spread over several tokens; a mask keeps the length.
    joined = "".join(tokens)
    text, place, parts = joined if words else mask(joined), 0, []
    top = top or max((abs(value) for value in values), default=0.0) or 1.0
    for token, value in zip(tokens, values, strict=True):
        piece, place = visible(text[place : place + len(token)], True), place + len(token)
        hover = escaped(f"{piece}: {value:.3g}{unit}")
        other = f";--hue:{below};text-decoration:underline dotted" if below and value < 0 else ""
        parts.append(f'<span style="--share:{60 * min(1.0, abs(value) / top):.0f}%{other}" title="{hover}">{escaped(piece)}</span>')
    return f'<p class="strip" dir="auto" role="img" aria-label="{escaped(label)}" style="--hue:{hue}">{"".join(parts)}</p>'


def bars(rows: Sequence[tuple[str, float]], hue: str, words: bool, *, caption: str, number: str = ".1%") -> str:
    """A small table as HTML: a token, a bar, a number."""
    widest = max((abs(value) for _, value in rows), default=0.0) or 1.0
    lines = "".join(
        f'<tr><th scope="row">{escaped(visible(token, words))}</th>'
        f'<td class="bar"><span style="width:{100 * abs(value) / widest:.1f}%"></span></td><td class="number">{value:{number}}</td></tr>'
        for token, value in rows
    )
    return f'<table class="bars" style="--hue:{hue}"><caption>{escaped(caption)}</caption><tbody>{lines}</tbody></table>'


def fact(name: str, *values: tuple[str, str | None], role: str = "", title: str = "") -> str:
    """One entry of `facts` as HTML: a name and, for each of `values`, a number with an optional small note.

    Args:
        role: where this is given, the name begins with `title` in the colour of this role.
    """
    head = f'<span class="role" style="--hue:{colour(role)}">{escaped(title)}</span> ' if role else ""
    numbers = "".join(f"<dd>{escaped(number)}{'' if note is None else f'<small>{escaped(note)}</small>'}</dd>" for number, note in values)
    return f"<div><dt>{head}{escaped(name)}</dt>{numbers}</div>"


def facts(entries: Iterable[str]) -> str:
    """Numbers with their names and notes as HTML; each entry comes from `fact`."""
    return f'<dl class="facts">{"".join(entries)}</dl>'


def card(
    side: str, title: str, about: str, prompt: str, continuation: str, words: bool, *, toxicity: float | None = None, more: str = "",
    waiting: bool = False,
) -> str:  # fmt: skip
    """One model's card as HTML: its name, the prompt (faint), the continuation (in its colour), the score, and more HTML."""
    # Masked as a whole, because a word may begin in the prompt and end in the continuation; a mask keeps the length.
    text = prompt + continuation if words else mask(prompt + continuation)
    before, new = (escaped(shown(part, True)) for part in (text[: len(prompt)], text[len(prompt) :]))
    end = '<span class="cursor" aria-hidden="true"></span>' if waiting else "" if new else "(ends here)"
    score = "–" if toxicity is None else f"{toxicity:.2f}"
    return (
        f'<section class="card" style="--hue:{colour(side)}" aria-label="{escaped(title)}"><h3>{escaped(title)}</h3>'
        f'<p class="about">{escaped(about)}</p>'
        f'<p class="text" dir="auto"><span class="given">{before}</span><span class="new">{new}</span>{end}</p>'
        f'<div class="score">{score}</div><div class="unit">toxicity of the continuation, 0 to 1</div>{more}</section>'
    )


def colour(side: str) -> str:
    """The colour of a role (base, tuned, edited, un-aligned, null), the same everywhere."""
    return COLOURS.get(side, NEUTRAL)
