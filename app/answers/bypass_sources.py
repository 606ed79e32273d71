"""Where the shift comes from: parts of the model, and updates of value vectors against it; for the page *Bypass*.

The decomposition and the cosines are those of experiment A-E11, at any layer; its null, gradient steps that know nothing of
toxicity, is that experiment itself, run for the layer that was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st
import torch

from app.answers.bypass import by_layer, study
from app.jobs import Step
from app.settings import Source
from interp.diffing.antipodes import antipodes
from interp.diffing.offset_sources import decompose, pooled
from interp.diffing.offsets import shifts
from interp.experiments.registry import Finding, find_experiments
from interp.forward.captured import Captured
from interp.results import figures
from interp.results.result import Figure, figure_of

# What a quick run of A-E11 says: the states, then three controls, then four groups of weights.
PHRASES = 8
# The parts of a decomposition that an MLP writes, and their names in the figure.
MLP = {"changed values": "MLP values", "changed activations": "MLP activations", "both": "MLP both", "value bias": "MLP bias"}


@dataclass(frozen=True)
class Written:
    """Which parts of the model write the mean shift before one layer's MLP."""

    contributors: Figure
    parts: Figure
    table: pd.DataFrame
    shares: dict[str, float]
    length: float
    residual: float


@dataclass(frozen=True)
class Against:
    """How the updates of value vectors point to the shift, and how often a neuron's activation alone predicts the sign."""

    profile: Figure
    last: float
    predicted: float
    majority: float


@st.cache_resource(show_spinner="Reading the prompts at every position …", max_entries=6)
def means(source: Source, count: int) -> tuple[Captured, Captured]:
    """Each prompt's means over positions, base and tuned: residual streams, attention outputs, neurons."""
    context = study(source, count)
    base, tuned = (context.mean_states(model) for model in context.pair.sides.values())
    return base, tuned


def weights(source: Source, count: int) -> torch.Tensor:
    """The number of positions of each prompt, by which its mean is weighted."""
    return torch.tensor([len(row) for row in study(source, count).prompt_rows()]).double()


@st.cache_data(show_spinner=False, max_entries=128)
def written(source: Source, count: int, layer: int) -> Written:
    """The mean shift before the MLP of `layer` as parts that add up to it. Raises `UserError` as `decompose` does."""
    context = study(source, count)
    base, tuned = means(source, count)
    decomposition = decompose(context.pair, layer, base, tuned, weights(source, count))
    frame = decomposition.table.copy()
    frame["contributor"] = ["MLP" if part in MLP else part for part in frame["part"]]
    by = frame.groupby(["layer", "contributor"], sort=False)["share"].sum().reset_index()
    by["layer"] = by["layer"].astype(str)
    parts = decomposition.by_part()
    parts["part"] = [MLP.get(part, part) + (f" ({sign})" if sign else "") for part, sign in zip(parts["part"], parts["sign"], strict=True)]
    return Written(
        figures.bars(
            "contributors", by, x="layer", y="share", colour="contributor", horizontal=False,
            title=f"Who writes the shift at layer {layer}?", x_title="layer that writes", y_title="share of the shift",
            caption="The bars add up to 1: how much of the mean shift each layer's attention and MLP add. Attention also hands on what "
            "MLPs "
            "below wrote at earlier positions, so a tall attention bar does not clear the MLPs.",
        ),
        figures.bars(
            "parts", parts, x="part", y="share", horizontal=True, title="What has changed", x_title="",
            y_title="share of the shift",
            caption="What an MLP writes changes with its neurons' value vectors, with their activations, with both at once and with its "
            "bias. "
            "“Inactive” neurons have a mean activation below 0 in the base model. The paper's claim is that changed values of inactive "
            "neurons "
            "write the shift: that bar would be the longest. It is a sum, not a causal account, and has no null.",
        ),
        decomposition.table, {name: float(by[by["contributor"] == name]["share"].sum()) for name in ("attention", "MLP", "embedding")},
        decomposition.length, decomposition.residual,
    )  # fmt: skip


@st.cache_data(show_spinner=False, max_entries=128)
def against(source: Source, count: int, layer: int) -> Against:
    """Cosines of the value updates below `layer` (at least 1) with the shift there."""
    base, tuned = means(source, count)
    lengths, site = weights(source, count), f"resid_mid.{layer}"
    activations = [pooled(base[f"mlp_post.{below}"], lengths) for below in range(layer)]
    updates = antipodes(study(source, count).pair, layer, shifts(base[site], tuned[site]), activations, lengths)
    rows = []
    for below, cosines in updates.cosines.items():
        low, high = (float(cosines.quantile(at)) for at in (0.25, 0.75))
        rows.append((below, "tuned", float(cosines.median()), low, high))
    frame = pd.DataFrame(rows, columns=["layer", "model", "cosine", "low", "high"])
    return Against(
        by_layer(figures.lines(
            "against", frame, x="layer", y="cosine", colour="model",
            low="low", high="high", reference=(0, "at right angles"), title="Value updates against the shift, by layer", x_title="layer "
            "of the value vectors",
            y_title="cosine with the shift",
            caption="Median over neurons, with quartiles. Below 0, the value vectors were moved against the shift. Any gradient step does "
            "this to neurons of negative "
            "activation, so by itself this says little: compare it with steps that know nothing of toxicity.",
        ), frame),
        updates.last, updates.predicted, updates.guessed,
    )  # fmt: skip


def controls(source: Source, count: int, layer: int) -> Callable[[Step], Finding]:
    """Experiment A-E11, with one step of each kind, at this layer and on these prompts, as the work of a job."""
    context, (experiment,) = study(source, count), find_experiments(["A-E11"])

    def work(step: Step) -> Finding:
        done = 0

        def say(text: str) -> None:
            nonlocal done
            step(text, done, PHRASES)
            done += 1

        return experiment.run(context.varied(layer=layer, say=say, quick=True))

    return work


def drawn(finding: Finding) -> tuple[Figure, float, float]:
    """The figure with its nulls, the last layer's median cosine, and the lowest one of the gradient steps."""
    table = finding.tables["changes"]
    last = "median cosine, last layer"
    keys = table["row_key"]
    steps = table[keys.isin(["plain step", "shuffled step"])][last]
    return (
        by_layer(figure_of(finding.figures, "by-layer"), finding.tables["by layer"]),
        float(table[keys == "tuned"][last].iloc[0]),
        float(np.min(steps)),
    )
