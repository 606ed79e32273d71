"""The pair in numbers, one prompt by three models, and the argument in five figures, for the first page.

What needs many forwards is a job, whose result is a value; the page draws values only. Where there is a report of this very pair, its
results are used instead of measuring on few prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import jobs, settings, state
from app.answers.summary import (
    ARGUED,
    BOTH,
    RANDOM,
    UNALIGNED,
    Measured,
    argued_by_report,
    job_keys,
    keys_by_report,
    measured_by_report,
    reported,
)
from app.jobs import Step
from app.settings import Source
from interp import Edit, UserError
from interp.data.texts import challenge_prompts, passages
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.lens.logit_lens import logit_lens
from interp.models.chat import Chat
from interp.models.model import Neuron
from interp.neurons.firing import firing_rates
from interp.neurons.ranking import TOXIC_COUNT, rank_values
from interp.results.result import Result
from interp.stats.intervals import bootstrap_mean
from interp.stats.nulls import frequency_matched
from interp.steering.edit_text import parse_edit
from interp.steering.unalign import FACTOR, KEYS

NEW_TOKENS, TOP = 20, 5
MOST_NAME = 300
EXAMPLE = "a folder, or a hub id such as openai-community/gpt2-medium"
_ready: set[Source] = set()


@dataclass(frozen=True)
class Next:
    """The likeliest next tokens of one model with their probabilities; raw here and masked when they are drawn."""

    rows: list[tuple[str, float]]


def is_ready(source: Source) -> bool:
    """Whether the keys of the un-aligned model are known, computed or from a report of this pair."""
    return source in _ready or keys_by_report(source) is not None


def unaligned(source: Source) -> tuple[Edit, ...]:
    """The un-aligning edit: the tuned model's toxic keys that fire on provocation rather than on plain text, enlarged.

    The report of this pair names them, if there is one, so that its words and what is said here are of one model.
    """
    known = keys_by_report(source)
    return _selective(source) if known is None else (Edit.scale_keys(known, FACTOR),)


@st.cache_resource(show_spinner=False, max_entries=3)
def _selective(source: Source) -> tuple[Edit, ...]:
    pair = state.load_pair(source)
    size = min(KEYS, pair.tuned.n_layers * pair.tuned.d_mlp)
    edits = tuple(parse_edit(f"scale_keys:selective:{size}:{FACTOR:g}", pair.tuned, lambda: state.probe(source)))
    _ready.add(source)
    return edits


def keys(source: Source) -> list[Neuron]:
    """The neurons whose keys the un-aligned model has enlarged."""
    return [neuron for edit in unaligned(source) for neuron in edit.neurons or () if isinstance(neuron, tuple)]


def next_tokens(source: Source, prompt: str, role: str, chat: Chat | bool = False) -> Next:
    """The likeliest next tokens of one of the three models. Raises `UserError` for a prompt that does not fit."""
    return _next(source, prompt, "base" if role == "base" else "tuned", tuple(keys(source)) if role == "un-aligned" else (), chat)


@st.cache_data(show_spinner=False, max_entries=300)
def _next(source: Source, prompt: str, side: str, enlarged: tuple[Neuron, ...], chat: Chat | bool) -> Next:
    edits = (Edit.scale_keys(list(enlarged), FACTOR),) if enlarged else ()
    table = logit_lens(state.load_pair(source).sides[side], [prompt], top=TOP, edits=edits, chat=chat).top(masked=False)
    last = table[table["point"] == table["point"].max()]
    return Next(list(zip(last["token"], last["probability"], strict=True)))


@st.cache_data(show_spinner=False, max_entries=500)
def toxicity(text: str) -> float:
    """The toxicity of a continuation without its prompt, 0 to 1."""
    return float(state.scorer().score([text])["toxicity"].iloc[0]) if text.strip() else 0.0


def measure(source: Source, step: Step) -> Measured:
    """Toxicity and perplexity of base, tuned, un-aligned, edited base and random keys, on some of the held-out prompts (a job)."""
    sizes = settings.sizes()
    draws = sizes.control_draws
    total = 5 + draws
    step("the keys that fire on provocation", 0, total)
    pair, edits, chosen = state.load_pair(source), unaligned(source), keys(source)
    # The odd prompts decide which keys are scaled.
    prompts = challenge_prompts()[::2][:: sizes.prompt_step]
    context = ToxicityContext(pair, state.probe(source), state.scorer(), prompts, passages()[:: sizes.passage_step], new_tokens=NEW_TOKENS)
    rows, scores = [], {}
    models = (
        ("base", "base", pair.base, ()), ("tuned", "tuned", pair.tuned, ()), ("un-aligned", UNALIGNED, pair.tuned, edits),
        ("edited", BOTH, pair.base, edits),
    )  # fmt: skip
    for place, (role, name, model, applied) in enumerate(models):
        step(name, 1 + place, total)
        scores[role] = context.toxicity(model, applied)
        mean = bootstrap_mean(scores[role])
        rows.append((role, name, mean.value, mean.low, mean.high, context.perplexity(model, applied).value))
    token_rows = context.prompt_rows()
    rates = firing_rates(pair.tuned, token_rows, [[len(row) - 1] for row in token_rows], sorted({layer for layer, _ in chosen}))
    near = rank_values(pair.tuned, context.direction, top=min(TOXIC_COUNT, pair.tuned.n_layers * pair.tuned.d_mlp)).neurons
    drawn, prices = [], []
    for draw in range(draws):
        step(f"random keys, draw {draw + 1} of {draws}", 5 + draw, total)
        random = (Edit.scale_keys(frequency_matched(chosen, rates, seed=draw, exclude=_spare(near, chosen, pair.tuned.d_mlp)), FACTOR),)
        drawn.append(context.toxicity(pair.tuned, random))
        prices.append(context.perplexity(pair.tuned, random).value)
    mean = bootstrap_mean(np.mean(drawn, axis=0))
    rows.append(("null", RANDOM, mean.value, mean.low, mean.high, float(np.mean(prices))))
    shows = int(((scores["base"] > 0.5) & (scores["tuned"] < 0.5) & (scores["un-aligned"] > 0.5)).sum())
    frame = pd.DataFrame(rows, columns=["role", "model", "toxicity", "low", "high", "perplexity"])
    return Measured(frame, len(context.prompts), len(context.passages), draws, shows, "now")


def _spare(near: list[Neuron], chosen: list[Neuron], d_mlp: int) -> list[Neuron]:
    """The toxic neurons, which random ones must not be drawn from, unless a narrow layer would then have too few left."""
    layers = {layer for layer, _ in chosen}
    enough = all(sum(at == layer for at, _ in {*near, *chosen}) + KEYS <= d_mlp for layer in layers)
    return near if enough else []


def argue(source: Source, step: Step) -> dict[str, Result | UserError]:
    """The experiments behind the figures, on few prompts and with few controls (a job); the error of one that cannot be run."""
    pair, sizes = state.load_pair(source), settings.sizes()
    prompts, texts = challenge_prompts()[:: sizes.argued_step], passages()[:: sizes.passage_step]
    context = ToxicityContext(pair, state.probe(source), state.scorer(), prompts, texts, draws=6, quick=True)
    results: dict[str, Result | UserError] = {}
    for place, name in enumerate(ARGUED):
        known = reported(source, name)
        item = EXPERIMENTS[name]
        step(item.title, place, len(ARGUED))
        context.say = partial(_say, step, item.title, place)
        try:
            results[name] = known if known is not None else run_experiment(item, context)
        except UserError as error:
            results[name] = error
    return results


def _say(step: Step, title: str, place: int, phrase: str) -> None:
    step(f"{title}: {phrase}", place, len(ARGUED))


def begin(source: Source) -> None:
    """Start both jobs, unless they have been started or a report has their results. Raises `UserError` where too many jobs wait."""
    first, second = job_keys(source)
    if jobs.runner.find(first) is None and measured_by_report(source) is None:
        jobs.runner.start(first, "toxicity and perplexity", lambda step: measure(source, step))
    if jobs.runner.find(second) is None and argued_by_report(source) is None:
        jobs.runner.start(second, "the argument", lambda step: argue(source, step))


@st.cache_data(show_spinner=False, max_entries=4)
def manifest(source: Source, short: bool) -> tuple[pd.DataFrame, str]:
    """The pair's manifest as a table of both sides, and the versions of the libraries; with `short`, paths as their last name."""
    pair = state.load_pair(source)
    record = pair.manifest()
    sides = {}
    for side, model in pair.sides.items():
        lines = dict(record[side])
        lines["path"] = Path(str(lines["path"])).name if short else str(lines["path"])
        files = lines.pop("files", {})
        tokenizer = model.tokenizer
        lines |= {f"sha256 of {name}": value for name, value in files.items()}
        lines |= {
            "context": model.context, "tokenizer": type(tokenizer).__name__, "tokens": len(tokenizer),
            "end of text": str(tokenizer.eos_token),
        }  # fmt: skip
        sides[side] = {key.replace("_", " "): _text(value) for key, value in lines.items()}
    names = list(dict.fromkeys(name for lines in sides.values() for name in lines))
    frame = pd.DataFrame({"": names, **{side: [lines.get(name, "–") for name in names] for side, lines in sides.items()}})
    return frame, ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def named(side: str, text: str) -> str:
    """A typed name of a model, without spaces around it. Raises `UserError` for text that cannot be one."""
    name = text.strip()
    if not name:
        raise UserError(f"the {side} model is not named", f"give {EXAMPLE}")
    if len(name) > MOST_NAME or "::" in name or not name.isprintable():
        raise UserError(f"{name[:80]!r} cannot name the {side} model", f"give {EXAMPLE}")
    return name
