"""What the pages ask of `interp`, and the values that come back, kept by what was asked.

A page is a script that Streamlit runs anew each time; a class that it defined could not be pickled into the cache, so
values and the functions that make them live here.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import streamlit as st

from app import state
from interp import Edit, Model, generate
from interp.lens import lens_table, logit_lens
from interp.tokens import token_rows

TOP = 5


@dataclass(frozen=True)
class Question:
    """What the form asks for."""

    prompt: str
    keys: int
    factor: float
    new_tokens: int


@dataclass(frozen=True)
class Side:
    """What one column shows; words are raw here and masked when they are laid out."""

    role: str
    about: str
    continuation: str
    toxicity: float
    next_tokens: pd.DataFrame


@st.cache_data(show_spinner="Asking the models …", max_entries=200)
def answer(source: tuple[str, str] | None, question: Question) -> list[Side]:
    """The three columns: greedy continuation, its toxicity, and what the model says next."""
    pair = state.load_pair(source)
    edits = [Edit.scale_keys(state.toxic_neurons(source)[: question.keys], question.factor)] if question.keys else []
    scaled = f"{question.keys} toxic key{'s' * (question.keys != 1)} × {question.factor:g}" if edits else "no key is scaled"
    columns: list[tuple[str, str, Model, list[Edit]]] = [
        ("base", "before preference tuning", pair.base, []), ("tuned", "after preference tuning", pair.tuned, []),
        ("un-aligned", scaled, pair.tuned, edits),
    ]  # fmt: skip
    texts = [generate(model, [question.prompt], max_new_tokens=question.new_tokens, edits=held)[0] for _, _, model, held in columns]
    # The scorer reads the continuation alone, as the report's experiments do.
    scores = state.scorer().score(texts)["toxicity"].tolist()
    found = []
    for (role, about, model, held), text, score in zip(columns, texts, scores, strict=True):
        table = lens_table(model, question.prompt, TOP, edits=held, masked=False)
        last = table[table["point"] == table["point"].max()]
        found.append(Side(role, about, text, score, last[["token", "probability", "id"]].reset_index(drop=True)))
    return found


@st.cache_data(show_spinner=False, max_entries=400)
def lens_lines(source: tuple[str, str] | None, prompt: str, token: int) -> pd.DataFrame:
    """The probability of one token after every half layer of both models: columns model, point, probability."""
    pair, frames = state.load_pair(source), []
    for name, model in pair.sides.items():
        lens = logit_lens(model, token_rows(model, [prompt]), [token])
        frames.append(pd.DataFrame({"model": name, "point": lens.labels, "probability": lens.probabilities[0].tolist()}))
    return pd.concat(frames, ignore_index=True)
