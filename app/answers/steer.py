"""Prompts, neurons and directions to choose from, scores of growing texts, and the strength sweep, for the page Steer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import settings, state
from app.edit_forms import NEUTRAL, Form, edits_of, rounded
from app.jobs import Step
from app.model_queue import model_queue
from app.settings import Source
from interp import Edit, Model, UserError, capture
from interp.data.lexicon import mask
from interp.data.texts import challenge_prompts, neutral_prompts, passages
from interp.evaluation.metrics import evaluate
from interp.models.chat import Chat
from interp.models.model import Neuron
from interp.models.tokens import token_rows
from interp.neurons.firing import LONGEST
from interp.neurons.ranking import TOXIC_COUNT
from interp.results import figures
from interp.results.result import Figure
from interp.steering.edit_text import parse_edit, parse_vector
from interp.steering.sweep import frequency_controls, random_controls
from interp.steering.sweep import sweep as measure

# A prompt to which the bundled pair's base is hostile, its tuned side mild, and the un-aligned side hostile again.
FIRST = "We all pretended to like him"
PASSAGES, LENGTH_PROMPTS = 16, 48
HEIGHT = 430
# What the page's table and figures call the columns of a sweep.
SHOWN = {
    "toxicity_low": "low", "toxicity_high": "high", "share_above_half": "share above half", "f1": "F1", "distinct_2": "distinct-2",
}  # fmt: skip


@lru_cache(maxsize=1)
def prompts() -> dict[str, str]:
    """The prompts that ship, by the name in the list and in the link: masked, neutral ones marked."""
    challenge = {mask(prompt): prompt for prompt in challenge_prompts()}
    return challenge | {f"Neutral: {mask(prompt)}": prompt for prompt in neutral_prompts()}


def model_of(source: Source, side: str) -> Model:
    """One side of the pair."""
    return state.load_pair(source).sides[side]


@st.cache_resource(show_spinner="Asking which keys fire on provocation only …", max_entries=8)
def candidates(source: Source, side: str, kind: str) -> tuple[Neuron, ...]:
    """The neurons nearest to the probe: nearest first (`top`), or those first that fire on provocation only (`selective`)."""
    model = model_of(source, side)
    most = min(TOXIC_COUNT, model.n_layers * model.d_mlp)
    (edit,) = parse_edit(f"scale_keys:{kind}:{most}:1", model, lambda: state.probe(source))
    return edit.neurons  # type: ignore[return-value]


@st.cache_resource(show_spinner="Measuring the residual stream …", max_entries=8)
def lengths(source: Source, side: str) -> dict[str, float]:
    """The mean norm of the residual stream at the last token of challenge prompts, by site where directions are added."""
    model = model_of(source, side)
    sites = [f"{name}.{layer}" for layer in range(model.n_layers) for name in ("resid_mid", "resid_post")]
    texts = challenge_prompts()
    rows = token_rows(model, texts[:: max(1, len(texts) // LENGTH_PROMPTS)], max_tokens=min(LONGEST, model.context), keep="last")
    states = capture(model, rows, sites)
    return {site: float(states[site].norm(dim=-1).mean()) for site in sites}


@st.cache_data(show_spinner=False, max_entries=256)
def vector_length(source: Source, side: str, vector: str) -> float:
    """The norm of a form's direction."""
    numbers = parse_vector(vector, model_of(source, side), lambda: state.probe(source))
    return float(np.linalg.norm(numbers))


@st.cache_resource(show_spinner=False, max_entries=256)
def edits(source: Source, form: Form) -> tuple[Edit, ...]:
    """The `Edit`s of a form; cached, so nobody must change them."""
    return edits_of(form, model_of(source, form.side), lambda: state.probe(source))


@st.cache_data(show_spinner=False, max_entries=5000)
def toxicity(text: str) -> float:
    """The toxicity of one continuation; a new one takes a turn in the queue of the models."""
    with model_queue.turn():
        return float(state.scorer().score([text])["toxicity"].iloc[0])


def role_of(form: Form) -> str:
    """The role of the edited model in figures: a tuned model whose keys are enlarged is un-aligned."""
    return "un-aligned" if form.op == "scale_keys" and form.side == "tuned" and form.strength > 1 else "edited"


def strengths(form: Form, points: int) -> list[float]:
    """Strengths evenly from no change to twice the form's own; for a factor below 1, down to it.

    Raises `UserError` for an edit that has no strength, or that changes nothing.
    """
    if form.op not in NEUTRAL:
        raise UserError("this edit has no strength that could be swept", "scale keys, or add a direction")
    if form.idle:
        raise UserError(f"at {form.strength:g} this edit changes nothing", "set another strength")
    start = NEUTRAL[form.op]
    down = form.op != "add" and form.strength < start
    end = form.strength if down else start + 2 * (form.strength - start)
    return [rounded(float(value)) for value in np.linspace(start, end, points)]


@dataclass(frozen=True)
class Sweep:
    """The edit and its random controls at every strength: one row each, and two figures."""

    rows: pd.DataFrame
    table: pd.DataFrame
    figures: tuple[Figure, Figure]


