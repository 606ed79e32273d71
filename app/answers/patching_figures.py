"""The figures of the page Patching: the map, the layers, and the next tokens.

Plotly cannot select the cells of a heat map, so invisible markers lie over them. The numbers are a trace of their own, because the
text of a heat map has one colour on every ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from app import show
from app.answers.patching import Measured, ends, phrase
from app.answers.patching_cells import NextTokens, number_of
from interp.patching.maps import Cell, PatchMap
from interp.results import figures
from interp.results.result import Figure, show_number

# The most columns of a map whose cells have room for a number.
WRITTEN = 14
Spots = Sequence[tuple[str, str]]


def heat(cells: PatchMap, direction: str, chosen: Cell | None = None, words: bool = False, dark: bool = False) -> Figure:
    """The map of one direction, with a marker on every cell that can be clicked, a frame around the chosen one, and a cross where
    a random change of equal size does as much; for single neurons bars, which are clicked themselves."""
    roles, figure = ends(direction), cells.figure(direction, masked=not words)
    guess = cells.method != "patching"
    title = f"{cells.site}: {roles.source} into {roles.target}" + (f", estimated by {cells.method}" if guess else "")
    layout = figure.spec["layout"]
    layout = layout | {"title": layout["title"] | {"text": title}, "hovermode": "closest"}
    data, caption = figure.spec["data"], figure.caption
    if data[0]["type"] == "heatmap":
        # -1: the nearest marker is hovered over, however wide its cell. For bars that would always be the last one.
        layout |= {"hoverdistance": -1, "height": 130 + 34 * len(data[0]["y"]), "margin": layout["margin"] | {"r": 8}}
        data = [data[0] | {"texttemplate": "", "colorbar": {"thickness": 10, "outlinewidth": 0}}]
        data += _over(cells, direction, figure.spec["data"][0], chosen, dark)
        caption += " Orange raises it, blue lowers it"
        if cells.null is not None:
            caption += "; a cross marks places where the random change does as much."
        else:
            caption += "." if guess else ". No random changes were measured beside it, which would each take a continuation."
    if guess:
        caption = "An estimate from one gradient, not a measurement. " + caption
    return replace(figure, spec={"data": data, "layout": layout}, caption=caption)


def _over(cells: PatchMap, direction: str, drawn: dict[str, Any], chosen: Cell | None, dark: bool) -> list[dict[str, Any]]:
    """The traces over the map; first the invisible markers that are clicked, one per cell and in the order of the cells."""
    at = cells.directions.index(direction)
    effects, null = cells.effects[at].mean(dim=0).tolist(), cells.null_most
    most = max(abs(effect) for effect in effects)
    spots = [(drawn["x"][_column(cells, cell)], drawn["y"][cell.layer]) for cell in cells.cells]
    hovers = [f"layer {layer}, {x}<br><b>{show_number(effect)}</b>" for (x, layer), effect in zip(spots, effects, strict=True)]
    if null is not None:
        hovers = [f"{text}<br>random change: up to {show_number(value)}" for text, value in zip(hovers, null[at].tolist(), strict=True)]
    traces = [_marks(spots, {"symbol": "square", "size": 26, "opacity": 0}, hovers)]
    weak = [null is not None and abs(effect) <= float(null[at, place]) for place, effect in enumerate(effects)]
    if len(drawn["x"]) <= WRITTEN:
        loud = [most > 0 and abs(effect) >= most / 2 for effect in effects]
        for strong, ink in ((True, "#ffffff" if dark else "#000000"), (False, None)):
            at_ink = [place for place in range(len(spots)) if loud[place] == strong and not weak[place]]
            traces.append(_numbers([spots[place] for place in at_ink], [effects[place] for place in at_ink], 1 if most >= 10 else 2, ink))
    cross = {"symbol": "x-thin", "size": 9, "line": {"width": 1, "color": show.colour("null")}}
    traces.append(_marks([spot for spot, faint in zip(spots, weak, strict=True) if faint], cross))
    if chosen is not None:
        frame = {"symbol": "square-open", "size": 26, "color": show.colour("edited"), "line": {"width": 3}}
        traces.append(_marks([spots[number_of(cells, chosen)]], frame))
    return traces


def _numbers(spots: Spots, effects: Sequence[float], digits: int, ink: str | None) -> dict[str, Any]:
    """Effects as text on their cells, in the page's text colour unless `ink` is given."""
    return {
        "type": "scatter", "mode": "text", "x": [x for x, _ in spots], "y": [y for _, y in spots], "hoverinfo": "skip",
        "text": [f"{effect:.{digits}f}".replace("-", "−") for effect in effects], "showlegend": False,
        "textfont": {"size": 10} | ({} if ink is None else {"color": ink}),
    }  # fmt: skip


