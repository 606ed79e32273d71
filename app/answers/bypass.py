"""What the page *Bypass* asks about the shift of the residual stream.

States of all layers are captured once per pair and number of prompts, as experiment A-E10 captures them; a layer,
a neuron or a plane is then a slice of what is held, so that a slider answers at once.
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
from interp import Model, ModelPair, UserError
from interp.data.texts import challenge_prompts, passages
from interp.diffing.offsets import coordinates, held_out_cosines, key_products, shifts, sign_flipped
from interp.experiments.toxicity.a_e10_offset import FLIPPED, RANDOM, STATES
from interp.experiments.toxicity.context import ToxicityContext
from interp.forward.capture import Captured, capture
from interp.models.model import Neuron
from interp.neurons.ranking import values_at
from interp.neurons.vocabulary import top_tokens
from interp.results import figures
from interp.results.figure_style import FURTHER
from interp.results.figures import moves
from interp.results.result import Figure
from interp.stats.intervals import Interval, bootstrap_mean, bootstrap_ratio, permutation_p
from interp.stats.nulls import matched_neurons, perturbed, random_directions

COUNTS, VISITORS_COUNTS, USUAL = (40, 80, 140, 280), (40, 80), 80
# Above this a pass over the prompts takes many seconds on a few cores, and is a job.
LIGHT = 3e7
CHANGES, SHIFTS, FLIPS, MATCHES = 2, 200, 40, 40
LISTED = 12
LETTERS = 70
PLANES = {"what the neuron reads": "read", "first principal component": "component"}
FIRST = next(iter(PLANES))
TAILS = (0.025, 0.975)
HUES = dict(zip(STATES, FURTHER, strict=False))
# A neuron that fires on fewer of the prompts has few to lose.
OFTEN = 0.1
TUNED, ALONE, SHIFTED, MATCHED = (
    "tuned", "base, shift alone", "random shift (null)", "matched neurons (null)"
)  # fmt: skip
ROLES = {TUNED: "tuned", ALONE: "edited", SHIFTED: "null", MATCHED: "null", FLIPPED: "null", RANDOM: "null"}


@dataclass(frozen=True)
class Moved:
    """The prompts in the plane of one neuron, and how many left the region where it fires."""

    plane: Figure
    leaving: Figure
    before: int
    after: int
    left: int
    entered: int
    prompts: int
    share: float
    null: Interval
    p: float


def counts() -> tuple[int, ...]:
    """How many prompts can be read."""
    return VISITORS_COUNTS if settings.demo() else COUNTS


def light(pair: ModelPair) -> bool:
    """Whether a pass over the prompts is so short that nobody need ask for it."""
    return sum(weight.numel() for weight in pair.base.hf.parameters()) <= LIGHT


@st.cache_resource(show_spinner=False, max_entries=8)
def study(source: Source, count: int) -> ToxicityContext:
    """What the experiments share, on challenge prompts spread evenly over those that ship."""
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
    """The base model moved as far as tuning moved it, in random directions."""
    return [perturbed(state.load_pair(source), seed) for seed in range(CHANGES)]


@st.cache_resource(show_spinner="Reading the prompts under random changes …", max_entries=6)
def random_shifts(source: Source, count: int) -> list[dict[str, Tensor]]:
    """What random changes of equal norm add to the stream before each MLP."""
    base = states(source, count)[0]
    sites = [site for site in base if site.startswith("resid_mid")]
    rows = study(source, count).prompt_rows()
    return [{site: shifts(base[site], held[site]) for site in sites} for held in (capture(m, rows, sites) for m in random_changes(source))]


def layer_neurons(source: Source, layer: int) -> list[int]:
    """The neurons of one layer among the most toxic of all, most toxic first."""
    return [index for at, index in state.toxic_neurons(source) if at == layer][:LISTED]


@st.cache_data(show_spinner=False, max_entries=64)
def telling(source: Source, count: int, layer: int) -> int:
    """The place, among a layer's toxic neurons, of the most toxic one that fires on a tenth of the prompts in the base model (else 0)."""
    model, states_before = state.load_pair(source).base, states(source, count)[0][f"resid_mid.{layer}"]
    often = (key_products(model, layer, layer_neurons(source, layer), states_before) > 0).double().mean(dim=0) >= OFTEN
    return int(often.double().argmax())


@st.cache_data(show_spinner=False, max_entries=64)
def promoted(source: Source, neurons: tuple[Neuron, ...], top: int) -> list[list[str]]:
    """The tokens that each of these neurons promotes most."""
    model = state.load_pair(source).base
    return [[word.strip() for word in words] for words in top_tokens(model, values_at(model, neurons), top=top).words]


