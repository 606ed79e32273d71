"""Rankings and descriptions of value vectors, for the page Toxic vectors.

All of it is computed from the weights in milliseconds, and cached; `app.answers.vectors_firing` reads texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import streamlit as st
import torch

from app import state
from app.settings import Source
from interp import ModelPair
from interp.diffing.weights import neuron_shift
from interp.evaluation.token_toxicity import row_toxicity
from interp.models.model import Neuron
from interp.neurons.projection import projection_for
from interp.neurons.ranking import explain_neuron, keys_at, rank_values, svd_directions, values_at
from interp.neurons.vocabulary import JUDGED_TOKENS, JUDGED_VECTORS, search, top_tokens, toxic_shares
from interp.results import figures
from interp.results.result import Figure
from interp.stats.nulls import matched_neurons, random_neurons

LISTED, USUAL, DRAWS, OTHERS, SCORED = 8, 20, 20, 100, 20
MEASURES = [
    "norm in base", "norm in tuned", "cosine, base to tuned", "random neurons: median", "moved, of its norm", "random neurons: median",
    "random: middle 90 %", "moved more than",
]  # fmt: skip


def name_of(neuron: Neuron) -> str:
    """The name of a neuron, such as `5.770`."""
    return f"{neuron[0]}.{neuron[1]}"


@dataclass(frozen=True)
class Ranked:
    """Ranked neurons, and the columns with the values by which they are ranked; `unit` is that of every such column."""

    neurons: tuple[Neuron, ...]
    reasons: pd.DataFrame
    unit: Literal["", "cosine", "percent"] = ""


@st.cache_resource(show_spinner="Ranking the value vectors …", max_entries=3)
def places(source: Source) -> dict[Neuron, tuple[int, float]]:
    """Every neuron's place in the ranking by the probe (from 1), and its cosine with it."""
    ranking = rank_values(state.load_pair(source).base, state.probe(source).direction, top=None)
    return {
        neuron: (place, cosine) for place, (neuron, cosine) in enumerate(zip(ranking.neurons, ranking.cosines.tolist(), strict=True), 1)
    }


@st.cache_resource(show_spinner="Comparing every neuron across the pair …", max_entries=3)
def shifts(source: Source) -> pd.DataFrame:
    """How far tuning moved every neuron's key and value, by layer and number."""
    pair = state.load_pair(source)
    every = [(layer, index) for layer in range(pair.base.n_layers) for index in range(pair.base.d_mlp)]
    return neuron_shift(pair, every).set_index(["layer", "neuron"])


@st.cache_data(show_spinner=False, max_entries=50)
def by_probe(source: Source, count: int) -> Ranked:
    """The value vectors with the largest cosine with the probe."""
    return Ranked(tuple(rank_values(state.load_pair(source).base, state.probe(source).direction, top=count).neurons), pd.DataFrame())


@st.cache_data(show_spinner=False, max_entries=200)
def by_likeness(source: Source, neuron: Neuron, count: int) -> Ranked:
    """The value vectors with the largest cosine with that of one neuron, itself first."""
    base = state.load_pair(source).base
    ranking = rank_values(base, values_at(base, [neuron])[0], top=count)
    return Ranked(tuple(ranking.neurons), pd.DataFrame({f"cosine with {name_of(neuron)}": ranking.cosines.tolist()}), "cosine")


@st.cache_data(show_spinner=False, max_entries=200)
def by_word(source: Source, word: str, count: int) -> Ranked:
    """The value vectors that have this word among the tokens that they promote most."""
    hits = search(state.index(source), word, limit=count, masked=False)
    reasons = hits[["token", "rank"]].rename(columns={"token": "writes"})
    return Ranked(tuple(zip(hits["layer"].tolist(), hits["neuron"].tolist(), strict=True)), reasons)


