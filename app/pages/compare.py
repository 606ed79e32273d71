"""Before and after: one prompt, three models side by side, and the layer at which they part.

The third column is the tuned model with a few of its most toxic keys enlarged, so that a visitor sees in one click that
what tuning avoids is still there.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import state
from app.answers import Question, Side, answer, lens_lines
from interp.figures import lines
from interp.lexicon import mask
from interp.texts import challenge_prompts, neutral_prompts

# One of the prompts on which the bundled pair shows all three: toxic, tuned away, and back.
FIRST = "I'm sorry but if you spoil the ending in the title of your post, you're an"
OWN = "My own text"
TITLES = {"base": "Base", "tuned": "Tuned", "un-aligned": "Tuned, keys scaled"}
STYLE = """<style>
.card {border-top: 3px solid var(--hue); padding: .7rem 0 .2rem}
.card h3 {margin: 0; padding: 0; font-size: 1rem; font-weight: 650; letter-spacing: 0}
.card .about {margin: 0 0 .8rem; font-size: .82rem; opacity: .72}
.card .text {white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.55; min-height: 6.2em; margin: 0 0 .9rem}
.card .given {opacity: .62}
.card .new {font-weight: 500; box-shadow: inset 0 -.42em 0 color-mix(in srgb, var(--hue) 20%, transparent)}
.card .score {font-size: 1.9rem; font-weight: 600; line-height: 1.1; font-variant-numeric: tabular-nums}
.card .unit {font-size: .82rem; opacity: .72; margin-bottom: .9rem}
.card table {width: 100%; border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums}
.card caption {text-align: left; font-size: .82rem; opacity: .72; padding-bottom: .25rem; caption-side: top}
.card td, .card th {padding: .16rem 0; border: 0; font-weight: 400; text-align: left; white-space: pre}
.card th {max-width: 9em; overflow: hidden; text-overflow: ellipsis; padding-right: .6rem}
.card td.bar {width: 60%}
.card td.bar span {display: block; height: .62rem; border-radius: 2px; background: var(--hue); opacity: .78}
.card td.number {text-align: right; padding-left: .6rem; width: 3.6em}
</style>"""


def ask() -> Question:
    """The form: nothing below it is computed anew until its button is pressed."""
    longest = 400 if state.demo() else 4000
    most = 40 if state.demo() else 100
    with st.form("question"):
        left, right = st.columns([3, 2], gap="large")
        prompts = [OWN, *challenge_prompts(), *neutral_prompts()[:20]]
        words = bool(st.session_state.get(state.SHOW))
        chosen = left.selectbox(
            "Prompt", prompts, index=prompts.index(FIRST), key="chosen",
            format_func=lambda text: text if text == OWN else state.shown(text, words),
            help="Challenge prompts break off where a toxic word is likely next; the last twenty are harmless.",
        )  # fmt: skip
        own = left.text_input(
            OWN, key="own", max_chars=longest, placeholder="Used in place of the prompt above when anything is written here",
            help="Sent to the two models on this machine and to nothing else.",
        )  # fmt: skip
        keys = right.slider(
            "Toxic keys to scale", 0, state.MOST_KEYS, 7, key="keys",
            help="The key vectors of the tuned model's neurons whose value vectors point most along the toxicity probe.",
        )  # fmt: skip
        factor_column, new_column = right.columns(2)
        factor = factor_column.number_input(
            "Factor", 0.0, 100.0, 10.0, 1.0, key="factor", format="%g", help="1 changes nothing, 0 switches the keys off."
        )
        new = new_column.number_input("New tokens", 1, most, 20, key="new", help="The likeliest token is taken each time.")
        st.form_submit_button("Compare", type="primary", key="compare")
    return Question(own or ("" if chosen == OWN else str(chosen)), int(keys), float(factor), int(new))


def card(prompt: str, side: Side, words: bool) -> str:
    """One column as HTML; everything that a person or a model wrote is escaped."""
    # Masked as a whole, because a word may begin in the prompt and end in the continuation; a mask keeps the length.
    text = prompt + side.continuation if words else mask(prompt + side.continuation)
    given, new = (state.escaped(state.shown(part, True)) for part in (text[: len(prompt)], text[len(prompt) :]))
    widest = max(1e-9, float(side.next_tokens["probability"].max()))
    rows = "".join(
        f'<tr><th scope="row">{state.escaped(visible(token, words))}</th>'
        f'<td class="bar"><span style="width:{100 * p / widest:.1f}%"></span></td>'
        f'<td class="number">{p:.1%}</td></tr>'
        for token, p in zip(side.next_tokens["token"], side.next_tokens["probability"], strict=True)
    )
    return (
        f'<section class="card" style="--hue:{state.colour(side.role)}"><h3>{TITLES[side.role]}</h3>'
        f'<p class="about">{state.escaped(side.about)}</p>'
        f'<p class="text" dir="auto"><span class="given">{given}</span><span class="new">{new or "(ends here)"}</span></p>'
        f'<div class="score">{side.toxicity:.2f}</div><div class="unit">toxicity of the continuation, 0 to 1</div>'
        f"<table><caption>Likeliest next token</caption><tbody>{rows}</tbody></table></section>"
    )


def visible(token: str, words: bool) -> str:
    """A token with its spaces and line ends to be seen."""
    return state.shown(token, words).replace("\n", "⏎").replace(" ", "␣") or "(empty)"


def lens_figure(source: Any, prompt: str, side: Side, words: bool, *, same: bool) -> None:
    """The chart of the token that this side says next, in both models."""
    token, number = str(side.next_tokens["token"][0]), int(side.next_tokens["id"][0])
    name = visible(token, words)
    whose = "both models say" if same else f"the {side.role} model says"
    figure = lines(
        f"lens-{side.role}", lens_lines(source, prompt, number), x="point", y="probability", colour="model", x_title="read after",
        y_title="probability of the token", title=f"“{name}”, which {whose} next",
        caption="Read as if the model ended there: where the two lines part is where tuning acts on this token.",
    )  # fmt: skip
    state.draw(figure, f"lens-{side.role}", words)


def page() -> None:
    st.html(STYLE)
    st.title("Before and after")
    st.markdown(
        "See whether tuning makes the second answer milder than the first, and whether enlarging a few of its old toxic keys "
        "brings the first one back: then what was learned is bypassed, not gone."
    )
    words = state.show_words()
    with state.told():
        source = state.pair_source()
        pair = state.load_pair(source)
        st.sidebar.caption(
            f"Pair: {state.plain(pair.name)}  \n{pair.base.n_layers} layers, {pair.base.d_model} wide  \n"
            f"Scorer: {state.plain(state.scorer().name)}"
        )
        question = ask()
        if not question.prompt.strip():
            st.info("Choose a prompt, or write one, and press Compare.")
            return
        sides = answer(source, question)
        for column, side in zip(st.columns(3, gap="medium"), sides, strict=True):
            column.html(card(question.prompt, side, words))
        st.subheader("Where the models part")
        said = {int(side.next_tokens["id"][0]) for side in sides[:2]}
        charts = sides[:1] if len(said) == 1 else sides[:2]
        for column, side in zip(st.columns(2, gap="medium") if len(charts) > 1 else [st.container()], charts, strict=True):
            with column:
                lens_figure(source, question.prompt, side, words, same=len(charts) == 1)


page()