def _column(cells: PatchMap, cell: Cell) -> int:
    return cell.unit if cell.position is None and cell.unit is not None else cell.position or 0


def _marks(spots: Spots, marker: dict[str, Any], texts: Sequence[str] | None = None) -> dict[str, Any]:
    """Markers over cells; those with texts can be hovered over and clicked."""
    still = {"marker": {"opacity": marker.get("opacity", 1)}}
    hover: dict[str, Any] = {"hoverinfo": "skip"} if texts is None else {"text": list(texts), "hovertemplate": "%{text}<extra></extra>"}
    return {
        "type": "scatter", "mode": "markers", "x": [x for x, _ in spots], "y": [y for _, y in spots], "marker": marker,
        "selected": still, "unselected": still, "showlegend": False, "cliponaxis": False, **hover,
    }  # fmt: skip


def by_layer(measured: Measured, direction: str) -> Figure:
    """The effect of each layer: all tokens at once, its strongest cell alone, and random changes."""
    cells, whole, roles = measured.cells, measured.whole, ends(direction)
    at = cells.directions.index(direction)
    one = {"head": "strongest head", "neuron": "strongest of these neurons"}.get(cells.unit or "", "strongest token")
    all_of = f"{roles.source}: whole layer" + (f" ({whole.site})" if whole.site != cells.site else "")
    rows = []
    single = cells.effects[at].mean(dim=0).tolist()
    for place, cell in enumerate(whole.cells):
        value = float(whole.effects[at, :, place].mean())
        in_layer = [effect for effect, other in zip(single, cells.cells, strict=True) if other.layer == cell.layer]
        rows.append({"layer": cell.layer, "run": all_of, "role": roles.source, "effect": value, "low": value, "high": value})
        if in_layer:
            best = max(in_layer, key=abs)
            rows.append({"layer": cell.layer, "run": one, "role": "", "effect": best, "low": best, "high": best})
        if whole.null_most is not None:
            most = float(whole.null_most[at, place])
            rows.append(
                {"layer": cell.layer, "run": "random change of the whole layer", "role": "null", "effect": 0.0, "low": -most, "high": most}
            )
    frame = pd.DataFrame(rows).sort_values("run", key=lambda column: column.map({all_of: 0, one: 1}).fillna(2), kind="stable")
    gap = float((whole.source[at] - whole.target[at]).mean())
    figure = figures.lines(
        "by-layer", frame, x="layer", y="effect", colour="run", role="role", low="low", high="high",
        x_title="layer", title=f"{whole.site}: what each layer carries",
        y_title=f"effect on {cells.metric}", reference=(gap, "whole difference"),
        caption=f"Where the line of the whole layer meets the dotted one, patching that layer alone gives {phrase(roles.target)} "
        f"the answer of {phrase(roles.source)}, as far as this metric sees. The band is what random changes of equal norm do.",
    )  # fmt: skip
    ticks = {"tickmode": "linear", "tick0": 0, "dtick": 1 if len(whole.cells) <= 16 else 4}
    layout = figure.spec["layout"]
    return replace(figure, spec=figure.spec | {"layout": layout | {"xaxis": layout["xaxis"] | ticks}})


def next_figure(tokens: NextTokens, direction: str, words: bool) -> Figure:
    """The likeliest next tokens of the three runs, side by side."""
    roles = ends(direction)
    labels = _distinct([show.visible(token, words) for token in tokens.likeliest["token"]])
    names = {"before": roles.target, "patched": "patched", "source": roles.source}
    frame = pd.concat(
        [
            pd.DataFrame(
                {"token": labels, "probability": tokens.likeliest[column], "run": name, "role": "edited" if column == "patched" else name}
            )
            for column, name in names.items()
        ]
    )
    return figures.bars(
        "next-tokens", frame, x="token", y="probability", colour="run", role="role", title="The next token", x_title="", horizontal=True,
        caption="The likeliest next tokens of the three runs. A patch that carries the difference brings its bars to those of the source.",
    )  # fmt: skip


def change_table(tokens: NextTokens, direction: str, words: bool) -> pd.DataFrame:
    """The tokens whose probabilities changed most: probabilities in per cent, the change in points."""
    roles, frame = ends(direction), tokens.changed
    return pd.DataFrame(
        {
            "token": [show.visible(token, words) for token in frame["token"]],
            **{
                name: [f"{value:.2%}" for value in frame[column]]
                for name, column in ((roles.target, "before"), ("patched", "patched"), (roles.source, "source"))
            },
            "change (points)": [f"{100 * value:+.2f}" for value in frame["change"]],
        }
    )


def _distinct(labels: list[str]) -> list[str]:
    """The labels with numbers added where masked tokens look alike, because an axis needs a name for each."""
    seen: dict[str, int] = {}
    names = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        names.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return names
