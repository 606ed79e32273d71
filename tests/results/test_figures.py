"""Figures say what they show: titles on every axis, fixed colours, exact numbers, and no text that plotly could misread."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from interp.results import figure_layout, figures
from interp.results.figure_style import COLOURS, FURTHER
from interp.results.result import Figure

TOXICITY = pd.DataFrame({
    "side": ["base", "tuned", "random keys"], "group": ["a", "b", "b"], "toxicity": [0.45, 0.2, 0.21], "low": [0.4, 0.18, 0.2],
    "high": [0.5, 0.25, 0.22], "perplexity": [21.0, 23.0, 23.5], "layer": [0, 1, 2],
})  # fmt: skip
SAY = {"title": "T", "caption": "Look here."}
MADE: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "bars": lambda f: figures.bars("n", f, x="side", y="toxicity", low="low", high="high", reference=(0.3, "r"), **SAY),
    "grouped": lambda f: figures.bars("n", f, x="group", y="toxicity", colour="side", **SAY),
    "lines": lambda f: figures.lines("n", f, x="layer", y="toxicity", colour="side", low="low", high="high", shaded=[(0, 1, "MLP")], **SAY),
    "histogram": lambda f: figures.histogram("n", f, x="toxicity", marks=[(0.9, "observed")], **SAY),
    "scatter": lambda f: figures.scatter("n", f, x="perplexity", y="toxicity", colour="side", text="side", low="low", high="high",
                                          front=("min", "min"), diagonal=True, hover=["layer"], **SAY),
    "heatmap": lambda f: figures.heatmap("n", f, x="side", y="group", z="toxicity", centre=0.0, **SAY),
    "dumbbell": lambda f: figures.dumbbell("n", f, row="side", base="low", tuned="high", x_title="toxicity", **SAY),
}  # fmt: skip


@pytest.mark.parametrize("kind", MADE)
def test_every_figure_has_title_caption_and_axis_titles_and_plotly_accepts_it(kind: str) -> None:
    figure = MADE[kind](TOXICITY)
    layout = figure.spec["layout"]
    assert (figure.name, figure.caption, layout["title"]["text"]) == ("n", "Look here.", "T")
    assert layout["xaxis"]["title"]["text"]
    assert layout["yaxis"]["title"]["text"]
    assert layout["template"]["layout"]["paper_bgcolor"] == "rgba(0,0,0,0)"
    assert "bdata" not in json.dumps(figure.spec, allow_nan=False)
    go.Figure(figure.spec)


@pytest.mark.parametrize("kind", MADE)
def test_every_figure_is_drawn_where_numbers_are_missing(kind: str) -> None:
    frame = TOXICITY.assign(toxicity=[np.nan, 0.2, np.inf], low=[np.nan, 0.1, np.nan])
    go.Figure(MADE[kind](frame).spec)


@pytest.mark.parametrize("kind", MADE)
def test_every_figure_is_drawn_from_an_empty_frame(kind: str) -> None:
    go.Figure(MADE[kind](TOXICITY[:0]).spec)


def test_error_bars_reach_exactly_from_low_to_high() -> None:
    (trace,) = MADE["bars"](TOXICITY).spec["data"]
    assert np.allclose(np.array(trace["y"]) + trace["error_y"]["array"], TOXICITY["high"])
    assert np.allclose(np.array(trace["y"]) - trace["error_y"]["arrayminus"], TOXICITY["low"])


def test_categories_keep_their_order_and_take_the_order_asked_for() -> None:
    assert MADE["bars"](TOXICITY).spec["layout"]["xaxis"]["categoryarray"] == ["base", "tuned", "random keys"]
    other = figures.bars("n", TOXICITY, x="side", y="toxicity", order=["tuned", "absent"], **SAY)
    assert other.spec["layout"]["xaxis"]["categoryarray"] == ["tuned", "base", "random keys"]


def test_long_labels_lie_flat_from_top_to_bottom() -> None:
    frame = TOXICITY.assign(side=["base", "tuned", "seven random keys of the same layers, scaled by ten"])
    spec = figures.bars("n", frame, x="side", y="toxicity", y_title="mean toxicity", **SAY).spec
    assert spec["data"][0]["orientation"] == "h"
    assert spec["layout"]["xaxis"]["title"]["text"] == "mean toxicity"
    assert spec["layout"]["yaxis"]["autorange"] == "reversed"
    assert spec["data"][0]["y"][2] == "seven random keys of the<br>same layers, scaled by ten"


def test_the_colour_is_that_of_the_role_in_the_data_and_no_word_of_a_label_changes_it() -> None:
    for labels in (["base", "tuned", "random keys (null)"], ["Grundmodell", "DPO", "tuned base control"]):
        frame = TOXICITY.assign(side=labels, role=["base", "tuned", "null"])
        (bars,) = figures.bars("n", frame, x="side", y="toxicity", role="role", **SAY).spec["data"]
        assert bars["marker"]["color"] == [COLOURS["base"], COLOURS["tuned"], COLOURS["null"]]
        lines = figures.lines("n", frame, x="layer", y="toxicity", colour="side", role="role", **SAY).spec["data"]
        assert [trace["line"]["color"] for trace in lines] == [COLOURS["base"], COLOURS["tuned"], COLOURS["null"]]
        assert [trace["line"]["dash"] for trace in lines] == ["solid", "solid", "dot"]
        points = figures.scatter("n", frame, x="layer", y="toxicity", colour="side", role="role", **SAY).spec["data"]
        assert [trace["marker"]["symbol"] for trace in points] == ["circle", "diamond", "circle-open"]


def test_the_role_decides_where_the_label_is_the_name_of_another_role() -> None:
    frame = TOXICITY.assign(side=["Base", "tuned", "edited"], role=["null", "keys", ""])
    lines = figures.lines("n", frame, x="layer", y="toxicity", colour="side", role="role", **SAY).spec["data"]
    assert [trace["line"]["color"] for trace in lines] == [COLOURS["null"], FURTHER[0], COLOURS["edited"]]
    assert [trace["line"]["dash"] for trace in lines] == ["dot", "solid", "dash"]
    (bars,) = figures.bars("n", frame, x="side", y="toxicity", role="role", **SAY).spec["data"]
    assert bars["marker"]["color"][0] == COLOURS["null"]


def test_a_label_that_is_a_role_needs_no_column_and_one_that_only_mentions_it_has_none() -> None:
    frame = TOXICITY.assign(side=["base", "Tuned", "random keys, base, tuned"])
    spec = figures.lines("n", frame, x="layer", y="toxicity", colour="side", **SAY).spec
    assert [trace["line"]["color"] for trace in spec["data"]] == [COLOURS["base"], COLOURS["tuned"], FURTHER[0]]


def test_series_of_one_role_do_not_share_a_colour_and_the_exact_name_has_its_own() -> None:
    roles = ["base", "base", ""]
    frame = pd.DataFrame({"s": ["base, long", "base", "other"], "r": roles, "x": [1, 1, 1], "y": [1, 2, 3]})
    spec = figures.bars("n", frame, x="x", y="y", colour="s", role="r", **SAY).spec
    hues = {trace["name"]: trace["marker"]["color"] for trace in spec["data"]}
    assert hues["base"] == COLOURS["base"]
    assert len(set(hues.values())) == 3


@pytest.mark.parametrize("hue", [*COLOURS.values(), *FURTHER])
def test_every_hue_stands_out_on_a_light_and_on_a_dark_page(hue: str) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for page in ("#ffffff", "#1b1e23"):
        bright, dark = sorted((luminance(hue), luminance(page)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 2.7


def test_a_token_that_looks_like_markup_or_a_template_shows_as_itself() -> None:
    frame = TOXICITY.assign(side=["<b>", "<|endoftext|>", "%{y} & co"])
    spec = figures.bars("n", frame, x="side", y="toxicity", **SAY).spec
    assert spec["data"][0]["x"][:2] == ["&lt;b&gt;", "&lt;|endoftext|&gt;"]
    assert "%{y} &" not in json.dumps(spec)


def test_a_histogram_counts_every_value_once_and_spans_its_marks() -> None:
    values = np.random.default_rng(0).normal(size=500)
    spec = figures.histogram("n", pd.DataFrame({"v": values}), x="v", marks=[(9.0, "observed")], **SAY).spec
    (trace,) = spec["data"]
    assert sum(trace["y"]) == 500
    assert trace["x"][-1] + trace["width"][-1] / 2 == pytest.approx(9.0)
    assert any("observed 9" in note["text"] for note in spec["layout"]["annotations"])


def test_the_front_holds_the_points_that_none_beats() -> None:
    frame = pd.DataFrame({"p": [1.0, 2.0, 3.0, 2.5], "t": [0.9, 0.5, 0.1, 0.6]})
    spec = figures.scatter("n", frame, x="p", y="t", front=("min", "min"), **SAY).spec
    assert spec["data"][-1]["x"] == [1.0, 2.0, 3.0]


def test_a_heatmap_puts_each_cell_in_its_place_and_centres_its_colours() -> None:
    frame = pd.DataFrame({"layer": [1, 0, 1], "part": ["mlp", "attention", "attention"], "v": [3.0, -1.0, 2.0]})
    (trace,) = figures.heatmap("n", frame, x="layer", y="part", z="v", centre=0.0, **SAY).spec["data"]
    assert (trace["x"], trace["y"], trace["z"]) == (["1", "0"], ["mlp", "attention"], [[3.0, None], [2.0, -1.0]])
    assert (trace["zmin"], trace["zmax"]) == (-3.0, 3.0)
    assert trace["text"] == [["3", "–"], ["2", "−1"]]
    (trace,) = figures.heatmap("n", frame.assign(word=["a", "b", "c"]), x="layer", y="part", z="v", text="word", **SAY).spec["data"]
    assert trace["text"] == [["a", "–"], ["c", "b"]]


def test_a_dumbbell_joins_the_two_values_of_each_row() -> None:
    joint, base, tuned = MADE["dumbbell"](TOXICITY[:1]).spec["data"]
    assert (base["x"], tuned["x"], joint["x"]) == ([0.4], [0.5], [0.4, 0.5, None])
    assert (base["marker"]["color"], tuned["marker"]["color"]) == (COLOURS["base"], COLOURS["tuned"])


LONG = "How far each neuron points along the probe's direction and how far tuning has changed it, neuron by neuron"
NAMES = ("all positions of the layer", "one position, alone", "random change of the whole layer", "base with the tuned layer")


def lines_of(text: str) -> list[str]:
    return text.split("<br>")


def test_a_long_title_is_broken_into_lines_with_room_above_the_plot() -> None:
    say = {"caption": "Look here.", "x": "layer", "y": "toxicity"}
    short, long = (figures.lines("n", TOXICITY, title=title, **say).spec["layout"] for title in ("T", LONG))
    parts = lines_of(long["title"]["text"])
    assert " ".join(parts) == LONG
    assert max(map(len, parts)) <= figure_layout.TITLE
    grown = figure_layout.LINE * (len(parts) - 1)
    assert len(parts) > 1
    assert (long["margin"]["t"] - short["margin"]["t"], long["height"] - short["height"]) == (grown, grown)


@pytest.mark.parametrize("kind", ["lines", "scatter", "heatmap"])
def test_long_titles_of_axes_are_broken_and_whole(kind: str) -> None:
    made = {
        "lines": lambda: figures.lines("n", TOXICITY, x="layer", y="toxicity", x_title=LONG, y_title=LONG, **SAY),
        "scatter": lambda: figures.scatter("n", TOXICITY, x="layer", y="toxicity", x_title=LONG, y_title=LONG, **SAY),
        "heatmap": lambda: figures.heatmap("n", TOXICITY, x="side", y="group", z="toxicity", x_title=LONG, y_title=LONG, **SAY),
    }[kind]()
    for axis, most in (("xaxis", figure_layout.BELOW), ("yaxis", figure_layout.BESIDE)):
        parts = lines_of(made.spec["layout"][axis]["title"]["text"])
        assert " ".join(parts) == LONG
        assert max(map(len, parts)) <= most


def test_the_title_below_flat_bars_fits_beside_their_labels() -> None:
    frame = TOXICITY.assign(side=["base", "tuned", "seven random keys of the same layers, scaled by ten"])
    flat = figures.bars("n", frame, x="side", y="toxicity", y_title=LONG, **SAY).spec["layout"]["xaxis"]["title"]["text"]
    upright = figures.lines("n", frame, x="layer", y="toxicity", x_title=LONG, **SAY).spec["layout"]["xaxis"]["title"]["text"]
    assert max(map(len, lines_of(flat))) < max(map(len, lines_of(upright)))


def named(names: Sequence[str]) -> Figure:
    frame = pd.DataFrame([{"x": x, "y": x, "s": name} for name in names for x in range(2)])
    return figures.lines("n", frame, x="x", y="y", colour="s", **SAY)


def test_a_legend_of_one_row_stays_above_the_plot_and_a_longer_one_goes_to_the_lower_edge() -> None:
    above, below = (named(names).spec["layout"] for names in (("base", "tuned"), NAMES))
    assert (above["legend"]["yanchor"], below["legend"]["yanchor"]) == ("top", "bottom")
    assert (above["legend"]["yref"], below["legend"]["yref"]) == ("container", "container")
    # It begins below the title, and ends above the plot.
    assert 32 <= (1 - above["legend"]["y"]) * above["height"] <= above["margin"]["t"] - 30
    assert below["legend"]["y"] == 0
    assert below["margin"]["t"] < above["margin"]["t"]
    assert below["height"] > above["height"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [((), 0), (("base", "tuned"), 1), (NAMES, 4), (("a" * 20, "b" * 20), 2), (("a<br>b", "c"), 2), (("a", "b" * 40, "c"), 3)],
)
def test_the_rows_of_a_legend_are_counted_as_they_fill_a_narrow_column(names: tuple[str, ...], expected: int) -> None:
    assert figure_layout.rows(names) == expected


def test_a_text_that_fits_is_left_as_it_is_and_markup_is_escaped_in_every_line() -> None:
    assert figure_layout.break_lines(" the", 10) == " the"
    assert figure_layout.break_lines("<b> and <i>", 6) == "&lt;b&gt;<br>and<br>&lt;i&gt;"


def test_a_figure_without_its_title_moves_up_what_stood_below_it() -> None:
    above, below = (named(names).spec["layout"] for names in (("base", "tuned"), NAMES))
    for layout, top in ((above, 40), (below, 16)):
        bare = figure_layout.untitled(layout)
        assert "title" not in bare
        assert bare["margin"]["t"] == top
    assert (1 - figure_layout.untitled(above)["legend"]["y"]) * above["height"] == pytest.approx(8)
    assert figure_layout.untitled(below)["legend"] == below["legend"]


def test_places_of_labels_are_sought_only_where_labels_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def sought(*given: object) -> list[str]:
        raise AssertionError("quadratic in the points")

    monkeypatch.setattr(figures, "text_positions", sought)
    many = pd.DataFrame({"a": range(31), "b": range(31), "t": [str(i) for i in range(31)]})
    figures.scatter("n", many, x="a", y="b", text="t", **SAY)
    figures.scatter("n", many[:5], x="a", y="b", **SAY)
    with pytest.raises(AssertionError, match="quadratic"):
        figures.scatter("n", many[:30], x="a", y="b", text="t", **SAY)
