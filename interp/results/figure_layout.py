"""The layout of titles and legends, such that no text is cut off on a phone or on a wide screen.

The width at which a figure is drawn is not known when it is made, and plotly breaks no lines. So titles are broken into lines
that fit a phone, and a legend that needs several rows there is placed below the plot, at the lower edge of the drawing, where
plotly reserves the room that it takes; a legend of one row is placed between title and plot.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp.results.figure_style import text_of

# The least width in pixels: a window of 420 without the page's margins.
NARROW = 370
# Characters of one line of a title (15 px), of an axis below (16 px), of an axis or colour bar at the side of a plot of 240 px, of a
# legend's entry, and of a note inside the plot.
TITLE, BELOW, BESIDE, ENTRY, NOTE = 52, 36, 30, 40, 22
LINE, ROW = 20, 19
LETTER, KEY = 7.2, 45


@dataclass(frozen=True)
class TextLayout:
    """Title and legend in the form of plotly's layout, the margin above the plot, and the height of the figure."""

    title: str
    legend: dict[str, Any]
    top: int
    height: int


def break_lines(text: Any, width: int) -> str:
    """A text in lines of at most `width` characters, escaped; a longer word has a line of its own, and spaces at the ends stay."""
    if len(str(text)) <= width:
        return text_of(text)
    return "<br>".join(text_of(line) for line in textwrap.wrap(str(text), width, break_long_words=False))


def rows(names: Sequence[str], width: int = NARROW) -> int:
    """The number of lines of text of a horizontal legend in a figure of `width` pixels, counting every line of an entry."""
    total, row_height, room = 0, 0, 0.0
    for name in names:
        parts = name.split("<br>")
        width_of_entry = KEY + LETTER * max(map(len, parts))
        if not row_height or width_of_entry > room:
            total, row_height, room = total + row_height, 0, float(width)
        row_height, room = max(row_height, len(parts)), room - width_of_entry
    return total + row_height


def width_below(labels: Sequence[str]) -> int:
    """The number of characters that fit on a line centred below a plot with these labels on its left."""
    left = 24 + LETTER * max((len(line) for label in labels for line in label.split("<br>")), default=0)
    # The line is centred on the plot, so the room on the right, up to the margin, limits it on both sides.
    return max(14, min(BELOW, int((NARROW - left + 24) / 8.8)))


def text_layout(title: str, names: Sequence[str], height: int) -> TextLayout:
    """The layout of a title and of a legend with these entries (none: no legend), for a figure of `height` without them."""
    text = break_lines(title, TITLE)
    more, needed = LINE * text.count("<br>"), rows(names)
    # Both are placed relative to the figure, because wide labels may shift the plot far to the right.
    place = {"xref": "container", "x": 0, "xanchor": "left", "yref": "container", "tracegroupgap": 0}
    if needed > 1:
        whole = height + more + ROW * needed - 14
        return TextLayout(text, place | {"y": 0, "yanchor": "bottom"}, more + 56, whole)
    above = place | {"y": 1 - (more + 36) / (height + more), "yanchor": "top"}
    return TextLayout(text, above, more + (84 if needed else 56), height + more)


def untitled(layout: Mapping[str, Any]) -> dict[str, Any]:
    """The layout without its title, for a page that shows the title itself; the legend and the plot move up to the edge."""
    untitled_layout = {key: value for key, value in layout.items() if key != "title"}
    legend = untitled_layout.get("legend", {})
    above = bool(untitled_layout.get("showlegend")) and legend.get("y") != 0
    if above and "height" in untitled_layout:
        untitled_layout["legend"] = {**legend, "y": 1 - 8 / untitled_layout["height"]}
    untitled_layout["margin"] = {**untitled_layout.get("margin", {}), "t": 40 if above else 16}
    return untitled_layout
