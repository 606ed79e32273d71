"""Where neurons fire in texts, and how often, for the page Toxic vectors.

One prompt is read while the visitor waits. Hundreds of texts are read by one job for all neurons near the probe, so that every later
click is answered at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st
import torch

from app import state
from app.answers.vectors import Ranked, name_of
from app.model_queue import model_queue
from app.settings import Source
from interp import Examples, ModelPair, max_activating
from interp.data.texts import challenge_prompts, neutral_prompts
from interp.models.model import Neuron
from interp.models.tokens import token_rows
from interp.neurons.example_results import Window
from interp.neurons.firing import LONGEST, firing_rates, selective_first
from interp.results import figures
from interp.results.result import Figure

TRIED, WINDOWS = 32, 5
# Lower than any activation, so that a prompt on which a neuron never fires is returned too.
ANYTHING = -1e9
KINDS = {"challenge": "challenge prompts", "neutral": "neutral prompts"}
Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Fired:
    """One prompt with one neuron's activation at each token, in both models; `whole`: the prompt was not cut."""

    window: Window
    whole: bool

    @property
    def top(self) -> float:
        """The largest absolute activation in either model, which has full colour in both strips."""
        return max(abs(value) for values in self.window.activations.values() for value in values)


@st.cache_data(show_spinner=False, max_entries=500)
def fired(source: Source, neuron: Neuron, prompt: str) -> Fired:
    """The activations in this prompt; without a prompt, in the shipped one on which the neuron fires most in the base model."""
    pair = state.load_pair(source)
    typed = bool(prompt.strip())
    if typed:
        examples = _fire(pair, [neuron], [prompt])
    elif neuron in (near := state.toxic_neurons(source)):
        examples = near_fired(source, tuple(near))
    else:
        examples = _fire(pair, [neuron], challenge_prompts()[:TRIED])
    return Fired(examples.of(*neuron, side="base")[0], not typed or examples.settings["tokens"] <= pair.base.context)


@st.cache_resource(show_spinner="Reading some prompts with both models …", max_entries=3)
def near_fired(source: Source, neurons: tuple[Neuron, ...]) -> Examples:
    """The same for all neurons near the probe at once, so that the next one is ready."""
    return _fire(state.load_pair(source), neurons, challenge_prompts()[:TRIED])


def _fire(pair: ModelPair, neurons: Sequence[Neuron], texts: list[str]) -> Examples:
    with model_queue.turn():
        return max_activating(pair, neurons, texts, top=1, before=pair.base.context, after=pair.base.context, above=ANYTHING)


@dataclass(frozen=True, eq=False)
class Survey:
    """The result of reading all texts that ship: examples of the neurons near the probe, and how often every neuron fires."""

    examples: Examples
    selective: tuple[Neuron, ...]
    rates: dict[tuple[str, str], dict[int, torch.Tensor]]


def survey(pair: ModelPair, neurons: Sequence[Neuron], step: Step) -> Survey:
    """Read every text that ships; a job, because it takes seconds to minutes."""
    texts = {"challenge": challenge_prompts(), "neutral": neutral_prompts()}
    layers = list(range(pair.base.n_layers))
    rates: dict[tuple[str, str], dict[int, torch.Tensor]] = {}
    for side, model in pair.sides.items():
        for kind, prompts in texts.items():
            step(f"how often neurons fire on {KINDS[kind]}, {side}", len(rates), 20)
            rows = token_rows(model, prompts, max_tokens=LONGEST, keep="last")
            rates[side, kind] = firing_rates(model, rows, [[len(row) - 1] for row in rows], layers)
    step("which neurons fire on provocation only", 4, 20)
    selective = tuple(selective_first(pair.base, neurons, texts["challenge"], texts["neutral"]))
    return Survey(examples(pair, neurons, lambda phrase, done, total: step(phrase, 6 + round(14 * done / total), 20)), selective, rates)


def examples(pair: ModelPair, neurons: Sequence[Neuron], step: Step) -> Examples:
    """Where these neurons fire most in the texts that ship, in both models."""
    about = 760
    step("reading texts", 0, about)
    return max_activating(
        pair, neurons, None, top=WINDOWS, batch_size=8, progress=lambda read: step(f"{read} texts read", min(read, about), about)
    )


def by_selectivity(survey: Survey, count: int) -> Ranked:
    """The neurons near the probe, ranked by how much more they fire on provoking than on neutral prompts."""
    neurons = survey.selective[:count]
    reasons = {
        f"fires on {KINDS[kind]}": [100 * float(survey.rates["base", kind][layer][index]) for layer, index in neurons] for kind in KINDS
    }
    return Ranked(neurons, pd.DataFrame(reasons), "percent")


def firing(survey: Survey, neuron: Neuron) -> Figure:
    """How often the neuron fires at the end of challenge and of neutral prompts, in both models, beside the others of its layer."""
    layer, index = neuron
    rows = [
        {"prompts": words, "share": float(survey.rates[side, kind][layer][index]), "who": side, "role": side}
        for side in ("base", "tuned") for kind, words in KINDS.items()
    ]  # fmt: skip
    null = f"layer {layer}, base (null)"
    rows += [
        {"prompts": words, "share": float(survey.rates["base", kind][layer].mean()), "who": null, "role": "null"}
        for kind, words in KINDS.items()
    ]
    return figures.bars(
        "firing", pd.DataFrame(rows), x="prompts", y="share", colour="who", role="role", title=f"How often {name_of(neuron)} fires",
        x_title="", y_title="share of prompts at whose end it fires", horizontal=False,
        caption="It fires where its input is above zero, read at the last token. Higher on challenge prompts than on neutral ones means "
        "that it answers to provocation; a tuned bar below the base bar, that it is silent more often. The null is the mean of its layer.",
    )  # fmt: skip