@st.cache_data(show_spinner=False, max_entries=256)
def moved(source: Source, count: int, layer: int, index: int, plane: str) -> Moved:
    """Where each prompt stands before and after tuning, and how many leave the region where one neuron fires.

    Raises `UserError` where tuning moved nothing before this layer's MLP.
    """
    context, site = study(source, count), f"resid_mid.{layer}"
    base, tuned = (side[site] for side in states(source, count))
    shift = shifts(base, tuned)
    if not bool(shift.any()):
        raise UserError(f"tuning moved nothing before the MLP of layer {layer}", "choose a higher layer")
    sides = context.pair.sides
    before, after = (key_products(model, layer, [index], held)[:, 0] for model, held in zip(sides.values(), (base, tuned), strict=True))
    alone = key_products(context.pair.base, layer, [index], tuned)[:, 0]
    fires = (before > 0).numpy()
    gone = {TUNED: fires & (after <= 0).numpy(), ALONE: fires & (alone <= 0).numpy()}
    lengths = shift.norm(dim=1, keepdim=True)
    ways = torch.nn.functional.normalize(random_directions(shift.mean(dim=0), SHIFTS, 0), dim=1)
    null = np.array([
        (fires & (key_products(context.pair.base, layer, [index], (base + lengths * way).float())[:, 0] <= 0).numpy()).sum() for way in ways
    ])  # fmt: skip
    some = max(1, int(fires.sum()))
    low, high = np.quantile(null, TAILS)
    return Moved(
        _plane(context, layer, index, plane, base, tuned, before, after), _leaving(source, count, layer, index, gone, fires, null / some),
        int(fires.sum()), int((after > 0).sum()), int(gone[TUNED].sum()), int((~fires & (after > 0).numpy()).sum()), len(fires),
        float(gone[TUNED].sum()) / some, Interval(float(null.mean()), float(low), float(high), SHIFTS),
        permutation_p(int(gone[ALONE].sum()), null),
    )  # fmt: skip


def _plane(
    context: ToxicityContext, layer: int, index: int, plane: str, base: Tensor, tuned: Tensor, before: Tensor, after: Tensor
) -> Figure:  # fmt: skip
    placed = coordinates(base, tuned)
    firing = before[before > 0]
    strong = float(firing.median()) if len(firing) else 0.0
    texts = [prompt if len(prompt) <= LETTERS else "… " + prompt[-LETTERS:] for prompt in context.prompts]
    rows = []
    # Base first, so that the legend shows each state by the base model's circle.
    for side, places, reads in (("base", placed.base, before), ("tuned", placed.tuned, after)):
        for number, (text, place, read) in enumerate(zip(texts, places.tolist(), reads.tolist(), strict=True), 1):
            told = STATES[2] if read <= 0 else STATES[0] if read > strong else STATES[1]
            rows.append((f"{number}: {text}", side, *place, read, told))
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
    """One dotted line per prompt in the colour of what the neuron did in the base model, in place of grey ones."""
    line, *marks = figure.spec["data"]
    # A state keeps its hue where another one does not occur.
    for mark in marks:
        mark["marker"]["color"] = HUES[mark["name"]]
    ends = {side: part.reset_index(drop=True) for side, part in frame.groupby("side", sort=False)}
    lines = []
    for mark in marks:
        own = ends["base"]["state"] == mark["name"]
        pairs = [(ends["base"].loc[at], ends["tuned"].loc[at]) for at in ends["base"].index[own]]
        across, up = ([value for a, b in pairs for value in (float(a[axis]), float(b[axis]), None)] for axis in ("shift", plane))
        lines.append(
            line | {"x": across, "y": up, "line": line["line"] | {"color": mark["marker"]["color"], "width": 1.3}, "opacity": 0.55}
        )
    figure.spec["data"] = [*lines, *marks]