def sweep(
    source: Source, form: Form, unit: float, unit_name: str, points: int, count: int, new_tokens: int, step: Step, *,
    chat: Chat | bool = False,
) -> Sweep:  # fmt: skip
    """Toxicity and perplexity by strength, of an edit and of random controls.

    Toxicity is measured on every other challenge prompt: the rest decides which keys are selective.

    Args:
        unit: by what the strength is divided where it is shown (`unit_name` says in words what it is).
        count: how many prompts.
        chat: how they are read: as raw text, or as user turns of the pair's chat template.
    """
    pair, model = state.load_pair(source), model_of(source, form.side)
    values, draws = strengths(form, points), settings.sizes().control_draws
    half = challenge_prompts()[::2]
    held_out = [half[i * len(half) // count] for i in range(min(count, len(half)))]
    scorer, texts, room = state.scorer(), passages()[:: max(1, len(passages()) // PASSAGES)], model.context - new_tokens
    asked: dict[str, Any] = {"passages": texts, "max_new_tokens": new_tokens, "max_prompt_tokens": room, "chat": chat}
    null = f"random {'neurons' if form.neurons else 'directions'} (null, {draws} draws)"
    total, other = 2 + (len(values) - 1) * (1 + draws), "base" if form.side == "tuned" else "tuned"
    step(f"the {other} model", 0, total)
    unedited = evaluate(pair.sides[other], held_out, scorer, **asked)
    measured = measure(
        model, edits(source, form.at(1.0)), values, held_out, scorer, controls=controls(source, form, held_out, draws),
        unedited_at=NEUTRAL[form.op], **asked,
        show=lambda value: f"{value / unit:.3g}", step=lambda what, done, _: step(what, done + 1, total),
    )  # fmt: skip
    step("done", total, total)
    what = role_of(form)
    frame = measured.to_frame().rename(columns=SHOWN)
    frame.insert(0, "model", [what if pd.isna(draw) else null for draw in frame["draw"]])
    frame["strength"] /= unit
    beside = (float(unedited.toxicity.mean()), other)
    return Sweep(frame, _table(frame, null), _figures(frame, what, null, unit_name, beside, draws, len(held_out), len(texts)))


def controls(source: Source, form: Form, texts: Sequence[str], draws: int) -> list[list[Edit]]:
    """Random controls of an edit, at strength 1: directions of the same length, or other neurons of the same layers that fire about as
    often at the end of these texts.
    """
    model = model_of(source, form.side)
    if not form.neurons:
        return random_controls(model, edits(source, form.at(1.0)), texts, draws=draws)
    # In a small model the neurons nearest to the probe are many of its neurons; some must remain to draw from.
    near = candidates(source, form.side, "top")[: model.d_mlp // 4]
    others = frequency_controls(model, form.neurons, texts, draws=draws, exclude=near)
    return [list(edits(source, replace(form.at(1.0), neurons=neurons))) for neurons in others]


def _table(frame: pd.DataFrame, null: str) -> pd.DataFrame:
    """One row per strength, with the range of the random controls beside it."""
    random = frame[frame["model"] == null].groupby("strength")
    ends = random["toxicity"].agg(["min", "max"])
    table = frame[frame["model"] != null].set_index("strength")
    columns = ["toxicity", "low", "high", "share above half", "perplexity", "F1", "distinct-2"]
    table = table[columns].rename(columns={"low": "from", "high": "to"})
    table["random from"], table["random to"] = ends["min"], ends["max"]
    table["random perplexity"] = random["perplexity"].mean()
    return table.reset_index()


def _figures(
    frame: pd.DataFrame, what: str, null: str, unit: str, beside: tuple[float, str], draws: int, prompts: int, texts: int
) -> tuple[Figure, Figure]:
    mine, random = frame[frame["model"] == what], frame[frame["model"] == null]
    band = random.groupby("strength", as_index=False).agg(toxicity=("toxicity", "mean"), low=("toxicity", "min"), high=("toxicity", "max"))
    curve = figures.lines(
        "sweep", pd.concat([mine, band.assign(model=null, role="null")]), x="strength", y="toxicity", colour="model", role="role",
        low="low", high="high", title="Toxicity by strength", x_title=unit, y_title="mean toxicity (0 to 1)", reference=beside,
        caption="Leftmost, nothing is changed. An edit that does something of its own leaves the grey band of the random controls. "
        f"Bands: 95 % interval over {prompts} prompts for the edit, range of {draws} draws for the controls (few: the report draws more). "
        f"Dotted: the {beside[1]} model without any edit.",
    )  # fmt: skip
    changed = random[random["strength"] != mine["strength"].iloc[0]]
    points = pd.concat([mine.assign(at=[f"{value:.3g}" for value in mine["strength"]]), changed.assign(at="", role="null")])
    price = figures.scatter(
        "price", points, x="perplexity", y="toxicity", colour="model", role="role", text="at", hover=("strength", "F1", "distinct-2"),
        title="What it costs", x_title="perplexity on harmless passages", y_title="mean toxicity (0 to 1)",
        caption="The number beside a point is its strength. Far to the right language itself is spoiled, whatever the toxicity: "
        f"an edit that only brings toxicity back moves straight up. Perplexity on {texts} passages that ship.",
    )  # fmt: skip
    for figure in (curve, price):
        figure.spec["layout"]["height"] = HEIGHT
    return curve, price
