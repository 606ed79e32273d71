"""The kinds of plotly figure, in one style; plotly is imported in this file only.

A figure is made from a tidy frame and returned as plain JSON (`interp.results.result.Figure`), so that results can be saved,
cached and drawn anywhere. Backgrounds are transparent and greys neutral, so that a figure is legible on a light and on a dark
page; a page only has to set `layout.font.color` to suit its theme. Colours and labels come from `interp.results.figure_style`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.results.figure_layout import BELOW, BESIDE, ENTRY, LINE, NOTE, break_lines, text_layout, width_below
from interp.results.figure_style import (
    AXIS,
    COLOURS,
    DASHES,
    DIVERGING,
    FURTHER,
    GRID,
    LONG_LABEL,
    NEUTRAL,
    SEQUENTIAL,
    SYMBOLS,
    axis_values,
    categories_of,
    errors,
    faint,
    intervals,
    label_of,
    numbers,
    pareto,
    role_of,
    series,
    text_of,
    text_positions,
    wrap,
)
from interp.results.result import Figure, Real, is_number, show_number

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif", "size": 13, "color": NEUTRAL},
        "title": {"x": 0, "xanchor": "left", "xref": "container", "font": {"size": 15}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": [*COLOURS.values(), *FURTHER],
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
        "margin": {"l": 64, "r": 24, "t": 84, "b": 56},
        "hoverlabel": {"align": "left", "namelength": -1},
        "bargap": 0.28,
        "bargroupgap": 0.08,
        **{
            axis: {
                "gridcolor": GRID, "zerolinecolor": AXIS, "linecolor": AXIS, "tickcolor": "rgba(0,0,0,0)", "automargin": True,
                "zeroline": False, "title": {"standoff": 10}, "ticks": "outside", "ticklen": 5, "showline": axis == "xaxis",
            }
            for axis in ("xaxis", "yaxis")
        },
    }
)  # fmt: skip


def bars(
    name: str, frame: pd.DataFrame, *, x: str, y: str, title: str, caption: str, colour: str | None = None, role: str | None = None,
    low: str | None = None,
    high: str | None = None, x_title: str | None = None, y_title: str | None = None, horizontal: bool | None = None,
    order: Sequence[str] | None = None, reference: tuple[Real, str] | None = None, log: bool = False,
) -> Figure:  # fmt: skip
    """A bar chart of `y` by category `x`, and by `colour`.

    Args:
        x: column of categories, shown in `order` or in the order of the frame.
        y: column of numbers, with error bars from the columns `low` to `high` (absolute ends, not differences).
        colour: column that splits the bars; without it each bar takes the colour of its role.
        role: column with the role of each row (`base`, `tuned`, `edited`, `un-aligned`, `null`), if any; not needed where the
            label is such a word.
        horizontal: draw horizontal bars; by default where labels are long. `x_title` is the title of the categories in both cases.
        reference: a value and its label, drawn as a dotted line across the bars.
    """
    categories = categories_of(frame[x], order)
    flat = any(len(label) > LONG_LABEL for label in categories) or len(categories) > 12 if horizontal is None else horizontal
    figure = go.Figure()
    for label, part, hue, _ in series(frame, colour, COLOURS["base"], role):
        labels, values = [label_of(item) for item in part[x]], numbers(part[y])
        kinds = [role_of(part.iloc[[place]], role, item) for place, item in enumerate(part[x])]
        fill = [COLOURS[one or "base"] for one in kinds] if colour is None else hue
        error = errors(part, y, low, high)
        figure.add_bar(
            x=values if flat else labels, y=labels if flat else values, orientation="h" if flat else "v", name=break_lines(label, ENTRY),
            showlegend=colour is not None, marker={"color": fill, "line": {"width": 0}}, **{"error_x" if flat else "error_y": error},
            customdata=[[text_of(value)] for value in intervals(part, y, low, high)],
            hovertemplate=f"%{{{'y' if flat else 'x'}}}<br><b>%{{customdata[0]}}</b><extra>{text_of(label)}</extra>",
        )  # fmt: skip
    value_axis, category_axis = ("xaxis", "yaxis") if flat else ("yaxis", "xaxis")
    value_title, category_title = y_title or y, x_title if x_title is not None else x
    figure.update_layout(**{
        value_axis: {
            "title": {"text": break_lines(value_title, width_below([label_of(item) for item in categories]) if flat else BESIDE)},
            "type": "log" if log else "linear", "showgrid": True, "zeroline": not log,
        },
        category_axis: {
            "title": {"text": break_lines(category_title, BESIDE if flat else BELOW)}, "type": "category", "showgrid": False,
            "categoryorder": "array", "categoryarray": [label_of(item) for item in categories],
        },
    })  # fmt: skip
    groups = 1 if colour is None else frame[colour].nunique()
    if flat:
        figure.update_yaxes(autorange="reversed")
    _reference(figure, reference, vertical=flat)
    height = 150 + sum(max(17 * len(wrap(item)) + 8, 15 * groups + 14) for item in categories) if flat else 380
    return _finish(figure, name, title, caption, height=height, legend=colour is not None)


def lines(
    name: str, frame: pd.DataFrame, *, x: str, y: str, title: str, caption: str, colour: str | None = None, role: str | None = None,
    low: str | None = None,
    high: str | None = None, x_title: str | None = None, y_title: str | None = None,
    shaded: Sequence[tuple[Real, Real, str]] = (), reference: tuple[Real, str] | None = None, log_x: bool = False, log_y: bool = False,
    markers: bool | None = None, x_ticks: Mapping[float, str] | None = None,
) -> Figure:  # fmt: skip
    """A line chart of `y` over `x`, one line per `colour`, with a band from `low` to `high` and shaded ranges of `x`.

    `x_ticks` are the places that are named on the axis of `x`, with their names, where others would say nothing.
    """
    figure = go.Figure()
    with_markers = len(frame) <= 80 if markers is None else markers
    for label, part, hue, kind in series(frame, colour, COLOURS["base"], role):
        part = part.sort_values(x, kind="stable") if pd.api.types.is_numeric_dtype(part[x]) else part
        positions = axis_values(part[x])
        if low is not None and high is not None:
            figure.add_scatter(
                x=positions + positions[::-1], y=numbers(part[high]) + numbers(part[low])[::-1], fill="toself", mode="lines",
                fillcolor=faint(hue), line={"width": 0}, hoverinfo="skip", showlegend=False, legendgroup=text_of(label),
            )  # fmt: skip
        figure.add_scatter(
            x=positions, y=numbers(part[y]), mode="lines+markers" if with_markers else "lines", name=break_lines(label, ENTRY),
            legendgroup=text_of(label), line={"color": hue, "width": 2.25, "dash": DASHES.get(kind or "", "solid")},
            marker={"size": 6, "symbol": SYMBOLS.get(kind or "", "circle"), "color": hue}, showlegend=colour is not None,
            customdata=[[text_of(value)] for value in intervals(part, y, low, high)],
            hovertemplate=f"{text_of(x_title or x)} %{{x}}<br><b>%{{customdata[0]}}</b><extra>{text_of(label)}</extra>",
        )  # fmt: skip
    seen: set[str] = set()
    for start, end, label in shaded:
        figure.add_vrect(
            x0=start, x1=end, fillcolor="rgba(128,134,145,0.13)", line_width=0, layer="below",
            annotation_text="" if label in seen else text_of(label), annotation_font={"size": 11}, annotation_position="top left",
        )  # fmt: skip
        seen.add(label)
    figure.update_xaxes(title={"text": break_lines(x_title or x, BELOW)}, type="log" if log_x else None, showgrid=False)
    if x_ticks is not None:
        figure.update_xaxes(tickvals=list(x_ticks), ticktext=list(x_ticks.values()))
    figure.update_yaxes(title={"text": break_lines(y_title or y, BESIDE)}, type="log" if log_y else None)
    _reference(figure, reference, vertical=False)
    return _finish(figure, name, title, caption, height=400, legend=colour is not None)


def histogram(
    name: str, frame: pd.DataFrame, *, x: str, title: str, caption: str, colour: str | None = None, role: str | None = None,
    bins: int = 40,
    x_title: str | None = None, y_title: str | None = None, marks: Sequence[tuple[Real, str]] = (), density: bool = False,
) -> Figure:  # fmt: skip
    """A histogram of `x`, one per `colour`, with a line at each marked value (an observed statistic, for example)."""
    figure = go.Figure()
    finite = frame[np.isfinite(frame[x].to_numpy(dtype=float))]
    spots = [value for value, _ in marks if math.isfinite(value)]
    edges = np.histogram_bin_edges([*finite[x].to_numpy(dtype=float), *spots], bins=bins) if len(finite) else np.array([0.0, 1.0])
    for label, part, hue, _ in series(finite, colour, COLOURS["null"], role):
        counts, _ = np.histogram(part[x].to_numpy(dtype=float), bins=edges)
        heights = counts / max(1, counts.sum()) if density else counts
        figure.add_bar(
            x=((edges[:-1] + edges[1:]) / 2).tolist(), y=heights.tolist(), width=np.diff(edges).tolist(), name=break_lines(label, ENTRY),
            opacity=0.72, marker={"color": hue, "line": {"width": 0}}, showlegend=colour is not None,
            customdata=[[show_number(a), show_number(b)] for a, b in pairwise(edges)],
            hovertemplate=f"%{{customdata[0]}} to %{{customdata[1]}}<br><b>%{{y:.4~g}}</b><extra>{text_of(label)}</extra>",
        )  # fmt: skip
    middle = float(edges[0] + edges[-1]) / 2
    above = 0
    for value, label in marks:
        note = break_lines(f"{label} {show_number(value)}", NOTE)
        figure.add_vline(x=value, line={"color": COLOURS["tuned"], "width": 2})
        figure.add_annotation(
            x=value, y=1 - 0.07 * above, yref="paper", yanchor="top", text=note, showarrow=False, font={"size": 12},
            align="right" if value > middle else "left",
            xanchor="right" if value > middle else "left", xshift=-6 if value > middle else 6,
        )  # fmt: skip
        above += 1 + note.count("<br>")
    figure.update_xaxes(title={"text": break_lines(x_title or x, BELOW)}, showgrid=False)
    figure.update_yaxes(title={"text": break_lines(y_title or ("share" if density else "count"), BESIDE)})
    figure.update_layout(barmode="overlay", bargap=0)
    return _finish(figure, name, title, caption, height=380, legend=colour is not None)


def scatter(
    name: str, frame: pd.DataFrame, *, x: str, y: str, title: str, caption: str, colour: str | None = None, role: str | None = None,
    text: str | None = None,
    x_low: str | None = None, x_high: str | None = None, low: str | None = None, high: str | None = None, x_title: str | None = None,
    y_title: str | None = None, hover: Sequence[str] = (), log_x: bool = False, log_y: bool = False, diagonal: bool = False,
    front: Sequence[str] = (), size: Real = 10,
) -> Figure:  # fmt: skip
    """A scatter plot of `y` against `x`, one point per row.

    Args:
        text: column of labels, written beside the points (for few points).
        hover: further columns to show under the pointer.
        diagonal: draw the line on which `x` equals `y`.
        front: what is better in `x` and in `y`, such as `("min", "min")`: draws a line through the Pareto front.
    """
    figure = go.Figure()
    few, written = len(frame) <= 200, text is not None and len(frame) <= 30
    for label, part, hue, kind in series(frame, colour, COLOURS["base"], role):
        details = [[text_of(show_number(cell, column) if is_number(cell) else cell) for column, cell in zip(hover, row, strict=True)]
                   for row in part[list(hover)].itertuples(index=False, name=None)]  # fmt: skip
        labels = [text_of(item) for item in part[text]] if text else None
        lead = "<b>%{text}</b><br>" if text else ""
        extra = "".join(f"<br>{text_of(column)} %{{customdata[{position}]}}" for position, column in enumerate(hover))
        figure.add_scatter(
            x=numbers(part[x]), y=numbers(part[y]), mode="markers+text" if written else "markers", text=labels,
            textposition=text_positions(part[x], part[y], frame, x, y) if written else None, textfont={"size": 11},
            name=break_lines(label, ENTRY),
            showlegend=colour not in (None, text),
            cliponaxis=False, error_x=errors(part, x, x_low, x_high), error_y=errors(part, y, low, high), customdata=details or None,
            marker={"color": hue, "size": size if few else max(4.0, size / 2), "opacity": 0.95 if few else 0.6,
                    "symbol": SYMBOLS.get(kind or "", "circle"), "line": {"width": 1.5 if kind == "null" else 0}},
            hovertemplate=f"{lead}{text_of(x_title or x)} %{{x:.3~g}}<br>{text_of(y_title or y)} %{{y:.3~g}}{extra}"
            f"<extra>{text_of(label)}</extra>",
        )  # fmt: skip
    if diagonal and len(frame):
        both = np.concatenate([frame[x].to_numpy(dtype=float), frame[y].to_numpy(dtype=float)])
        ends = [float(np.nanmin(both)), float(np.nanmax(both))]
        dotted = {"color": AXIS, "dash": "dot", "width": 1.5}
        figure.add_scatter(x=ends, y=ends, mode="lines", line=dotted, showlegend=False, hoverinfo="skip")
    if front:
        best = pareto(frame, x, y, front)
        figure.add_scatter(x=numbers(best[x]), y=numbers(best[y]), mode="lines", line={"color": AXIS, "width": 1.5, "shape": "hv"},
                           name="no other is better in both", hoverinfo="skip")  # fmt: skip
    figure.update_xaxes(title={"text": break_lines(x_title or x, BELOW)}, type="log" if log_x else None)
    figure.update_yaxes(title={"text": break_lines(y_title or y, BESIDE)}, type="log" if log_y else None)
    figure.update_layout(legend={} if few else {"itemsizing": "constant"})
    return _finish(figure, name, title, caption, height=440, legend=(colour is not None and colour != text) or bool(front))


def heatmap(
    name: str, frame: pd.DataFrame, *, x: str, y: str, z: str, title: str, caption: str, x_title: str | None = None,
    y_title: str | None = None, z_title: str | None = None, centre: Real | None = None, text: str | None = None,
) -> Figure:  # fmt: skip
    """A heat map of `z` over `x` and `y`, one row of the frame per cell. With `centre`, colours diverge from that value."""
    columns, rows = categories_of(frame[x], None), categories_of(frame[y], None)
    unique = frame.assign(_x=frame[x].astype(str), _y=frame[y].astype(str)).drop_duplicates(["_x", "_y"])
    grid = unique.pivot(index="_y", columns="_x", values=z).reindex(index=rows, columns=columns)
    words = unique.pivot(index="_y", columns="_x", values=text).reindex(index=rows, columns=columns) if text else None
    values = grid.to_numpy(dtype=float)
    reach = float(np.nanmax(np.abs(values - centre))) if centre is not None and np.isfinite(values).any() else None
    few = values.size <= 120
    # The same sign as `show_number` has for a missing number.
    cells = words.fillna("–").to_numpy() if words is not None else [[show_number(value, z) for value in line] for line in values]
    texts = [[text_of(cell) for cell in row] for row in cells]
    figure = go.Figure(go.Heatmap(
        x=[label_of(item) for item in columns], y=[label_of(item) for item in rows], z=[numbers(row) for row in values], text=texts,
        texttemplate="%{text}" if few else None, textfont={"size": 11}, colorscale=SEQUENTIAL if centre is None else DIVERGING,
        zmin=None if reach is None or centre is None else centre - reach, zmax=None if reach is None or centre is None else centre + reach,
        xgap=1, ygap=1, hoverongaps=False,
        colorbar={"title": {"text": break_lines(z_title or z, BESIDE), "side": "right"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate=f"{text_of(x_title or x)} %{{x}}<br>{text_of(y_title or y)} %{{y}}<br><b>%{{text}}</b><extra></extra>",
    ))  # fmt: skip
    x_text = break_lines(x_title or x, width_below([label_of(item) for item in rows]))
    figure.update_xaxes(title={"text": x_text}, type="category", showgrid=False, showline=False)
    figure.update_yaxes(title={"text": break_lines(y_title or y, BESIDE)}, type="category", showgrid=False, autorange="reversed")
    return _finish(figure, name, title, caption, height=max(320, 150 + 26 * len(rows)), legend=False)


def dumbbell(
    name: str, frame: pd.DataFrame, *, row: str, base: str, tuned: str, title: str, caption: str, x_title: str, y_title: str | None = None,
    labels: tuple[str, str] = ("base", "tuned"), log: bool = False,
) -> Figure:  # fmt: skip
    """A dumbbell chart: for each row a line from its value in column `base` to its value in column `tuned`."""
    rows = [label_of(item) for item in frame[row]]
    starts, ends = numbers(frame[base]), numbers(frame[tuned])
    figure = go.Figure()
    joined = zip(rows, starts, ends, strict=True)
    spans = [(label, start, end) for label, start, end in joined if start is not None and end is not None]
    figure.add_scatter(
        x=[value for _, start, end in spans for value in (start, end, None)],
        y=[value for label, _, _ in spans for value in (label, label, None)],
        mode="lines", line={"color": AXIS, "width": 3}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    for label, values, kind in zip(labels, (starts, ends), ("base", "tuned"), strict=True):
        figure.add_scatter(
            x=values, y=rows, mode="markers", name=break_lines(label, ENTRY),
            marker={"size": 11, "color": COLOURS[kind], "symbol": SYMBOLS[kind]},
            customdata=[[show_number(value)] for value in values],
            hovertemplate=f"%{{y}}<br><b>%{{customdata[0]}}</b><extra>{text_of(label)}</extra>",
        )  # fmt: skip
    figure.update_xaxes(title={"text": break_lines(x_title, width_below(rows))}, type="log" if log else None)
    figure.update_yaxes(
        title={"text": break_lines(row if y_title is None else y_title, BESIDE)}, type="category", autorange="reversed",
        categoryorder="array", categoryarray=[label_of(item) for item in categories_of(frame[row], None)], showgrid=False,
    )  # fmt: skip
    height = 150 + sum(max(28, 17 * len(wrap(str(item))) + 8) for item in frame[row].unique())
    return _finish(figure, name, title, caption, height=height, legend=True)


def _finish(figure: go.Figure, name: str, title: str, caption: str, *, height: Real, legend: bool) -> Figure:
    entries = [str(trace.name) for trace in figure.data if trace.showlegend is not False and trace.name] if legend else []
    placed = text_layout(title, entries, int(height) + LINE * str(figure.layout.xaxis.title.text).count("<br>"))
    figure.update_layout(
        template=TEMPLATE, title={"text": placed.title, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 14}},
        height=placed.height, showlegend=legend, margin={"t": placed.top}, legend=placed.legend,
    )  # fmt: skip
    return Figure(name, caption, json.loads(figure.to_json()))


def _reference(figure: go.Figure, reference: tuple[Real, str] | None, *, vertical: bool) -> None:
    if reference is None:
        return
    value, label = reference
    line = {"color": NEUTRAL, "dash": "dot", "width": 1.5}
    note: Mapping[str, Any] = {"annotation_text": text_of(label), "annotation_font": {"size": 11}, "line": line}
    if vertical:
        figure.add_vline(x=value, annotation_position="top", **note)
    else:
        figure.add_hline(y=value, annotation_position="top right", **note)


def page(title: str, sequence: Sequence[Figure]) -> str:
    """A self-contained HTML page with each figure above its caption; it includes plotly's script."""
    style = "font-family: system-ui; max-width: 70em; margin: 2em auto"
    parts = [f'<!doctype html><meta charset="utf-8"><title>{text_of(title)}</title><body style="{style}">']
    for number, figure in enumerate(sequence):
        parts.append(go.Figure(figure.spec).to_html(full_html=False, include_plotlyjs=number == 0))
        parts.append(f"<p>{text_of(figure.caption)}</p>")
    return "\n".join([*parts, "</body>"])


def moves(
    name: str, frame: pd.DataFrame, *, item: str, side: str, x: str, y: str, colour: str, title: str, caption: str, x_title: str,
    y_title: str, order: Sequence[str] = (),
) -> Figure:  # fmt: skip
    """A scatter plot with two points per item, base and tuned, joined by a line; colours show the state of each end.

    Args:
        frame: two rows per `item`, whose column `side` is `base` or `tuned`; base is drawn as a circle, tuned as a diamond.
        colour: column with the state of each end; `order` is the order of the states in the legend.
    """
    ranks = {state: place for place, state in enumerate(order)}
    drawn = frame.sort_values(colour, key=lambda states: states.map(lambda state: ranks.get(state, len(ranks))), kind="stable")
    figure = scatter(name, drawn, x=x, y=y, colour=colour, title=title, caption=caption, x_title=x_title, y_title=y_title,
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
