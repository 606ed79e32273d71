"""How prompts are read, by one control on every page with a prompt: as raw text, or as user turns of the pair's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from app import settings, state
from interp.errors import UserError

if TYPE_CHECKING:
    from app.shell import Page
    from interp.models.chat import Chat


def ask_chat(page: Page) -> Chat | bool:
    """The `Chat` that the switch and the box for a system prompt describe, or False for raw text.

    The switch is there where both sides have one chat template; a caption says how prompts are read. Raises `UserError` for a system
    prompt that is too long.
    """
    from interp.models.chat import Chat, prompt_format

    why = missing_template(page)
    if why:
        st.caption(f"Prompts are read as raw text: {why}.")
        return False
    switch, box = st.columns([2, 5], vertical_alignment="bottom")
    on = switch.toggle(
        "Chat template", key="chat", bind="query-params",
        help="Read prompts as user turns of the model's chat template, so that what follows is its answer. Off: as raw text, which the "
        "model continues.",
    )  # fmt: skip
    if not on:
        st.caption("Prompts are read as raw text.")
        return False
    most = settings.limits().prompt_characters
    system = box.text_input(
        "System prompt", key="system", bind="query-params", max_chars=most, placeholder="none: what the template itself writes",
        help="Set before the user's turn. Some templates take none, and some write one of their own where this is empty.",
    )  # fmt: skip
    if len(system) > most:
        raise UserError(f"the system prompt has {len(system)} characters", f"use at most {most}")
    chat = Chat(system if system.strip() else None)
    st.caption(f"Prompts are read as {prompt_format(chat)}.")
    return chat


def missing_template(page: Page) -> str:
    """Why prompts of this pair cannot be read with a chat template, or an empty text where they can."""
    # The pair that ships has no template, and is not waited for.
    if page.source is None and not state.loaded(page.source):
        return "this pair has no chat template"
    from interp.models.chat import check_one_template

    models = list(page.pair.sides.values())
    if not any(model.tokenizer.chat_template for model in models):
        return "this pair has no chat template"
    try:
        check_one_template(models)
    except UserError as error:
        return error.problem
    return ""
