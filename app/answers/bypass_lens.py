"""The logit lens of one prompt and one token, in both models, for the page *Bypass*."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st

from app import state
from app.answers.bypass import light, random_changes, states, study
from app.settings import Source
from interp import Model, UserError
from interp.data.lexicon import is_toxic_word
from interp.forward.capture import capture
from interp.lens.logit_lens import logit_lens
from interp.lens.next_tokens import next_tokens
from interp.models.chat import Chat, prompt_rows
from interp.models.tokens import token_rows
from interp.results import figures
from interp.results.result import Figure

EXAMPLES, OFFERED, LISTED = 12, 6, 3
NULL = "random changes of equal norm (null)"


@dataclass(frozen=True)
class Candidate:
    """A token that may come next, and its probability in both models."""

    token: int
    text: str
    base: float
    tuned: float


@dataclass(frozen=True)
class Curve:
    """The probability of one token by half layer, and its final value in each model (for small pairs also under random changes)."""

    figure: Figure
    final: dict[str, float]
    ranks: dict[str, int]
    step: str
    rise: float


@st.cache_data(show_spinner=False, max_entries=16)
def examples(source: Source, count: int) -> list[str]:
    """The prompts on which the base model's likeliest next token loses most probability by tuning, toxic tokens first."""
    context = study(source, count)
    base, tuned = context.pair.sides.values()
    site = f"resid_post.{base.n_layers - 1}"
    before, after = (side[site] for side in states(source, count))
    likely = next_tokens(base, before, [0] * len(before), top=1).top[:, 0].tolist()
    lost = (next_tokens(base, before, likely).log_probs.exp() - next_tokens(tuned, after, likely).log_probs.exp()).tolist()
    # The lens reads prompts as they are typed, so one that had to be cut for the context is no example.
    whole = [len(row) < base.context - context.new_tokens for row in context.prompt_rows()]
    toxic = [is_toxic_word(base.tokenizer.decode([token])) for token in likely]
    order = sorted(range(len(lost)), key=lambda place: (not toxic[place], -lost[place]))
    return [context.prompts[place] for place in order if whole[place]][:EXAMPLES] or context.prompts[:EXAMPLES]


@st.cache_data(show_spinner=False, max_entries=128)
def tables(source: Source, prompt: str, chat: Chat | bool = False) -> dict[str, pd.DataFrame]:
    """The likeliest tokens of each model after every half layer. Raises `UserError` for a prompt that does not fit."""
    sides = state.load_pair(source).sides
    return {name: logit_lens(model, [prompt], top=OFFERED, chat=chat).top(masked=False) for name, model in sides.items()}


@st.cache_data(show_spinner=False, max_entries=128)
def candidates(source: Source, prompt: str, chat: Chat | bool = False) -> list[Candidate]:
    """The likeliest next tokens of both models, the base model's first. Raises `UserError` for a prompt that does not fit."""
    pair = state.load_pair(source)
    lasts = [table[table["point"] == table["point"].max()] for table in tables(source, prompt, chat).values()]
    chosen = list(dict.fromkeys(token for last in lasts for token in last["id"].tolist()))
    row, site = prompt_rows(pair.base, [prompt], chat), f"resid_post.{pair.base.n_layers - 1}"
    base, tuned = (
        next_tokens(model, capture(model, row, [site])[site].expand(len(chosen), -1), chosen).log_probs.exp().tolist()
        for model in pair.sides.values()
    )
    decode = pair.base.tokenizer.decode
    return [Candidate(token, decode([token]), a, b) for token, a, b in zip(chosen, base, tuned, strict=True)]


def one_token(model: Model, word: str) -> int:
    """The token of a typed word, after a space or as it stands. Raises `UserError` where the word is several tokens."""
    pieces: list[int] = []
    for text in (" " + word.strip(), word):
        pieces = token_rows(model, [text], bos=False)[0]
        if len(pieces) == 1:
            return pieces[0]
    listed = " | ".join(model.tokenizer.decode([piece]) for piece in pieces[:8])
    raise UserError(
        f"{word[:40]!r} is {len(pieces)} tokens for this model: {listed}", "give a word that is one token, or one of these pieces"
    )


@st.cache_data(show_spinner=False, max_entries=256)
def curve(source: Source, prompt: str, token: int, chat: Chat | bool = False) -> Curve:
    """The probability of one token after every half layer, in both models."""
    pair = state.load_pair(source)
    lenses = {name: logit_lens(model, [prompt], [token], chat=chat) for name, model in pair.sides.items()}
    curves = {name: lens.probabilities[0].numpy().astype(float) for name, lens in lenses.items()}
    if light(pair):
        drawn = [logit_lens(model, [prompt], [token], chat=chat).probabilities[0].numpy() for model in random_changes(source)]
        curves[NULL] = np.mean(drawn, axis=0)
    labels, steps = lenses["base"].labels, lenses["base"].steps
    frame = pd.DataFrame(
        [
            (name, "null" if name == NULL else name, at / 2, labels[at], value)
            for name, values in curves.items()
            for at, value in enumerate(values)
        ],
        columns=["model", "role", "layers done", "point", "probability"],
    )
    rises = lenses["base"].rises[0, 1:]
    best = int(rises.argmax()) + 1
    figure = figures.lines(
        "lens", frame, x="layers done", y="probability", colour="model", role="role", title="The token along the stack", markers=True,
        shaded=[(at / 2, (at + 1) / 2, "MLP steps") for at in range(1, len(steps), 2)],
        x_title="layers done", y_title="probability of the token",
        caption="Each point is what the model would say if it ended there; half layers are after attention. A late rise in the base model "
        "that is lower in the tuned one is the word being bypassed. "
        "The lens reads early states with the last layer's unembedding, which they are not made for: low values "
        "there do not show absence. One prompt has no interval.",
    )  # fmt: skip
    return Curve(
        figure, {name: float(values[-1]) for name, values in curves.items()},
        {name: int(lens.ranks[0, -1]) for name, lens in lenses.items()},
        f"{'MLP' if steps[best] == 'mlp' else 'attention'} of layer {(best - 1) // 2}", float(rises[best - 1]),
    )  # fmt: skip


@st.cache_data(show_spinner=False, max_entries=128)
def likeliest(source: Source, prompt: str, chat: Chat | bool = False) -> pd.DataFrame:
    """The likeliest tokens after each half layer: point, and one column per model with tokens and probabilities."""
    columns: dict[str, list[str]] = {}
    for name, every in tables(source, prompt, chat).items():
        table = every[every["rank"] <= LISTED]
        points = table[["point", "step"]].drop_duplicates()
        columns.setdefault("after", [_place(step, point) for point, step in points.itertuples(index=False)])
        columns[name] = [
            "   ".join(f"{row.token} {row.probability:.0%}" for row in part.itertuples()) for _, part in table.groupby("point")
        ]
    return pd.DataFrame(columns)


def _place(step: str, point: int) -> str:
    """What came just before a point of the lens, with its layer; a layer has two points, and the embedding is point 0."""
    layer = (point - 1) // 2
    return {"embed": "the embedding", "attention": f"attention {layer}", "mlp": f"MLP {layer}"}[step]
