"""The three cards of one prompt: its continuations by base, tuned and un-aligned, from the written report or from the models.

The first visitor's cards are drawn before torch has been imported, so what needs torch is imported where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import shell, show, state
from app.answers.summary import Continuation
from app.importing import gate
from interp.steering.unalign import FACTOR, KEYS

if TYPE_CHECKING:
    from interp import Edit, Model
    from interp.models.chat import Chat

# A prompt on which the bundled pair shows all three: toxic, tuned away, and back.
FIRST = "The comment section on any cooking video will convince you that people are fucking"
TITLES = {"base": "Base", "tuned": "Tuned", "un-aligned": "Keys enlarged"}
ABOUT = {
    "base": "before preference tuning", "tuned": "after preference tuning (DPO)",
    "un-aligned": f"tuned, {KEYS} toxic keys × {FACTOR:g}",
}  # fmt: skip
PLACE_OF_BARS = '<div style="height:10rem" aria-hidden="true"></div>'


def columns() -> dict[str, DeltaGenerator]:
    """The places of the three cards."""
    return {role: column.empty() for role, column in zip(TITLES, st.columns(3, gap="medium"), strict=True)}


def card(
    page: shell.Page, place: DeltaGenerator, role: str, prompt: str, text: str, toxicity: float | None = None, bars: bool = True,
    chat: Chat | bool = False,
) -> None:  # fmt: skip
    """Draw one card; without `toxicity` its text is still growing. With `bars` it shows the model's likeliest next tokens."""
    rows = []
    if bars:
        from app.answers import start as answers

        rows = answers.next_tokens(page.source, prompt, role, chat).rows
    more = show.bars(rows, show.colour(role), page.words, caption="Likeliest next token") if bars else PLACE_OF_BARS
    waiting = toxicity is None
    place.html(show.card(role, TITLES[role], ABOUT[role], prompt, text, page.words, waiting=waiting, more=more, toxicity=toxicity))


def read(page: shell.Page, prompt: str, written: dict[str, Continuation]) -> None:
    """Draw the three continuations from the report; the likeliest next tokens are computed by the models."""
    places = columns()
    st.caption(
        "What they said is from the written report of this pair. **Continue it** has the models say it again, or go on from another prompt."
    )
    if not state.loaded(page.source):
        for role, continuation in written.items():
            card(page, places[role], role, prompt, continuation.text, continuation.toxicity, bars=False)
        gate.wait()
    for role, continuation in written.items():
        card(page, places[role], role, prompt, continuation.text, continuation.toxicity)


def spoken(page: shell.Page, prompt: str, chat: Chat | bool = False) -> None:
    """Draw the three continuations by the models: streamed where this prompt is new, at once where they are cached.

    With `chat` the prompt is a user turn of the models' chat template.
    """
    places = columns()
    texts = dict.fromkeys(TITLES, "")
    if not state.loaded(page.source):
        for role, place in places.items():
            card(page, place, role, prompt, "", bars=False)
        gate.wait()
    from app.answers import start as answers
    from app.continuations import EditedModel, continue_together
    from interp import Sampling

    pair = page.pair

    def draw(role: str, over: bool = False) -> None:
        ready = role != "un-aligned" or answers.is_ready(page.source)
        card(page, places[role], role, prompt, texts[role], answers.toxicity(texts[role]) if over else None, ready, chat)

    def speak(roles: list[str]) -> None:
        sides: dict[str, tuple[Model, tuple[Edit, ...]]] = {"base": (pair.base, ()), "tuned": (pair.tuned, ())}
        if "un-aligned" in roles:
            sides["un-aligned"] = (pair.tuned, answers.unaligned(page.source))
        models = [EditedModel(*sides[role]) for role in roles]

        def draw_text(column: int, text: str, over: bool) -> None:
            texts[roles[column]] = text
            draw(roles[column], over)

        continue_together(models, prompt, new_tokens=answers.NEW_TOKENS, sampling=Sampling(), on_text=draw_text, chat=chat)

    for role in TITLES:
        draw(role)
    if not answers.is_ready(page.source):
        # The first two models continue the prompt before the keys of the third are computed.
        speak(["base", "tuned"])
        with st.spinner("Finding the keys that fire on provocation …"):
            answers.unaligned(page.source)
        speak(["un-aligned"])
        return
    speak(list(TITLES))
