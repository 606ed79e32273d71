"""The shift of the residual stream, for the page *Bypass*.

States of all layers are captured once per pair and number of prompts, as experiment A-E10 captures them; a layer,
a neuron or a plane is then a slice of these states, so that a slider answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st
import torch
from torch import Tensor

from app import settings, state
from app.settings import Source
from interp import Model, ModelPair
from interp.data.texts import challenge_prompts, passages
from interp.diffing.offsets import FLIPPED, RANDOM, coordinates, key_products, shift_profile, shifts
from interp.diffing.regions import STATES, Leaving, firing_states, leaving
from interp.experiments.toxicity.context import ToxicityContext
from interp.forward.capture import capture
from interp.forward.captured import Captured
from interp.models.model import Neuron
from interp.models.sites import parse_site
from interp.neurons.projection import projection_for
from interp.neurons.ranking import values_at
from interp.neurons.vocabulary import top_tokens
from interp.results import figures
from interp.results.figure_style import FURTHER
from interp.results.figures import moves
from interp.results.result import Figure
from interp.stats.nulls import perturbed

CHANGES, FLIPS = 2, 40
LISTED = 12
LETTERS = 70
PLANES = {"what the neuron reads": "read", "first principal component": "component"}
FIRST = next(iter(PLANES))
HUES = dict(zip(STATES, FURTHER, strict=False))
# A neuron that fires on fewer of the prompts has few to lose.
OFTEN = 0.1
MATCHED = "matched neurons (null)"
# What the figures call the roles of `Leaving.to_frame` and of `Profile.to_frame`.
LEAVING = {"tuned": "tuned", "shift_alone": "base, shift alone", "random_shift": "random shift (null)", "matched_neurons": MATCHED}
PROFILE = {"tuned": "tuned", "flipped": FLIPPED, "changed": RANDOM}
# The role that each of them has in a figure's colours.
DRAWN_AS = {"tuned": "tuned", "shift_alone": "edited"}


@dataclass(frozen=True)
class Moved:
    """The prompts in the plane of one neuron, and how many left the region where it fires."""

    plane: Figure
    bars: Figure
    region: Leaving


def counts() -> tuple[int, ...]:
    """The numbers of prompts to choose from."""
    sizes = settings.sizes()
    return sizes.visitors_prompts if settings.demo() else sizes.prompts


def usual() -> int:
    """The default number of prompts."""
    return settings.sizes().usual_prompts


def light(pair: ModelPair) -> bool:
    """Whether a pass over the prompts is so short that it needs no job."""
    return sum(weight.numel() for weight in pair.base.hf.parameters()) <= settings.sizes().light


@st.cache_resource(show_spinner=False, max_entries=8)
def study(source: Source, count: int) -> ToxicityContext:
    """The study on challenge prompts spread evenly over those that ship."""
    every = challenge_prompts()
    chosen = [every[int(place)] for place in np.linspace(0, len(every) - 1, min(count, len(every))).round()]
    return ToxicityContext(state.load_pair(source), state.probe(source), state.scorer(), chosen, passages())


@st.cache_resource(show_spinner="Reading the prompts with both models …", max_entries=6)
def states(source: Source, count: int) -> tuple[Captured, Captured]:
    """The residual stream of base and tuned after every half layer, at the last position of each prompt."""
    context = study(source, count)
    base, tuned = (context.last_states(model) for model in context.pair.sides.values())
    return base, tuned


@st.cache_resource(show_spinner="Changing the weights at random …", max_entries=2)
def random_changes(source: Source) -> list[Model]:
    """The base model with random changes of the weights, each as large as the change by tuning."""
    return [perturbed(state.load_pair(source), seed) for seed in range(CHANGES)]


@st.cache_resource(show_spinner="Reading the prompts under random changes …", max_entries=6)
def random_shifts(source: Source, count: int) -> list[dict[str, Tensor]]:
    """The shifts before each MLP under random changes of the weights of equal norm."""
    base = states(source, count)[0]
    sites = [site for site in base if parse_site(site).name == "resid_mid"]
    rows = study(source, count).prompt_rows()
    changed = (capture(model, rows, sites) for model in random_changes(source))
    return [{site: shifts(base[site], states[site]) for site in sites} for states in changed]


def layer_neurons(source: Source, layer: int) -> list[int]:
    """The neurons of one layer that are among the most toxic of all, most toxic first."""
    return [index for at, index in state.toxic_neurons(source) if at == layer][:LISTED]


@st.cache_data(show_spinner=False, max_entries=64)
def first_firing(source: Source, count: int, layer: int) -> int:
    """The index, among a layer's toxic neurons, of the most toxic one that fires on a tenth of the prompts in the base model (else 0)."""
    model, states_before = state.load_pair(source).base, states(source, count)[0][f"resid_mid.{layer}"]
    often = (key_products(model, layer, layer_neurons(source, layer), states_before) > 0).double().mean(dim=0) >= OFTEN
    return int(often.double().argmax())


