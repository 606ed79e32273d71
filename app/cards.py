"""One prompt, continued by base, tuned and un-aligned side by side: as the written report holds it, or by the models themselves.

The first visitor's cards are drawn while torch is still being read: what needs it is imported where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import shell, show, state
from app.answers.summary import Said
from app.importing import gate
from interp.steering.unalign import FACTOR, KEYS

if TYPE_CHECKING:
    from interp import Edit, Model

# A prompt on which the bundled pair shows all three: toxic, tuned away, and back.
FIRST = "The comment section on any cooking video will convince you that people are fucking"
TITLES = {"base": "Base", "tuned": "Tuned", "un-aligned": "Un-aligned"}
ABOUT = {
    "base": "before preference tuning", "tuned": "after preference tuning (DPO)",
    "un-aligned": f"tuned, {KEYS} toxic keys × {FACTOR:g}",
}  # fmt: skip
PLACE_OF_BARS = '<div style="height:10rem" aria-hidden="true"></div>'


def columns() -> dict[str, DeltaGenerator]:
    """The places of the three cards."""
    return {role: column.empty() for role, column in zip(TITLES, st.columns(3, gap="medium"), strict=True)}


def card(
    page: shell.Page, place: DeltaGenerator, role: str, prompt: str, text: str, toxicity: float | None = None, bars: bool = True
) -> None:
    """One of the cards, over or, without its toxicity, still growing; with `bars`, what this model would say next."""
    rows = []
    if bars:
        from app.answers import start as answers

        rows = answers.next_tokens(page.source, prompt, role).rows
    more = show.bars(rows, show.colour(role), page.words, caption="Likeliest next token") if bars else PLACE_OF_BARS
    waiting = toxicity is None
    place.html(show.card(role, TITLES[role], ABOUT[role], prompt, text, page.words, waiting=waiting, more=more, toxicity=toxicity))


def read(page: shell.Page, prompt: str, written: dict[str, Said]) -> None:
    """The three columns as the report holds them; only what each would say next has to be asked of the models."""
    places = columns()
    st.caption(
        "What they said is from the written report of this pair. **Continue it** has the models say it again, or go on from another prompt."
    )
    if not state.loaded(page.source):
        for role, said in written.items():
            card(page, places[role], role, prompt, said.text, said.toxicity, bars=False)
        gate.wait()
    for role, said in written.items():
        card(page, places[role], role, prompt, said.text, said.toxicity)


def spoken(page: shell.Page, prompt: str) -> None:
    """The three columns; they stream where this prompt is new, and are there at once where it is not."""
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
        card(page, places[role], role, prompt, texts[role], answers.toxicity(texts[role]) if over else None, bars=ready)

    def speak(roles: list[str]) -> None:
        sides: dict[str, tuple[Model, tuple[Edit, ...]]] = {"base": (pair.base, ()), "tuned": (pair.tuned, ())}
        if "un-aligned" in roles:
            sides["un-aligned"] = (pair.tuned, answers.unaligned(page.source))
        models = [EditedModel(*sides[role]) for role in roles]

        def heard(column: int, text: str, over: bool) -> None:
            texts[roles[column]] = text
            draw(roles[column], over)

        continue_together(models, prompt, new_tokens=answers.NEW_TOKENS, sampling=Sampling(), on_text=heard)

    for role in TITLES:
        draw(role)
    if not answers.is_ready(page.source):
        # The first visitor reads the first two while the keys of the third are found.
        speak(["base", "tuned"])
        with st.spinner("Finding the keys that fire on provocation …"):
            answers.unaligned(page.source)
        speak(["un-aligned"])
        return
    speak(list(TITLES))
