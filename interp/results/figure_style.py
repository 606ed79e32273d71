"""The style of the figures, without plotly: colours by role, labels, gaps and intervals.

A colour has the same meaning in every figure: base, tuned, edited, un-aligned and null have fixed hues of similar lightness
(contrast at least 3 on white and on near-black), with markers and dashes that distinguish them without colour.
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
    """The role of some rows of a frame, or None where it is none of the five: that in their column `role`, their label without one.

    The label stands for the role also where the column is empty.
    """
    value = part[role].iloc[0] if role is not None and len(part) else None
    word = str(label).lower() if value is None or pd.isna(value) or value == "" else str(value)
    return word if word in COLOURS else None


def series(
    frame: pd.DataFrame, colour: str | None, fallback: str, role: str | None = None
) -> Iterable[tuple[str, pd.DataFrame, str, str | None]]:
    """Each part of the frame with its label, hue and role; no two parts share a hue while unused ones are left."""
    if colour is None:
        yield "", frame, fallback, None
        return
    parts = {str(label): part for label, part in frame.groupby(colour, sort=False)}
    roles = {label: role_of(part, role, label) for label, part in parts.items()}
    spare = iter([*FURTHER, *COLOURS.values(), *FURTHER * 10])
    # Of the series of one role, that whose label is the role itself ("base", not "base, long prompts") gets the role's hue.
    hues: dict[str, str] = {label: COLOURS[name] for label, name in roles.items() if name is not None and label.lower() == name}
    used = set(hues.values())
    for label, name in roles.items():
        if label not in hues:
            role_hue = COLOURS[name] if name else None
            hues[label] = (
                role_hue if role_hue and role_hue not in used else next((hue for hue in spare if hue not in used), COLOURS["null"])
            )
            used.add(hues[label])
    for label, part in parts.items():
        yield label, part, hues[label], roles[label]


def faint(hue: str) -> str:
    """The hue, almost transparent, for bands."""
    red, green, blue = (int(hue[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def categories_of(column: pd.Series, order: Sequence[str] | None) -> list[str]:
    """The distinct values of a column as texts: those in `order` first, the others as they come."""
    categories = list(dict.fromkeys(str(item) for item in column))
    return [*(item for item in order if item in categories), *(item for item in categories if item not in order)] if order else categories


def text_of(value: Any) -> str:
    """The text, escaped for plotly, which would read `<b>` as a tag and `%{` as a template."""
    return html.escape(str(value), quote=False).replace("%{", "%\u200b{")


def wrap(label: str) -> list[str]:
    """The lines of a label, each of at most 26 characters where words allow."""
    return textwrap.wrap(label, 26, break_long_words=False) or [label]


def label_of(value: Any) -> str:
    """A value as an escaped label in lines."""
    return "<br>".join(text_of(line) for line in wrap(str(value)))


def numbers(values: Iterable[Any]) -> list[float | None]:
    """The numbers as JSON; one that is not finite is None, which plotly draws as a gap."""
    return [float(value) if value is not None and math.isfinite(float(value)) else None for value in values]


def axis_values(column: pd.Series) -> list[Any]:
    """The values of a column along an axis: numbers, or labels."""
    return numbers(column) if pd.api.types.is_numeric_dtype(column) else [label_of(item) for item in column]


def errors(frame: pd.DataFrame, value: str, low: str | None, high: str | None) -> dict[str, Any] | None:
    """Plotly's error bars from the columns `low` to `high`, or None without them."""
    if low is None or high is None:
        return None
    above, below = numbers(frame[high] - frame[value]), numbers(frame[value] - frame[low])
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.4, "width": 4, "color": NEUTRAL}


def intervals(frame: pd.DataFrame, value: str, low: str | None, high: str | None) -> list[str]:
    """The values of a column as texts, with their intervals where there are columns `low` and `high`."""
    values = [show_number(number, value) for number in frame[value]]
    if low is None or high is None:
        return values
    ends = zip(values, frame[low], frame[high], strict=True)
    return [f"{middle}  ({show_number(bottom, value)} to {show_number(top, value)})" for middle, bottom, top in ends]


def text_positions(xs: pd.Series, ys: pd.Series, frame: pd.DataFrame, x: str, y: str) -> list[str]:
    """The position of each point's label: left of points on the right, else right; below where a higher neighbour is near."""
    width, height = (float(np.nanmax(frame[axis]) - np.nanmin(frame[axis])) or 1.0 for axis in (x, y))
    middle = float(np.nanmin(frame[x])) + 0.6 * width
    places = []
    for a, b in zip(xs, ys, strict=True):
        crowded = ((abs(frame[x] - a) < 0.25 * width) & (frame[y] > b) & (frame[y] - b < 0.07 * height)).any()
        places.append(f"{'bottom' if crowded else 'top'} {'left' if a > middle else 'right'}")
    return places


def pareto(frame: pd.DataFrame, x: str, y: str, front: Sequence[str]) -> pd.DataFrame:
    """The rows on the Pareto front of two columns; `front` says whether "min" or "max" is better in each."""
    signs = [1.0 if better == "min" else -1.0 for better in front]
    points = frame[[x, y]].to_numpy(dtype=float) * signs
    on_front = [
        not ((points <= point).all(axis=1) & (points < point).any(axis=1)).any() and bool(np.isfinite(point).all()) for point in points
    ]
    return frame[np.array(on_front, dtype=bool)].sort_values(x)