def _leaving(
    source: Source, count: int, layer: int, index: int, gone: dict[str, np.ndarray], fires: np.ndarray, null: np.ndarray
) -> Figure:
    rows: list[tuple[str, float, float, float]] = []
    for name, left in gone.items():
        share = bootstrap_ratio(left, fires) if fires.any() else Interval(float("nan"), float("nan"), float("nan"), 0)
        rows.append((name, share.value, share.low, share.high))
    matched = _matched_leaving(source, count, layer, index)
    for name, values in ((SHIFTED, null), (MATCHED, matched)):
        if len(values):
            low, high = (float(end) for end in np.quantile(values, TAILS))
            rows.append((name, float(values.mean()), low, high))
    frame = pd.DataFrame([(name, ROLES[name], *numbers) for name, *numbers in rows], columns=["model", "role", "share", "low", "high"])
    return figures.bars(
        "leaving", frame, x="model", y="share", role="role", low="low", high="high",
        horizontal=True, title="How many fall silent?", x_title="",
        y_title="share that leaves",
        caption="Of the prompts on which the neuron fires in the base model, how many fall silent (with 95 % intervals; of nulls, "
        "ranges)? The shift alone keeps the base model's key. The nulls are random shifts, each as long as the prompt's own, and other "
        "neurons of the layer that write about as strongly, under the true shift: where those fall silent as often, the shift is not "
        "aimed at toxic neurons.",
    )  # fmt: skip


@st.cache_data(show_spinner=False, max_entries=256)
def _matched_leaving(source: Source, count: int, layer: int, index: int) -> np.ndarray:
    """For neurons matched to one of a layer: the share of prompts that leave, of those on which they fire."""
    pair, site = state.load_pair(source), f"resid_mid.{layer}"
    toxic = state.toxic_neurons(source)
    spare = pair.base.d_mlp > sum(at == layer for at, _ in toxic)
    drawn = [
        matched_neurons(pair.base, [(layer, index)], seed=draw, exclude=toxic if spare else (), candidates=8)[0][1]
        for draw in range(MATCHES)
    ]
    chosen = list(dict.fromkeys(drawn))
    before, after = (
        (key_products(model, layer, chosen, held[site]) > 0).double().numpy()
        for model, held in zip(pair.sides.values(), states(source, count), strict=True)
    )
    fired = before.sum(axis=0)
    shares = dict(zip(chosen, (before * (1 - after)).sum(axis=0) / np.maximum(fired, 1), strict=True))
    active = {one for one, number in zip(chosen, fired, strict=True) if number > 0}
    return np.array([shares[one] for one in drawn if one in active])


@st.cache_data(show_spinner=False, max_entries=32)
def profile(source: Source, count: int, with_changes: bool) -> pd.DataFrame:
    """How alike the shifts are before each MLP: mean cosine of a prompt's shift with the mean shift of the other half.

    Returns one row per layer and model (tuned, shuffled labels, random changes): layer, model, cosine, low, high.
    """
    base, tuned = states(source, count)
    random = random_shifts(source, count) if with_changes else []
    rows = []
    for layer in range(state.load_pair(source).base.n_layers):
        site = f"resid_mid.{layer}"
        shift = shifts(base[site], tuned[site])
        own = bootstrap_mean(held_out_cosines(shift, 0).numpy())
        rows.append((layer, TUNED, own.value, own.low, own.high))
        drawn = {FLIPPED: [sign_flipped(shift, seed) for seed in range(FLIPS)], RANDOM: [found[site] for found in random]}
        for name, some in drawn.items():
            found = [float(held_out_cosines(one, 0).mean()) for one in some]
            if found:
                low, high = np.quantile(found, TAILS) if name == FLIPPED else (min(found), max(found))
                rows.append((layer, name, float(np.mean(found)), float(low), float(high)))
    return pd.DataFrame(rows, columns=["layer", "model", "cosine", "low", "high"])


def by_layer(figure: Figure, frame: pd.DataFrame) -> Figure:
    """The figure with a mark at every whole layer and none between, where there are few."""
    if frame["layer"].nunique() <= 12:
        figure.spec["layout"]["xaxis"]["dtick"] = 1
    return figure


def profile_figure(frame: pd.DataFrame, layer: int) -> Figure:
    """The profile as lines, with the chosen layer shaded."""
    figure = figures.lines(
        "profile", frame.assign(role=frame["model"].map(ROLES)), x="layer", y="cosine", colour="model", role="role", low="low", high="high",
        shaded=[(layer - 0.25, layer + 0.25, "chosen")],
        title="Is it one shift for all prompts?", x_title="layer (before its MLP)", y_title="cosine with other prompts' shift",
        caption="Near 1, every prompt is moved the same way. Shuffled labels (a coin decides for each prompt which side is the tuned one) "
        "must lie near 0. "
        "Random changes of the weights, as large as the tuning, show how much of it any change of weights brings: only what "
        "lies above them is learnt.",
    )  # fmt: skip
    return by_layer(figure, frame)
