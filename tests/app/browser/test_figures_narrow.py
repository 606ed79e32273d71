"""Figures as a browser draws them: at the width of a phone no word is cut off, and no legend lies over a title or the plot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from playwright.sync_api import Browser

from interp.results import figures
from interp.results.result import Figure
from tests.app.app_pages import PATIENCE

LONG = "How far each neuron points along the probe's direction and how far tuning has changed it, neuron by neuron"
RUNS = ("all positions of the layer", "one position, alone", "random change of the whole layer", "base with the tuned layer")
STATES = ("base", "tuned", "tuned, seven random keys of the same layers, scaled by ten")
SAY: dict[str, Any] = {"title": LONG, "caption": "Look here.", "x_title": LONG, "y_title": LONG}


def frame(labels: tuple[str, ...]) -> pd.DataFrame:
    cells = [(x, label, state, x + place) for x in range(3) for place, label in enumerate(labels) for state in STATES]
    return pd.DataFrame(cells, columns=["x", "run", "state", "y"])


MADE: dict[str, Callable[[], Figure]] = {
    "lines": lambda: figures.lines("n", frame(RUNS), x="x", y="y", colour="run", **SAY),
    "a short legend": lambda: figures.lines("n", frame(("base", "tuned")), x="x", y="y", colour="run", **SAY),
    "scatter": lambda: figures.scatter("n", frame(RUNS), x="x", y="y", colour="run", **SAY),
    "bars": lambda: figures.bars("n", frame(RUNS)[:12], x="x", y="y", colour="run", **SAY),
    "flat bars": lambda: figures.bars(
        "n", frame(("base", "tuned"))[:6], x="state", y="y", colour="run", reference=(1, "a line"), title=LONG, caption="Look here.",
        x_title="state", y_title=LONG,
    ),
    "histogram": lambda: figures.histogram("n", frame(RUNS), x="y", colour="run", marks=[(1.0, "nearest to the probe")], **SAY),
    "heatmap": lambda: figures.heatmap(
        "n", frame(RUNS)[:12], x="x", y="run", z="y", title=LONG, caption="Look here.", x_title=LONG, z_title="effect on the logit",
    ),
    "dumbbell": lambda: figures.dumbbell(
        "n", frame(RUNS)[:3], row="state", base="x", tuned="y", title=LONG, caption="Look here.", x_title="activation, mean over tokens"
    ),
}  # fmt: skip
BOXES = """() => [...document.querySelectorAll(".plotly-graph-div")].map(figure => Object.fromEntries(Object.entries({
    whole: ".main-svg", title: ".gtitle", legend: ".legend", plot: ".nsewdrag", x: ".xtitle", y: ".ytitle", scale: ".cbtitle",
}).map(([name, query]) => [name, [...figure.querySelectorAll(query)].map(part => part.getBoundingClientRect())
    .filter(box => box.width > 0).map(box => ({ left: box.left, right: box.right, top: box.top, bottom: box.bottom }))[0] ?? null])))"""
Boxes = dict[str, dict[str, dict[str, float] | None]]


@pytest.fixture(scope="module", params=[420, 1400])
def boxes(request: pytest.FixtureRequest, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Boxes:
    """Where the words of each figure are, in pixels, all drawn on one page of this width."""
    file = tmp_path_factory.mktemp("figures") / "page.html"
    file.write_text(figures.page("figures", [make() for make in MADE.values()]), encoding="utf-8")
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.set_default_timeout(1000 * PATIENCE)
    try:
        page.goto(file.as_uri())
        page.wait_for_function(f"() => document.querySelectorAll('.gtitle').length === {len(MADE)}")
        return dict(zip(MADE, page.evaluate(BOXES), strict=True))
    finally:
        page.close()


@pytest.mark.parametrize("kind", MADE)
def test_every_word_around_a_plot_is_whole_and_apart_from_the_others(kind: str, boxes: Boxes) -> None:
    found = boxes[kind]
    whole, title, legend, plot, x, y = (found[name] for name in ("whole", "title", "legend", "plot", "x", "y"))
    assert None not in (whole, title, plot, x, y)
    assert bool(legend) == (kind != "heatmap")
    for name in ("title", "legend", "x", "y", "scale"):
        box = found[name]
        if box is not None:
            # A pixel for the rounding of fonts.
            assert whole["left"] - 1 <= box["left"] < box["right"] <= whole["right"] + 1, name
            assert whole["top"] - 1 <= box["top"] < box["bottom"] <= whole["bottom"] + 1, name
    assert title["bottom"] <= plot["top"]
    assert plot["bottom"] <= x["top"]
    assert y["right"] <= plot["left"]
    assert plot["bottom"] - plot["top"] >= 100
    assert plot["right"] - plot["left"] >= 100
    if legend:
        assert title["bottom"] <= legend["top"] + 1
        assert legend["bottom"] <= plot["top"] or x["bottom"] <= legend["top"] + 1
