"""Activations of the toxic neurons before and after tuning, beside equally active ones, for the page *Bypass*, as in experiment A-E9."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st

from app import settings
from app.answers.bypass import promoted, study
from app.settings import Source
from interp.diffing.regions import TAILS
from interp.experiments.toxicity.a_e9_activations import activities
from interp.models.model import Neuron
from interp.neurons.activations import forced_neurons
from interp.results import figures
from interp.results.result import Figure
from interp.stats.intervals import Interval, bootstrap_difference, bootstrap_mean, permutation_p
from interp.stats.nulls import activity_matched

MOST, SHOWN = 12, 5
MATCHED = "equally active neurons (null)"


@dataclass(frozen=True)
class Drop:
    """Activations of the toxic neurons while the base model's continuations are read, in both models."""

    levels: Figure
    falls: Figure
    fallen: int
    neurons: int
    mean: Interval
    null: Interval
    p: float
    prompts: int


@st.cache_resource(show_spinner="Reading 20 tokens of continuation with both models …", max_entries=6)
def activity(source: Source, count: int) -> tuple[list[Neuron], list[list[Neuron]], dict[str, np.ndarray], list[Neuron]]:
    """Toxic neurons, draws of equally active ones, each side's activations (`prompt neuron`), and the neuron of each column."""
    context = study(source, count)
    neurons = context.ranking.neurons[:MOST]
    active = activities(context, sorted({layer for layer, _ in neurons}))
    drawn = [
        activity_matched(context.pair.base, neurons, active, seed=seed, exclude=context.ranking.neurons)
        for seed in range(settings.sizes().matched_draws)
    ]
    every = list(dict.fromkeys([*neurons, *(neuron for some in drawn for neuron in some)]))
    rows, tokens = context.prompt_rows(), context.greedy_tokens(context.pair.base)
    sides = {name: forced_neurons(model, rows, tokens, every).step_means.numpy() for name, model in context.pair.sides.items()}
    return neurons, drawn, sides, every


@st.cache_data(show_spinner=False, max_entries=64)
def drop(source: Source, count: int, top: int) -> Drop:
    """By how much the `top` most toxic neurons fall, with paired intervals, beside equally active neurons."""
    every_neuron, drawn, sides, columns = activity(source, count)
    neurons, place = every_neuron[:top], {neuron: at for at, neuron in enumerate(columns)}
    words = promoted(source, tuple(neurons), 2)
    levels, falls = [], []
    for neuron, tokens in zip(neurons, words, strict=True):
        base, tuned = (sides[side][:, place[neuron]] for side in ("base", "tuned"))
        label = f"{neuron[0]}.{neuron[1]} ({', '.join(tokens)})"
        fall = bootstrap_difference(base, tuned)
        levels.append((label, float(base.mean()), float(tuned.mean())))
        falls.append((label, "", fall.value, fall.low, fall.high))
    fallen = sum(low > 0 for *_, low, _ in falls)
    matched = [place[neuron] for some in drawn for neuron in some[:top]]
    lost = sides["base"] - sides["tuned"]
    null = np.array([lost[:, [place[neuron] for neuron in some[:top]]].mean() for some in drawn])
    low, high = (float(end) for end in np.quantile(null, TAILS))
    levels.append((MATCHED, float(sides["base"][:, matched].mean()), float(sides["tuned"][:, matched].mean())))
    falls.append((MATCHED, "null", float(null.mean()), low, high))
    mean = bootstrap_mean(lost[:, [place[neuron] for neuron in neurons]].mean(axis=1))
    return Drop(
        figures.dumbbell(
            "levels", pd.DataFrame(levels, columns=["neuron", "base", "tuned"]), row="neuron", base="base", tuned="tuned",
            title="Before and after", x_title="mean activation", y_title="",
            caption="Activations after the nonlinearity. Each neuron by layer and number, with the tokens that it promotes. For toxic "
            "neurons the diamond should lie left of the "
            "circle; for equally active neurons both should be together.",
        ),
        figures.bars(
            "falls", pd.DataFrame(falls, columns=["neuron", "role", "fall", "low", "high"]), x="neuron", y="fall", role="role",
            low="low", high="high",
            horizontal=True, title="How far each falls", x_title="", y_title="fall of the activation",
            caption="Paired differences with 95 % intervals over prompts; an interval that reaches below 0 is no fall. The last bar is "
            "the null: neurons of the same "
            "layers that are about as active and write about as strongly, with the range of 40 draws.",
        ),
        fallen, len(neurons), mean, Interval(float(null.mean()), low, high, len(null)), permutation_p(mean.value, null), len(lost),
    )  # fmt: skip
