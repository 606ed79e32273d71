"""Where the words around a plot go, so that they are whole in a narrow column as well as on a wide screen.

A figure is made before anyone knows how wide it will be drawn, and plotly breaks no lines. So titles are broken into lines
that fit the narrowest place, a phone, and a legend that needs several rows there goes below the plot, at the lower edge of the
drawing, where plotly keeps as much room free as it really takes; only a legend of one row stays between title and plot.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp.results.figure_style import text_of

# The width in pixels to be counted on: a window of 420 less the page's own edges.
NARROW = 370
# Characters of one line of a title (15 px), of an axis below (16 px), of an axis or colour bar at the side of a plot of 240 px, of a
# legend's entry, and of a note inside the plot.
TITLE, BELOW, BESIDE, ENTRY, NOTE = 52, 36, 30, 40, 22
LINE, ROW = 20, 19
LETTER, KEY = 7.2, 45


@dataclass(frozen=True)
class Surroundings:
    """Title and legend as plotly's layout takes them, the margin above the plot, and the height of the whole."""

    title: str
    legend: dict[str, Any]
    top: int
    height: int


def broken(text: Any, width: int) -> str:
    """A text in lines of at most `width` characters, escaped; a longer word keeps a line of its own, and spaces at the ends stay."""
    if len(str(text)) <= width:
        return text_of(text)
    return "<br>".join(text_of(line) for line in textwrap.wrap(str(text), width, break_long_words=False))


def rows(names: Sequence[str], width: int = NARROW) -> int:
    """How many rows of text a horizontal legend takes in a drawing of `width` pixels, entries of several lines counted as such."""
    taken, high, left = 0, 0, 0.0
    for name in names:
        parts = name.split("<br>")
        wide = KEY + LETTER * max(map(len, parts))
        if not high or wide > left:
            taken, high, left = taken + high, 0, float(width)
        high, left = max(high, len(parts)), left - wide
    return taken + high


def under(labels: Sequence[str]) -> int:
    """How many characters of a line fit below a plot that has these labels on its left; the line is centred on the plot."""
    left = 24 + LETTER * max((len(line) for label in labels for line in label.split("<br>")), default=0)
    # From the middle of the plot it may reach as far to the left as to the right, where the margin ends the drawing.
    return max(14, min(BELOW, int((NARROW - left + 24) / 8.8)))


def surroundings(title: str, names: Sequence[str], height: int) -> Surroundings:
    """The places of a title and of a legend with these entries (none: no legend), for a figure that is `height` high without."""
    text = broken(title, TITLE)
    more, needed = LINE * text.count("<br>"), rows(names)
    # Both are placed in the whole drawing: beside wide labels the plot itself may begin far to the right.
    place = {"xref": "container", "x": 0, "xanchor": "left", "yref": "container", "tracegroupgap": 0}
    if needed > 1:
        whole = height + more + ROW * needed - 14
        return Surroundings(text, place | {"y": 0, "yanchor": "bottom"}, more + 56, whole)
    above = place | {"y": 1 - (more + 36) / (height + more), "yanchor": "top"}
    return Surroundings(text, above, more + (84 if needed else 56), height + more)


def untitled(layout: Mapping[str, Any]) -> dict[str, Any]:
    """The layout for a page that sets the title itself: what stood below the title moves up to the edge."""
    rest = {key: value for key, value in layout.items() if key != "title"}
    legend = rest.get("legend", {})
    above = bool(rest.get("showlegend")) and legend.get("y") != 0
    if above and "height" in rest:
        rest["legend"] = {**legend, "y": 1 - 8 / rest["height"]}
    rest["margin"] = {**rest.get("margin", {}), "t": 40 if above else 16}
    return rest
