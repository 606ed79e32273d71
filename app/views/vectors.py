"""The page Toxic vectors: rank value vectors, look into one, pin some.

The chosen neuron lives in one text field, so that the keyboard, a link and a click on a row mean the same; an empty field is the
first row, whatever the ranking.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import jobs, neuron_view, pins, settings, shell, show, state
from app.answers import vectors as answers
from app.answers import vectors_firing
from app.answers.vectors import Ranked, name_of
from interp import UserError
from interp.models.model import Neuron
from interp.steering.edit_text import parse_neuron

LEAD = (
    "Each neuron of an MLP adds one fixed vector, its value vector, to what the model computes whenever it fires. Some point towards "
    "toxicity. Choose one, see which words it writes, and see that tuning left it in place."
)
BY = ("Probe", "Word", "Similarity", "Selectivity")
LIKE = "like"


def anew() -> None:
    """Select the first row of a new ranking."""
    st.session_state["neuron"] = ""


def typed() -> None:
    """Redraw the table, so that it marks the typed neuron and not the one clicked before."""
    st.session_state["drawn"] = st.session_state.get("drawn", 0) + 1


def more_like(neuron: Neuron) -> None:
    """Rank by similarity to a neuron."""
    st.session_state.update({"by": "Similarity", LIKE: name_of(neuron), "neuron": ""})


def similar(line: Any, nearest: str) -> str:
    """The neuron that others are compared with, as typed.

    A field that is bound to the link would not tell it what a button set before the field was there, so this one tells it itself.
    """
    st.session_state.setdefault(LIKE, st.query_params.get(LIKE, nearest)[:20])
    like: str = line.text_input(
        "Similar to neuron", key=LIKE, on_change=anew, max_chars=20, width=210,
        help="LAYER.INDEX, counting from 0. The value vectors with the largest cosine with this one's, itself first.",
    )  # fmt: skip
    st.query_params[LIKE] = like
    return like or nearest


def controls(page: shell.Page, line: Any) -> Ranked | None:
    """The ranking that the controls set; None where it has to be computed first, or cannot be."""
    by = line.segmented_control(
        "Ranked by", BY, default="Probe", required=True, key="by", bind="query-params", on_change=anew,
        help="Probe: points along the direction that separates toxic texts from others. Word: writes a word. Similarity: points along one "
        "neuron's vector. Selectivity: of the 128 nearest to the probe, fires on provoking prompts rather than on neutral ones.",
    )  # fmt: skip
    word = like = ""
    if by == "Word":
        word = line.text_input(
            "Word", "stupid", key="word", bind="query-params", on_change=anew, max_chars=settings.limits().prompt_characters, width=210,
            help="Which value vectors have this word among the 50 tokens that they promote most? The beginning of a word will do as well.",
        )  # fmt: skip
    elif by == "Similarity":
        like = similar(line, name_of(state.toxic_neurons(page.source)[0]))
    if by != "Similarity":
        st.query_params.pop(LIKE, None)
    count = line.number_input(
        "Rows",
        5,
        pins.MOST_NEURONS,
        answers.USUAL,
        key="rows",
        bind="query-params",
        width=130,
        help="How many value vectors the table holds.",
    )
    line.toggle(
        "Score in sentences", key="sentences", bind="query-params",
        help="Put the ten top tokens of each row into sentences that the toxicity scorer judges: hostile words on no list count too.",
    )  # fmt: skip
    try:
        if by == "Word":
            return answers.by_word(page.source, word, count)
        if by == "Similarity":
            return answers.by_likeness(page.source, checked(page, like), count)
        if by == "Selectivity":
            survey = neuron_view.ask_survey(page, "To rank by selectivity, both models have to read the prompts that ship.")
            return vectors_firing.by_selectivity(survey, count) if survey is not None else None
        return answers.by_probe(page.source, count)
    except UserError as error:
        shell.problem(error)
        return None


def checked(page: shell.Page, text: str) -> Neuron:
    """The neuron of a typed text. Raises `UserError` for one that this model lacks."""
    neuron = parse_neuron(text)
    page.pair.base.check_neurons([neuron])
    return neuron


def ranking(page: shell.Page) -> Neuron | None:
    """Draw the table, and return the chosen neuron."""
    line = st.container(horizontal=True, vertical_alignment="bottom")
    ranked = controls(page, line)
    names = [] if ranked is None else [name_of(neuron) for neuron in ranked.neurons]
    asked = [str(st.session_state.get(key, "")) for key in ("by", "word", "like", "rows", "drawn")]
    table = jobs.key_of("vectors", page.source, asked)
    clicked(table, names)
    text = line.text_input(
        "Neuron", key="neuron", bind="query-params", on_change=typed, max_chars=20, placeholder=names[0] if names else "5.770", width=150,
        help="LAYER.INDEX, counting from 0. Click a row, or type any neuron of the model; empty: the first row.",
    ).strip()  # fmt: skip
    if ranked is not None and not names:
        st.info("No value vector has this word among the 50 tokens that it promotes most. Try a shorter or a more common word.")
    if ranked is not None and names:
        rows(page, ranked, table, names, text or names[0])
    if not text:
        return ranked.neurons[0] if ranked is not None and names else None
    try:
        return checked(page, text)
    except UserError as error:
        shell.problem(error)
        return None


def rows(page: shell.Page, ranked: Ranked, table: str, names: list[str], chosen: str) -> None:
    """Draw the table, with the row of the chosen neuron marked."""
    frame = pd.concat([answers.described(page.source, ranked.neurons), ranked.reasons], axis=1)
    null = ""
    if st.session_state.get("sentences"):
        values, drawn = answers.in_sentences(page.source, ranked.neurons)
        frame.insert(list(frame.columns).index("hostile words") + 1, "in sentences", values)
        null = (
            " *In sentences*: how much more toxic its top tokens make a sentence than everyday words do; "
            f"random neurons of the same layers have {drawn:+.3f}."
        )
    # The neuron first, then why it is here, then what it writes, then what tuning did.
    order = ["neuron", *ranked.reasons.columns, *(name for name in frame.columns if name not in ("neuron", *ranked.reasons.columns))]
    row = show.table(
        frame[order], table, page.words, select=True, height=388, column_config=config(ranked),
        alt="Value vectors in the order asked for: neuron, words that it promotes, cosine with the probe, how far tuning moved it",
        selection_default={"selection": {"rows": [names.index(chosen)] if chosen in names else []}},
    )  # fmt: skip
    st.session_state["row_seen"] = (table, row)
    st.caption(
        "Click a row, or type a neuron above. *Probe*: cosine with the probe's direction. *Hostile*: profanity, slurs and insults among "
        "its ten top tokens. *Kept*: cosine of the vector before and after tuning. *Moved*: the change as a share of its norm."
        f"{null} Tokens by {answers.projection(page.source)}."
    )


def clicked(table: str, names: list[str]) -> None:
    """Put the neuron of a row that was clicked since the last run into the text field, before that is drawn."""
    event: Any = st.session_state.get(table)
    marked = event["selection"]["rows"] if event else []
    seen, before = st.session_state.get("row_seen", ("", None))
    if seen == table and marked and marked[0] != before and marked[0] < len(names):
        st.session_state["neuron"] = names[marked[0]]


def config(ranked: Ranked | None = None) -> dict[str, Any]:
    """The display of the columns: short names, units, and help; with `ranked`, also of the columns by which it is ranked."""
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    known = {
        "neuron": text(width=62),
        "writes": text(width=90),
        "rank": number(width=56, help="1: of all tokens, its value vector promotes this one most."),
        "cosine with the probe": number("probe", format="%.3f", width=62, help="Cosine of the vector with the probe's direction."),
        "promotes": text(width=345, help="The tokens whose logits the vector raises most."),
        "hostile words": number("hostile", format="%d of 10", width=72, help="Profanity, slurs and insults among its ten top tokens."),
        "in sentences": number(
            format="%+.3f",
            width=84,
            help="Toxicity of sentences with its ten top tokens, above that of the same sentences with everyday words.",
        ),
        "value kept": number(format="%.6f", width=84, help="Cosine of what the neuron writes before and after tuning; 1: unchanged."),
        "value moved": number(format="%.2f %%", width=92, help="Norm of the change of the value vector, as a share of its norm."),
        "key kept": number(format="%.6f", width=80, help="Cosine of what the neuron reads before and after tuning; 1: unchanged."),
        "key moved": number(format="%.2f %%", width=84, help="Norm of the change of the key, as a share of its norm."),
        "value vectors": text(width=170),
        "direction": text(width=76),
    }
    units = {
        "percent": number(format="%.0f %%", help="Share of prompts at whose end it fires, base model."),
        "cosine": number(format="%.3f"),
    }
    if ranked is not None and ranked.unit:
        known = dict.fromkeys(ranked.reasons.columns, units[ranked.unit]) | known
    return known


def hostile_share(page: shell.Page) -> None:
    """Draw how many of the nearest value vectors promote hostile words."""
    words = answers.hostility(page.source)
    verb = "writes" if words.majority == 1 else "write"
    st.markdown(
        f"**Near the probe does not mean hostile words.** {words.majority or 'None'} of the {words.vectors} nearest value vectors {verb} "
        f"mostly hostile words; {words.share:.0%} of their ten top tokens are on the list, against {words.null:.1%} for random neurons of "
        "the same layers and norm. What many of them share says more: see the directions at the end of this page."
    )
    shell.link("evidence", "How the report tests this (A-E2)")


def detail(page: shell.Page, neuron: Neuron) -> None:
    """Draw everything about one neuron."""
    name = name_of(neuron)
    st.header(f"Neuron {name}", anchor=False)
    line = st.container(horizontal=True, vertical_alignment="bottom")
    line.button(
        "More like this", key="more", on_click=more_like, args=(neuron,), icon=":material/join_inner:",
        help="Rank the value vectors by their cosine with this one.",
    )  # fmt: skip
    title = line.text_input(
        "Set", pins.FIRST, key="set", max_chars=24, width=170, help="The set that a pinned neuron joins: letters, digits, spaces, dashes."
    )
    if line.button(
        f"Pin {name}", key="pin", icon=":material/keep:",
        help="Keep it in the set named here. Sets travel with the link; the page Steer can scale their keys.",
    ):  # fmt: skip
        try:
            pins.pin(page.pair.base, title.strip() or pins.FIRST, [neuron])
        except UserError as error:
            shell.problem(error)
    with line:
        shell.link("steer", "Scale this key", keys=name)
    neuron_view.facts(page, neuron)
    neuron_view.words(page, neuron)
    neuron_view.fires(page, neuron)
    neuron_view.change(page, neuron)
    neuron_view.most(page, neuron, asked=st.session_state.get("by") == "Selectivity")


def pinned(page: shell.Page) -> None:
    """Draw the pinned sets."""
    st.header("Pinned sets", anchor=False)
    sets = pins.pinned(page.pair.base)
    if not sets:
        st.caption("None yet. *Pin* keeps a neuron in a named set; sets stay in the link, and *Steer* scales their keys.")
    for name, neurons in sets.items():
        st.subheader(show.plain(name), anchor=False)
        line = st.container(horizontal=True, vertical_alignment="center")
        for title in map(name_of, neurons):
            if line.button(title, key=f"unpin-{name}-{title}", icon=":material/close:", help=f"Unpin {title}"):
                pins.unpin(page.pair.base, name, parse_neuron(title))
                st.rerun()
        line = st.container(horizontal=True, vertical_alignment="center")
        with line:
            shell.link("steer", "Scale these keys", keys=",".join(map(name_of, neurons)))
        if line.button("Forget this set", key=f"forget-{name}", icon=":material/delete:", type="tertiary", help="Unpin all its neurons."):
            pins.unpin(page.pair.base, name)
            st.rerun()


@st.fragment
def directions(page: shell.Page) -> None:
    """Draw the directions that the nearest value vectors share, beside those of random ones."""
    st.header("Directions that they share", anchor=False)
    st.caption(
        "The singular vectors of the nearest value vectors, strongest first (U0), beside those of as many random neurons of the same "
        "layers. More hostile words in U0 than in most single vectors, and than in the random rows: many neurons write toxicity together."
    )
    every = len(state.toxic_neurons(page.source))
    options = [count for count in (8, 16, 32, 64) if count < every] + [every]
    count = st.select_slider(
        "Value vectors", options, every, key="top", bind="query-params",
        help="From how many of the value vectors nearest to the probe the directions are taken.",
    )  # fmt: skip
    frame = answers.shared(page.source, count)
    show.table(
        frame, "directions", page.words, column_config=config() | {"promotes": st.column_config.TextColumn(width=560)},
        alt="Shared directions of the nearest value vectors and of random ones, with the words that they promote",
    )  # fmt: skip


with shell.page("vectors", LEAD) as page:
    st.header("Which value vectors", anchor=False)
    neuron = ranking(page)
    hostile_share(page)
    if neuron is not None:
        detail(page, neuron)
    pinned(page)
    directions(page)
