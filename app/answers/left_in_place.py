"""The second step of the argument: keys and values before and after tuning."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import streamlit as st
import torch

from app import state
from app.answers.argument import Step, in_place, sized
from app.settings import Source
from interp.diffing.weights import neuron_shift
from interp.neurons.ranking import keys_at, values_at
from interp.results import figures
from interp.stats.nulls import matched_neurons

NULL = "another neuron's value (null)"


@st.cache_data(show_spinner=False, max_entries=4)
def left_in_place(source: Source) -> Step:
    """Cosines of the toxic keys and values before and after tuning, beside other neurons' values."""
    pair, neurons = state.load_pair(source), state.toxic_neurons(source)
    # The null takes as many other neurons of each layer, which a narrow layer may not have.
    per_layer, toxic = dict.fromkeys(range(pair.base.n_layers), 0), []
    for layer, index in neurons:
        if 2 * (per_layer[layer] + 1) <= pair.base.d_mlp:
            per_layer[layer] += 1
            toxic.append((layer, index))
    others = matched_neurons(pair.base, toxic, seed=0)
    compared = {
        "key": (keys_at(pair.base, toxic), keys_at(pair.tuned, toxic)),
        "value": (values_at(pair.base, toxic), values_at(pair.tuned, toxic)),
        NULL: (values_at(pair.base, toxic), values_at(pair.tuned, others)),
    }
    cosines = {name: torch.cosine_similarity(a.double(), b.double(), dim=1).cpu().tolist() for name, (a, b) in compared.items()}
    frame = pd.DataFrame(
        [
            (rank, f"{layer}.{index}", name, "null" if name == NULL else "", value)
            for name, some in cosines.items()
            for rank, ((layer, index), value) in enumerate(zip(toxic, some, strict=True), start=1)
        ],
        columns=["rank", "neuron", "vector", "role", "cosine"],
    )  # fmt: skip
    shift = neuron_shift(pair, toxic)
    keys, values, _ = cosines.values()
    least = min(*keys, *values)
    # Rounded down, so that a cosine below 1 is not printed as 1.
    floor = math.floor(least * 1e5) / 1e5
    claim = f"Of the {len(toxic)} neurons nearest to the probe, no key or value has a cosine below {floor:.5f} with itself"
    figure = figures.scatter(
        "left-in-place", frame, x="rank", y="cosine", colour="vector", role="role", hover=("neuron",), size=7,
        title="The same vector before and after tuning",
        x_title="neurons, nearest to the probe first", y_title="cosine, base with tuned",
        caption="Vectors that tuning had rewritten would lie among the open circles; those that it left in place lie at 1.",
    )  # fmt: skip
    values_moved, keys_moved = shift["value_percentile"].mean(), shift["key_percentile"].mean()
    return replace(
        in_place(),
        claim=f"{claim} before tuning{': nothing was rewritten.' if least > 0.99 else '.'}",
        chance="With another neuron's vector the cosine is near 0. Any short training moves weights little, so also: the toxic values "
        f"moved more than {values_moved:.0f} % of all values, the keys more than {keys_moved:.0f} % of all; a random choice gives 50 %.",
        figure=sized(figure),
    )