@st.cache_data(show_spinner=False, max_entries=64)
def promoted(source: Source, neurons: tuple[Neuron, ...], top: int) -> list[list[str]]:
    """The tokens that each of these neurons promotes most."""
    model = state.load_pair(source).base
    tokens = top_tokens(model, values_at(model, neurons), top=top, projection=projection_for(model))
    return [[word.strip() for word in words] for words in tokens.words]


@st.cache_data(show_spinner=False, max_entries=256)
def moved(source: Source, count: int, layer: int, index: int, plane: str) -> Moved:
    """The prompts before and after tuning in the plane of one neuron, and how many leave the region where it fires.

    Raises `UserError` where tuning moved nothing before this layer's MLP.
    """
    region = left(source, count, (layer, index))
    base, tuned = (side[f"resid_mid.{layer}"] for side in states(source, count))
    return Moved(_plane(study(source, count), region, plane, base, tuned), _bars(region), region)


@st.cache_data(show_spinner=False, max_entries=256)
def left(source: Source, count: int, neuron: Neuron) -> Leaving:
    """How many prompts leave one neuron's region, beside random shifts and neurons that are not among the toxic ones."""
    base, tuned = (side[f"resid_mid.{neuron[0]}"] for side in states(source, count))
    sizes = settings.sizes()
    return leaving(
        state.load_pair(source), neuron, base, tuned,
        shift_draws=sizes.shift_draws, matched_draws=sizes.matched_draws, exclude=state.toxic_neurons(source),
    )  # fmt: skip


def _plane(context: ToxicityContext, region: Leaving, plane: str, base: Tensor, tuned: Tensor) -> Figure:
    placed = coordinates(base, tuned)
    layer, index = region.neuron
    texts = [prompt if len(prompt) <= LETTERS else "… " + prompt[-LETTERS:] for prompt in context.prompts]
    rows = []
    # Base first, so that the legend shows each state by the base model's circle.
    for side, places, reads in (("base", placed.base, region.before), ("tuned", placed.tuned, region.after)):
        states = firing_states(torch.from_numpy(reads), torch.from_numpy(region.before))
        for number, (text, place, read, name) in enumerate(zip(texts, places.tolist(), reads.tolist(), states, strict=True), 1):
            rows.append((f"{number}: {text}", side, *place, read, name))
    frame = pd.DataFrame(rows, columns=["prompt", "side", "shift", "component", "read", "state"])
    by_read = plane == "read"
    figure = moves(
        "plane", frame, item="prompt", side="side", x="shift", y=plane, colour="state", order=STATES,
        title=f"Every prompt, as neuron {layer}.{index} meets it",
        x_title="place along the shift of other prompts",
        y_title="what it reads (key · state + bias)" if by_read else "first principal component",
        caption="Each dotted line is one prompt: from its state in the base model (circle) to its state in the tuned model (diamond). "
        + ("Above the line at 0 the neuron fires. " if by_read else "This is the plane of the paper's Figure 4. ")
        + "Parallel lines of equal length are one shift for all prompts; prompts that cross from firing to silent have left the "
        "neuron's reach. “Strongly” is above the base model's median among prompts on which it fires.",
    )  # fmt: skip
    _colour_lines(figure, frame, plane)
    if by_read:
        figure.spec["layout"]["shapes"] = [{
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": 0, "y1": 0, "line": {"color": "#7b828c", "width": 1.5},
        }]  # fmt: skip
        figure.spec["layout"]["annotations"] = [
            {"xref": "paper", "x": 1, "y": 0, "yref": "y", "xanchor": "right", "yanchor": yanchor, "text": text, "showarrow": False}
            for text, yanchor in (("fires", "bottom"), ("silent", "top"))
        ]
    return figure


