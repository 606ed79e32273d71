"""One more kind of figure: where each prompt stands before and after, joined by a dotted line.

It is the scatter of `interp.figures` with lines put under its points; since figures are plain JSON, no plotly is needed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from interp import figures
from interp.figure_style import AXIS, SYMBOLS, numbers
from interp.results import Figure


def moves(
    name: str, frame: pd.DataFrame, *, item: str, side: str, x: str, y: str, colour: str, title: str, caption: str, x_title: str,
    y_title: str, order: Sequence[str] = (),
) -> Figure:  # fmt: skip
    """How does each item move in the plane from `base` to `tuned`, and what state is it in at both ends?

    Args:
        frame: two rows per `item`, whose column `side` is `base` or `tuned`; base is drawn as a circle, tuned as a diamond.
        colour: column with the state of each end; `order` is the order of the states in the legend.
    """
    ranks = {state: place for place, state in enumerate(order)}
    drawn = frame.sort_values(colour, key=lambda states: states.map(lambda state: ranks.get(state, len(ranks))), kind="stable")
    figure = figures.scatter(name, drawn, x=x, y=y, colour=colour, title=title, caption=caption, x_title=x_title, y_title=y_title,
                             hover=[item, side], size=9)  # fmt: skip
    spec = figure.spec
    for trace, (_, part) in zip(spec["data"], drawn.groupby(colour, sort=False), strict=True):
        trace["marker"]["symbol"] = [SYMBOLS[str(end)] for end in part[side]]
    ends = {end: part.set_index(item) for end, part in frame.groupby(side)}
    pairs = [(ends["base"].loc[key], ends["tuned"].loc[key]) for key in ends["base"].index]
    across, up = ([value for a, b in pairs for value in (*numbers([a[axis], b[axis]]), None)] for axis in (x, y))
    spec["data"].insert(0, {
        "type": "scatter", "mode": "lines", "x": across, "y": up, "line": {"color": AXIS, "dash": "dot", "width": 1}, "hoverinfo": "skip",
        "showlegend": False,
    })  # fmt: skip
    return figure