@st.cache_data(show_spinner=False, max_entries=200)
def described(source: Source, neurons: tuple[Neuron, ...]) -> pd.DataFrame:
    """One row per neuron: its promoted tokens, its cosine with the probe, and how far tuning moved its key and value."""
    pair, where = state.load_pair(source), places(source)
    words = [words_of(source, neuron) for neuron in neurons]
    shift = shifts(source).loc[list(neurons)]
    return pd.DataFrame({
        "neuron": [name_of(neuron) for neuron in neurons],
        "cosine with the probe": [where[neuron][1] for neuron in neurons],
        "promotes": [" · ".join(word.strip() or "␣" for word in row[:LISTED]) for row in words],
        "hostile words": hostile(words),
        "value kept": _cosines(pair, neurons, values_at), "value moved": (100 * shift["value_shift"]).tolist(),
        "key kept": _cosines(pair, neurons, keys_at), "key moved": (100 * shift["key_shift"]).tolist(),
    })  # fmt: skip


def words_of(source: Source, neuron: Neuron) -> list[str]:
    """The ten tokens that a neuron of the base model promotes most."""
    return state.index(source).to_frame(*neuron, masked=False)["token"].tolist()[:JUDGED_TOKENS]


def hostile(words: Sequence[Sequence[str]]) -> list[int]:
    """How many tokens of each row are profanity, slurs or insults on the list that ships."""
    return [round(JUDGED_TOKENS * share) for share in toxic_shares(list(map(list, words))).tolist()]


@st.cache_data(show_spinner="Scoring the words in sentences …", max_entries=200)
def in_sentences(source: Source, neurons: tuple[Neuron, ...]) -> tuple[list[float], float]:
    """How much more toxic each neuron's top tokens make a sentence than everyday words do, and the mean of random neurons' tokens."""
    drawn = random_neurons(state.load_pair(source).base, neurons[:SCORED], seed=0, exclude=state.toxic_neurons(source))
    values = row_toxicity([words_of(source, neuron) for neuron in (*neurons, *drawn)], state.scorer())
    return values[: len(neurons)].tolist(), float(values[len(neurons) :].mean())


@st.cache_data(show_spinner=False, max_entries=10)
def projection(source: Source) -> str:
    """How value vectors are projected on the vocabulary, in words."""
    return str(state.index(source).projection)


def _cosines(pair: ModelPair, neurons: Sequence[Neuron], read: Callable[[Any, Sequence[Neuron]], torch.Tensor]) -> list[float]:
    return torch.cosine_similarity(read(pair.base, neurons).double(), read(pair.tuned, neurons).double(), dim=1).tolist()


@dataclass(frozen=True)
class Hostility:
    """How many hostile words the value vectors nearest to the probe promote, as experiment A-E2 counts them, with the null."""

    vectors: int
    tokens: int
    majority: int
    share: float
    null: float


@st.cache_data(show_spinner=False, max_entries=10)
def hostility(source: Source) -> Hostility:
    """The share of listed words among the top tokens of the nearest value vectors, and among those of matched random neurons."""
    base, near = state.load_pair(source).base, state.toxic_neurons(source)
    shares = toxic_shares([words_of(source, neuron) for neuron in near[:JUDGED_VECTORS]])
    drawn = [neuron for seed in range(DRAWS) for neuron in matched_neurons(base, near[:JUDGED_VECTORS], seed=seed, exclude=near)]
    null = float(toxic_shares([words_of(source, neuron) for neuron in drawn]).mean())
    return Hostility(len(near[:JUDGED_VECTORS]), JUDGED_TOKENS, int((shares > 0.5).sum()), float(shares.mean()), null)


@dataclass(frozen=True)
class Written:
    """The tokens that one neuron promotes and suppresses, by side: (token, change of its logit per unit of activation)."""

    promoted: dict[str, list[tuple[str, float]]]
    suppressed: dict[str, list[tuple[str, float]]]

    def same(self) -> int:
        """How many of the base model's promoted tokens the tuned model's value vector still promotes most."""
        first, second = ({token for token, _ in self.promoted[side]} for side in ("base", "tuned"))
        return len(first & second)


@st.cache_data(show_spinner=False, max_entries=500)
def written(source: Source, neuron: Neuron) -> Written:
    """The value vector of each side, read through the unembedding of that side."""
    by_end: list[dict[str, list[tuple[str, float]]]] = []
    for largest in (True, False):
        sides = {}
        for side, model in state.load_pair(source).sides.items():
            way = projection_for(model)
            tokens = top_tokens(model, values_at(model, [neuron]), top=JUDGED_TOKENS, largest=largest, projection=way)
            sides[side] = list(zip(tokens.words[0], tokens.scores[0].tolist(), strict=True))
        by_end.append(sides)
    return Written(*by_end)