def _colour_lines(figure: Figure, frame: pd.DataFrame, plane: str) -> None:
    """Replace the grey lines by one dotted line per prompt, in the colour of its state in the base model."""
    line, *marks = figure.spec["data"]
    # A state keeps its hue where another one does not occur.
    for mark in marks:
        mark["marker"]["color"] = HUES[mark["name"]]
    ends = {side: part.reset_index(drop=True) for side, part in frame.groupby("side", sort=False)}
    lines = []
    for mark in marks:
        in_state = ends["base"]["state"] == mark["name"]
        pairs = [(ends["base"].loc[at], ends["tuned"].loc[at]) for at in ends["base"].index[in_state]]
        across, up = ([value for a, b in pairs for value in (float(a[axis]), float(b[axis]), None)] for axis in ("shift", plane))
        lines.append(
            line | {"x": across, "y": up, "line": line["line"] | {"color": mark["marker"]["color"], "width": 1.3}, "opacity": 0.55}
        )
    figure.spec["data"] = [*lines, *marks]


def _bars(region: Leaving) -> Figure:
    frame = region.to_frame()
    frame["model"], frame["role"] = frame["role"].map(LEAVING), [DRAWN_AS.get(role, "null") for role in frame["role"]]
    return figures.bars(
        "leaving", frame[["model", "role", "share", "low", "high"]], x="model", y="share", role="role", low="low", high="high",
        horizontal=True, title="How many fall silent?", x_title="",
        y_title="share that leaves",
        caption="Of the prompts on which the neuron fires in the base model, how many fall silent (with 95 % intervals; of nulls, "
        "ranges)? The shift alone keeps the base model's key. The nulls are random shifts, each as long as the prompt's own, and other "
        "neurons of the layer that write about as strongly, under the true shift: where those fall silent as often, the shift is not "
        "aimed at toxic neurons.",
    )  # fmt: skip


@st.cache_data(show_spinner=False, max_entries=32)
def profile(source: Source, count: int, with_changes: bool) -> pd.DataFrame:
    """How alike the shifts are before each MLP: one row per layer and model (`PROFILE`), with its role, cosine, low and high."""
    sites = [f"resid_mid.{layer}" for layer in range(state.load_pair(source).base.n_layers)]
    base, tuned = ([side[site] for site in sites] for side in states(source, count))
    changes = [[change[site] for site in sites] for change in random_shifts(source, count)] if with_changes else []
    frame = shift_profile(base, tuned, changes, flips=FLIPS).to_frame()
    frame["model"], frame["role"] = frame["role"].map(PROFILE), [DRAWN_AS.get(role, "null") for role in frame["role"]]
    return frame[["layer", "model", "role", "cosine", "low", "high"]]


def by_layer(figure: Figure, frame: pd.DataFrame) -> Figure:
    """The figure with a tick at every whole layer and none between, where there are few."""
    if frame["layer"].nunique() <= 12:
        figure.spec["layout"]["xaxis"]["dtick"] = 1
    return figure


def profile_figure(frame: pd.DataFrame, layer: int) -> Figure:
    """The profile as lines, with the chosen layer shaded."""
    figure = figures.lines(
        "profile", frame, x="layer", y="cosine", colour="model", role="role", low="low", high="high",
        shaded=[(layer - 0.25, layer + 0.25, "chosen")],
        title="Is it one shift for all prompts?", x_title="layer (before its MLP)", y_title="cosine with other prompts' shift",
        caption="Near 1, every prompt is moved the same way. Signs flipped at random after tuning give 0 for any shifts and test nothing. "
        "Random changes of the weights, as large as the tuning, show how much of it any change of weights brings. Training on anything "
        "else moves prompts alike too: experiment A-E10 on the page Evidence compares with control runs.",
    )  # fmt: skip
    return by_layer(figure, frame)
