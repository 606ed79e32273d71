"""The logit lens of the page Bypass: one prompt, one token, both models, every half layer."""

from __future__ import annotations

import streamlit as st

from app import settings, shell, show
from app.answers import bypass, bypass_lens
from app.chat_control import ask_chat
from app.reading_view import facts, ready
from interp import UserError
from interp.data.lexicon import mask


def chosen(key: str, options: list[int]) -> int:
    """The index of the option that the link holds under this key, or 0 where it holds none of them."""
    text = st.query_params.get(key, "")
    return options.index(int(text)) if text.isascii() and text.isdecimal() and len(text) < 9 and int(text) in options else 0


def keep(key: str, value: int, first: int) -> None:
    """Write a choice into the link, unless it is the default. (Streamlit would bind the label, which holds raw words.)"""
    if value == first:
        st.query_params.pop(key, None)
    else:
        st.query_params[key] = str(value)


@st.fragment
def lens(page: shell.Page) -> None:
    """Draw the logit lens of one prompt and one token, in both models, after every half layer."""
    with shell.errors_shown():
        st.write(
            "If each model ended after this half layer, how likely would it find a word? Choose a prompt and the word that may come next."
        )
        limit = settings.limits().prompt_characters
        if not ready(page, bypass.usual(), "States of both models", bypass.states):
            return
        offered = bypass_lens.examples(page.source, bypass.usual())
        left, right = st.columns(2)
        numbers = list(range(1, len(offered) + 1))
        at = left.selectbox(
            "Example prompt", numbers, index=chosen("example", numbers), key="example",
            format_func=lambda number: f"{number}: {show.shown(offered[number - 1], page.words)}",
            help="Challenge prompts on which the base model's likeliest word lost most by tuning, the largest loss first.",
        )  # fmt: skip
        keep("example", at, 1)
        typed = right.text_input(
            "Or a prompt of your own", key="prompt", bind="query-params", max_chars=limit, placeholder="You are such a",
            help="Where this holds text, it is read in place of the example. The word is looked for right after it: end without a space.",
        )  # fmt: skip
        prompt = typed if typed.strip() else offered[at - 1]
        if len(prompt) > limit:
            raise UserError(f"the prompt has {len(prompt)} characters, and at most {limit} are read", "shorten it")
        chat = ask_chat(page)
        candidates = bypass_lens.candidates(page.source, prompt, chat)
        left, right = st.columns(2)
        labels = {one.token: f"{show.visible(one.text, page.words)}   {one.base:.1%} → {one.tuned:.1%}" for one in candidates}
        token = left.selectbox(
            "Next token", list(labels), index=chosen("token", list(labels)), key="token", format_func=lambda one: labels[one],
            help="What either model finds likeliest, with its probability in base and tuned; the base model's first choice comes first.",
        )  # fmt: skip
        keep("token", token, candidates[0].token)
        word = right.text_input(
            "Or a word of your own", key="word", bind="query-params", max_chars=40, placeholder="idiot",
            help="A single token of the model's vocabulary; the space before it is added.",
        )  # fmt: skip
        if word.strip():
            try:
                token = bypass_lens.one_token(page.pair.base, word)
            except UserError as error:
                shell.problem(error)
        text = page.pair.base.tokenizer.decode([token])
        if bypass.light(page.pair):
            bypass.random_changes(page.source)
        drawn = bypass_lens.curve(page.source, prompt, token, chat)
        # Masked as a whole, because a word may begin in the prompt and end in the token; a mask keeps the length.
        joined = prompt + text if page.words else mask(prompt + text)
        before, new = (show.escaped(show.shown(part, True)) for part in (joined[: len(prompt)], joined[len(prompt) :]))
        st.html(
            f'<p class="lead" dir="auto" style="overflow-wrap:anywhere"><span style="opacity:.75">{before}</span>'
            f'<span class="role" style="--hue:{show.colour("base")}">{new}</span></p>'
        )
        facts(
            *((name, f"{drawn.final[name]:.1%}", f"rank {drawn.ranks[name]}") for name in ("base", "tuned")),
            *((("random changes", f"{value:.1%}", "of equal norm"),) if (value := drawn.final.get(bypass_lens.NULL)) is not None else ()),
            ("largest step in the base model", drawn.step, f"{drawn.rise:+.1%}"),
        )
        show.draw(drawn.figure, "lens", page.words)
        with st.expander("What each model would say after every half layer"):
            show.table(
                bypass_lens.likeliest(page.source, prompt, chat),
                "said",
                page.words,
                alt="The three likeliest tokens after each half layer, base and tuned",
            )