@dataclass(frozen=True)
class Changed:
    """How far tuning moved the key and the value of one neuron, beside random other neurons of its layer."""

    table: pd.DataFrame
    figure: Figure
    moved: float
    cosine: float
    percentile: float
    others: int


@st.cache_data(show_spinner=False, max_entries=500)
def changed(source: Source, neuron: Neuron) -> Changed:
    """Cosine, norm and relative change of key and value across the pair, beside random neurons of the same layer."""
    pair = state.load_pair(source)
    rows = explain_neuron(pair, *neuron, masked=False).set_index("side")
    others = random_neurons(pair.base, [neuron] * min(OTHERS, pair.base.d_mlp - 1), seed=0)
    shift = shifts(source).loc[[neuron, *others]]
    moved, null = shift.iloc[0], shift.iloc[1:]
    cosines = {"key": _cosines(pair, others, keys_at), "value": _cosines(pair, others, values_at)}
    columns: dict[str, list[str]] = {"measure": MEASURES}
    for kind in ("key", "value"):
        drawn = 100 * null[f"{kind}_shift"]
        columns[kind] = [
            *(f"{rows.loc[side, f'{kind}_norm']:.4f}" for side in ("base", "tuned")),
            f"{rows.loc['tuned', f'{kind}_cosine']:.6f}", f"{np.median(cosines[kind]):.6f}", f"{100 * moved[f'{kind}_shift']:.3f} %",
            f"{drawn.median():.3f} %", f"{drawn.quantile(0.05):.3f}–{drawn.quantile(0.95):.3f}", f"{moved[f'{kind}_percentile']:.0f} %",
        ]  # fmt: skip
    title = name_of(neuron)
    points = pd.DataFrame({
        "key": 100 * shift["key_shift"].to_numpy(), "value": 100 * shift["value_shift"].to_numpy(),
        "neuron": [title, *map(name_of, others)],
        "role": ["", *["null"] * len(others)],
        "who": [f"neuron {title}", *[f"random neurons of layer {neuron[0]} (null)"] * len(others)],
    }).iloc[::-1]  # fmt: skip
    figure = figures.scatter(
        "moved", points, x="key", y="value", colour="who", role="role", hover=["neuron"],
        title=f"How far tuning moved the key and the value of {title}",
        x_title="key moved, % of its norm", y_title="value moved, % of its norm",
        caption=f"Every circle is one of {len(others)} random neurons of the same layer. A point far to the upper right of the circles "
        "would mean that tuning went for this neuron; a point among them means that it did not.",
    )  # fmt: skip
    return Changed(
        pd.DataFrame(columns),
        figure,
        float(moved["value_shift"]),
        float(rows.loc["tuned", "value_cosine"]),
        float(moved["value_percentile"]),
        len(others),
    )


@st.cache_data(show_spinner=False, max_entries=50)
def shared(source: Source, count: int) -> pd.DataFrame:
    """The three directions that the nearest value vectors share, beside those of as many random neurons of the same layers."""
    base, direction = state.load_pair(source).base, state.probe(source).direction
    near = state.toxic_neurons(source)[:count]
    groups = {
        "nearest to the probe": near,
        "random neurons (null)": random_neurons(base, near, seed=0, exclude=state.toxic_neurons(source)),
    }
    parts = []
    for name, neurons in groups.items():
        directions = svd_directions(base, neurons, count=min(3, len(neurons)), towards=direction)
        words = top_tokens(base, directions, top=JUDGED_TOKENS, projection=projection_for(base)).words
        parts.append(pd.DataFrame({
            "value vectors": name, "direction": [f"U{place}" for place in range(len(directions))],
            "cosine with the probe": torch.cosine_similarity(directions, direction[None], dim=1).tolist(),
            "hostile words": hostile(words),
            "promotes": [" · ".join(word.strip() or "␣" for word in row) for row in words],
        }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)
