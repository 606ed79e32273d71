"""The house style of the figures, apart from the library that draws them: colours by role, labels, gaps and intervals.

One colour means one thing in every figure: base, tuned, edited, un-aligned and null have fixed hues of similar lightness
(contrast at least 3 on white and on near-black), with markers and dashes that tell them apart without any colour.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.results.result import show_number

NEUTRAL = "#7b828c"
GRID = "rgba(128,134,145,0.20)"
AXIS = "rgba(128,134,145,0.55)"
COLOURS = {"base": "#2f7fd1", "tuned": "#d9730d", "edited": "#9a5fc4", "un-aligned": "#119a86", "null": "#858b94"}
SYMBOLS = {"base": "circle", "tuned": "diamond", "edited": "square", "un-aligned": "triangle-up", "null": "circle-open"}
DASHES = {"base": "solid", "tuned": "solid", "edited": "dash", "un-aligned": "dashdot", "null": "dot"}
# Hues for series that are none of the five, in this order.
FURTHER = ("#c2528b", "#8f7a12", "#4aa3c9", "#b5503c", "#5d6fd6")
DIVERGING = [[0.0, "rgba(47,127,209,1)"], [0.5, "rgba(128,134,145,0.06)"], [1.0, "rgba(217,115,13,1)"]]
SEQUENTIAL = [[0.0, "rgba(47,127,209,0.04)"], [1.0, "rgba(47,127,209,1)"]]
LONG_LABEL = 14


def role_of(part: pd.DataFrame, role: str | None, label: Any) -> str | None:
    """Which of the five fixed roles some rows of a frame have: that in their column `role`, else their label where it is such a word."""
    word = str(part[role].iloc[0]) if role is not None and len(part) else ""
    return next((name for name in (word, str(label).lower()) if name in COLOURS), None)


def series(
    frame: pd.DataFrame, colour: str | None, fallback: str, role: str | None = None
) -> Iterable[tuple[str, pd.DataFrame, str, str | None]]:
    """Each part of the frame with its label, hue and role; two parts never share a hue while there are hues left."""
    if colour is None:
        yield "", frame, fallback, None
        return
    parts = {str(label): part for label, part in frame.groupby(colour, sort=False)}
    roles = {label: role_of(part, role, label) for label, part in parts.items()}
    spare = iter([*FURTHER, *COLOURS.values(), *FURTHER * 10])
    # A label that names its role exactly ("base") has the first call on the role's hue, before "base, long prompts".
    hues: dict[str, str] = {label: COLOURS[label.lower()] for label in parts if label.lower() in COLOURS}
    taken = set(hues.values())
    for label, name in roles.items():
        if label not in hues:
            own = COLOURS[name] if name else None
            hues[label] = own if own and own not in taken else next((hue for hue in spare if hue not in taken), COLOURS["null"])
            taken.add(hues[label])
    for label, part in parts.items():
        yield label, part, hues[label], roles[label]


def faint(hue: str) -> str:
    red, green, blue = (int(hue[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def categories_of(column: pd.Series, order: Sequence[str] | None) -> list[str]:
    found = list(dict.fromkeys(str(item) for item in column))
    return [*(item for item in order if item in found), *(item for item in found if item not in order)] if order else found


def text_of(value: Any) -> str:
    """Plotly reads tags in texts: a token such as `<b>` must show as itself, and `%{` must not be read as a template."""
    return html.escape(str(value), quote=False).replace("%{", "%\u200b{")


def wrap(label: str) -> list[str]:
    return textwrap.wrap(label, 26, break_long_words=False) or [label]


def label_of(value: Any) -> str:
    return "<br>".join(text_of(line) for line in wrap(str(value)))


def numbers(values: Iterable[Any]) -> list[float | None]:
    """Numbers as JSON can hold them: what is not finite is a gap."""
    return [float(value) if value is not None and math.isfinite(float(value)) else None for value in values]


def axis_values(column: pd.Series) -> list[Any]:
    return numbers(column) if pd.api.types.is_numeric_dtype(column) else [label_of(item) for item in column]


def errors(frame: pd.DataFrame, value: str, low: str | None, high: str | None) -> dict[str, Any] | None:
    if low is None or high is None:
        return None
    above, below = numbers(frame[high] - frame[value]), numbers(frame[value] - frame[low])
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.4, "width": 4, "color": NEUTRAL}


def intervals(frame: pd.DataFrame, value: str, low: str | None, high: str | None) -> list[str]:
    shown = [show_number(number, value) for number in frame[value]]
    if low is None or high is None:
        return shown
    ends = zip(shown, frame[low], frame[high], strict=True)
    return [f"{middle}  ({show_number(bottom, value)} to {show_number(top, value)})" for middle, bottom, top in ends]


def spread(xs: pd.Series, ys: pd.Series, frame: pd.DataFrame, x: str, y: str) -> list[str]:
    """Where each point's label goes: to the left of points on the right, else to the right; below where a higher neighbour is near."""
    width, height = (float(np.nanmax(frame[axis]) - np.nanmin(frame[axis])) or 1.0 for axis in (x, y))
    middle = float(np.nanmin(frame[x])) + 0.6 * width
    places = []
    for a, b in zip(xs, ys, strict=True):
        crowded = ((abs(frame[x] - a) < 0.25 * width) & (frame[y] > b) & (frame[y] - b < 0.07 * height)).any()
        places.append(f"{'bottom' if crowded else 'top'} {'left' if a > middle else 'right'}")
    return places


def pareto(frame: pd.DataFrame, x: str, y: str, front: Sequence[str]) -> pd.DataFrame:
    """The rows that no other row beats in both columns; `front` says whether "min" or "max" is better in each."""
    signs = [1.0 if way == "min" else -1.0 for way in front]
    points = frame[[x, y]].to_numpy(dtype=float) * signs
    kept = [not ((points <= point).all(axis=1) & (points < point).any(axis=1)).any() and bool(np.isfinite(point).all()) for point in points]
    return frame[np.array(kept, dtype=bool)].sort_values(x)
