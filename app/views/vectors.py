"""Toxic vectors: rank value vectors, look into one, keep some.

The chosen neuron lives in one text field, so that the keyboard, a link and a click on a row mean the same; an empty field is the
first row, whatever the ranking.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import job_view, jobs, pins, settings, shell, show, state
from app.answers import vectors as answers
from app.answers.vectors import Ranked, Survey, name_of
from interp import UserError
from interp.edit_text import parse_neuron
from interp.neurons import Neuron

LEAD = (
    "Each neuron of an MLP adds one fixed vector to the stream of the model whenever it fires: its value vector. "
    "Some point towards toxicity. Choose one, see which words it writes, and see that tuning left it in place."
)
BY = ("Probe", "Word", "Similarity", "Selectivity")
SURVEY_LABEL = "Read the texts that ship"


def anew() -> None:
    """Another ranking begins at its first row."""
    st.session_state["neuron"] = ""


def typed() -> None:
    """The table is drawn anew, so that it marks the neuron that was typed and not the one clicked before."""
    st.session_state["drawn"] = st.session_state.get("drawn", 0) + 1


def more_like(neuron: Neuron) -> None:
    st.session_state.update({"by": "Similarity", "like": name_of(neuron), "neuron": ""})


def survey_key(page: shell.Page) -> str:
    return jobs.key_of("texts", page.pair.base.digest, page.pair.tuned.digest)


def surveyed(page: shell.Page) -> Survey | None:
    """What reading the texts gave, if it has been done."""
    job = jobs.runner.find(survey_key(page))
    found = job.result if job is not None and job.state == "done" else None
    return found if isinstance(found, Survey) else None


def ask_survey(page: shell.Page, note: str) -> Survey | None:
    pair, neurons = page.pair, state.toxic_neurons(page.source)
    found: Survey | None = job_view.ask(
        survey_key(page), "Reading the texts that ship", lambda step: answers.survey(pair, neurons, step), SURVEY_LABEL,
        help="Reads 760 short texts with both models, once for all neurons near the probe; half a minute on two cores for the pair that ships.",
        note=note,
    )  # fmt: skip
    return found


def controls(page: shell.Page) -> Ranked | None:
    """How the table is ranked; None where that has to be computed first, or cannot be."""
    first, second, third = st.columns([5, 4, 2], vertical_alignment="bottom")
    by = first.segmented_control(
        "Ranked by", BY, default="Probe", required=True, key="by", bind="query-params", on_change=anew,
        help="Probe: points along the direction that separates toxic texts from others. Word: writes a word. Similarity: points along one neuron's "
        "vector. Selectivity: of the 128 nearest to the probe, fires on provoking prompts rather than on neutral ones.",
    )  # fmt: skip
    count = int(
        third.number_input(
            "Rows",
            5,
            pins.MOST_NEURONS,
            20,
            key="rows",
            bind="query-params",
            on_change=typed,
            help="How many value vectors the table holds.",
        )
    )
    nearest = state.toxic_neurons(page.source)[0]
    try:
        if by == "Word":
            word = second.text_input(
                "Word", "stupid", key="word", bind="query-params", on_change=anew, max_chars=settings.limits().prompt_characters,
                help="Which value vectors have this word among the 50 tokens that they promote most? Part of a word will do where no token is the whole.",
            )  # fmt: skip
            return answers.by_word(page.source, word or "", count)
        if by == "Similarity":
            like = second.text_input(
                "Similar to neuron", name_of(nearest), key="like", bind="query-params", on_change=anew, max_chars=20,
                help="LAYER.INDEX, counting from 0. Value vectors with the largest cosine with this one's, itself first.",
            )  # fmt: skip
            return answers.by_likeness(page.source, checked(page, like or name_of(nearest)), count)
        if by == "Selectivity":
            found = ask_survey(page, "To rank by selectivity, both models have to read the prompts that ship.")
            return answers.by_selectivity(found, count) if found is not None else None
        return answers.by_probe(page.source, count)
    except UserError as error:
        shell.problem(error)
        return None


def checked(page: shell.Page, text: str) -> Neuron:
    """A neuron as it was typed; raises `UserError` for one that this model lacks."""
    neuron = parse_neuron(text)
    page.pair.base.check_neurons([neuron])
    return neuron


def ranking(page: shell.Page) -> Neuron | None:
    """The table, and the neuron that is looked into."""
    ranked = controls(page)
    names = [] if ranked is None else [name_of(neuron) for neuron in ranked.neurons]
    asked = ":".join(str(st.session_state.get(key, "")) for key in ("by", "word", "like", "rows", "drawn"))
    table = f"vectors-{jobs.key_of('rows', page.source, asked)}"
    clicked(table, names)
    field, about = st.columns([2, 9], vertical_alignment="bottom")
    text = field.text_input(
        "Neuron", key="neuron", bind="query-params", on_change=typed, max_chars=20, placeholder=names[0] if names else "5.770",
        help="LAYER.INDEX, counting from 0. Click a row, or type any neuron of the model; empty: the first row.",
    )  # fmt: skip
    if ranked is not None and not names:
        st.info("No value vector has this word among the 50 tokens that it promotes most. Try a shorter or a more common word.")
    if ranked is not None and names:
        with about:
            st.caption(
                "Click a row, or type a neuron. *Hostile words*: how many of its ten top tokens are on the list of profanity, slurs and insults."
            )
        frame = pd.concat([answers.described(page.source, ranked.neurons), ranked.reasons], axis=1)
        chosen = names.index((text or names[0]).strip()) if (text or names[0]).strip() in names else None
        show.table(
            frame[columns_of(frame, ranked)], table, page.words, select=True, height=388, column_config=config(frame),
            alt="Value vectors in the order asked for: neuron, words that it promotes, cosine with the probe, and how far tuning moved it",
            selection_default={"selection": {"rows": [] if chosen is None else [chosen]}},
        )  # fmt: skip
    if not (text or "").strip():
        return ranked.neurons[0] if ranked is not None and names else None
    try:
        return checked(page, text or "")
    except UserError as error:
        shell.problem(error)
        return None


def clicked(table: str, names: list[str]) -> None:
    """A row that was clicked since the last run becomes the neuron of the text field, which must not be drawn yet."""
    held: Any = st.session_state.get(table)
    rows = held["selection"]["rows"] if held else []
    now = (table, rows[0]) if rows and rows[0] < len(names) else None
    if now is not None and now != st.session_state.get("row_seen") and not (st.session_state.get("row_seen") or ("",))[0] != table:
        st.session_state["neuron"] = names[now[1]]
    st.session_state["row_seen"] = now or (table, None)


def columns_of(frame: pd.DataFrame, ranked: Ranked) -> list[str]:
    """Neuron first, then why it is here, then what it writes, then what tuning did."""
    reasons = list(ranked.reasons.columns)
    return ["neuron", *reasons, *[name for name in frame.columns if name != "neuron" and name not in reasons]]


def config(frame: pd.DataFrame) -> dict[str, Any]:
    number = st.column_config.NumberColumn
    known = {
        "cosine with the probe": number(
            format="%.3f", help="1: the value vector points exactly along the probe's direction; 0: across it."
        ),
        "promotes": st.column_config.TextColumn(
            width="large", help="The tokens whose logits the value vector raises most, per unit of activation."
        ),
        "hostile words": number(
            format="%d of 10", help="Of its ten top tokens, how many are profanity, slurs or insults on the list that ships."
        ),
        "value kept": number(
            format="%.6f", help="Cosine of the value vector (what the neuron writes) before and after tuning; 1: unchanged."
        ),
        "value moved": number(format="%.2f %%", help="Norm of the change of the value vector, as a share of its norm."),
        "key kept": number(format="%.6f", help="Cosine of the key (what the neuron reads) before and after tuning; 1: unchanged."),
        "key moved": number(format="%.2f %%", help="Norm of the change of the key, as a share of its norm."),
    }
    percent = {name: number(format="%.0f %%") for name in frame.columns if name.startswith("fires on")}
    return (
        known | percent | {name: number(format="%.3f") for name in frame.columns if name.startswith("cosine with ") and name not in known}
    )


def honest(page: shell.Page) -> None:
    """How many of the nearest value vectors really write hostile words."""
    found = answers.hostility(page.source)
    most = f"{found.majority} of the {found.vectors}" if found.majority else f"None of the {found.vectors}"
    left, right = st.columns([8, 3], vertical_alignment="center")
    left.caption(
        f"Near the probe does not mean toxic in words: {most} value vectors nearest to the probe {'write' if found.majority != 1 else 'writes'} "
        f"mostly hostile words. {found.share:.0%} of their top tokens are on the list, against {found.null:.1%} for random neurons of the same "
        "layers and norm. Small models spread toxicity over many neurons; in GPT-2 medium the nearest ones are plainer."
    )
    with right:
        shell.link("evidence", "The test of this in the report: A-E2")


def detail(page: shell.Page, neuron: Neuron) -> None:
    name = name_of(neuron)
    place, cosine = answers.places(page.source)[neuron]
    st.header(f"Neuron {show.plain(name)}", anchor=False)
    one, two, three, four = st.columns([2, 3, 2, 4], vertical_alignment="bottom")
    one.button(
        "More like this", key="more", on_click=more_like, args=(neuron,), width="stretch", icon=":material/join_inner:",
        help="Rank the value vectors by their cosine with this one.",
    )  # fmt: skip
    title = two.text_input(
        "Set", pins.FIRST, key="set", max_chars=24, help="The name of the set that a pinned neuron joins; letters, digits, spaces, dashes.",
        label_visibility="collapsed", placeholder="name of the set",
    )  # fmt: skip
    if three.button(
        f"Pin {show.plain(name)}", key="pin", width="stretch", icon=":material/keep:",
        help="Keep it in the set named beside; sets travel with the link, and the page Steer and un-align can scale them.",
    ):  # fmt: skip
        keep(page, title or pins.FIRST, [neuron])
    with four:
        shell.link("steer", "Scale this key", keys=name)
    st.html(
        '<dl class="facts">'
        + fact("cosine with the probe", f"{cosine:.3f}", f"place {place:,} of {len(answers.places(page.source)):,}")
        + fact("listed hostile words", *hostile_words(page, neuron))
        + fact("tuning moved its value by", *moved(page, neuron))
        + "</dl>"
    )
    words(page, neuron)
    fires(page, neuron)
    change(page, neuron)
    examples(page, neuron)


def hostile_words(page: shell.Page, neuron: Neuron) -> tuple[str, str]:
    count = int(answers.described(page.source, (neuron,))["hostile words"].iloc[0])
    return f"{count} of {answers.TOKENS}", f"random neurons {10 * answers.hostility(page.source).null:.2g}"


def moved(page: shell.Page, neuron: Neuron) -> tuple[str, str]:
    row = answers.described(page.source, (neuron,)).iloc[0]
    return f"{row['value moved']:.2f} %", f"of its norm, cosine {row['value kept']:.6f}"


def fact(title: str, value: str, more: str = "") -> str:
    return f"<div><dt>{show.escaped(title)}</dt><dd>{show.escaped(value)} <small>{show.escaped(more)}</small></dd></div>"


def keep(page: shell.Page, title: str, neurons: list[Neuron]) -> None:
    try:
        pins.pin(page.pair.base, title.strip(), neurons)
    except UserError as error:
        shell.problem(error)


def words(page: shell.Page, neuron: Neuron) -> None:
    found = answers.written(page.source, neuron)
    st.subheader("What it writes", anchor=False)
    same, all_ = found.same(), len(found.promoted["base"])
    st.caption(
        f"The words whose logits one unit of activation raises or lowers most. {same} of the base model's {all_} promoted words are still "
        "the tuned model's: tuning did not rewrite them."
        if same > all_ / 2
        else f"The words whose logits one unit of activation raises or lowers most. Tuning changed them: {same} of {all_} stayed."
    )
    for column, (side, rows, kind) in zip(
        st.columns(4),
        [
            (side, rows[side], kind)
            for kind, rows in (("Promoted", found.promoted), ("Suppressed", found.suppressed))
            for side in ("base", "tuned")
        ],
        strict=True,
    ):
        column.html(show.bars(rows, show.colour(side), page.words, caption=f"{kind}, {side} model (logit per unit)", number="+.2f"))


@st.fragment
def fires(page: shell.Page, neuron: Neuron) -> None:
    st.subheader("Where it fires in a prompt", anchor=False)
    text = st.text_input(
        "Prompt", key="text", bind="query-params", max_chars=settings.limits().prompt_characters,
        placeholder="Type your own; empty: of the first 32 challenge prompts, the one on which it fires most",
        help="Every token is shaded by the activation of this neuron there; hover over a token for the number.",
    )  # fmt: skip
    try:
        found = answers.fired(page.source, neuron, text or "")
    except UserError as error:
        shell.problem(error)
        return
    token = show.visible(found.tokens[found.at], page.words)
    before, after = (found.activations[side][found.at] for side in ("base", "tuned"))
    for side in ("base", "tuned"):
        values = found.activations[side]
        told = show.escaped(f"{side.capitalize()}: {values[found.at]:.2f} at {token}")
        st.html(
            f'<div><span class="role" style="--hue:{show.colour(side)}">{told}</span></div>'
            + show.strip(
                found.tokens, values, show.colour(side), page.words, top=found.top,
                label=f"Prompt with the activation of neuron {name_of(neuron)} in the {side} model, highest in base at {token}",
            )
        )  # fmt: skip
    st.caption(
        said(before, after)
        + ("" if found.whole else " The text is longer than the model reads: the part with the highest activation is shown.")
    )


def said(before: float, after: float) -> str:
    """What the two numbers at the highest token say."""
    if before <= 0:
        return "The neuron does not fire on this prompt in the base model. Both strips share one scale of colour."
    change = (after - before) / before
    way = "less" if change < 0 else "more"
    return f"At its highest token the neuron fires {abs(change):.0%} {way} in the tuned model, with nearly the same weights. Both strips share one scale of colour."


def change(page: shell.Page, neuron: Neuron) -> None:
    found = answers.changed(page.source, neuron)
    st.subheader("What tuning changed in it", anchor=False)
    st.caption(
        f"Its value vector moved more than {found.percentile:.0f} % of all value vectors of the model did (chance is 50 %). The null is {found.others} random "
        f"neurons of layer {neuron[0]}: their median, and the middle 90 %."
    )
    left, right = st.columns([6, 5])
    with left:
        show.draw(found.figure, "moved", page.words)
    with right:
        flat = found.table.set_index("vector").T.rename_axis("measure").reset_index()
        show.table(flat.map(lambda cell: cell if isinstance(cell, str) else f"{cell:.6f}" if abs(cell) > 0.99 and abs(cell) <= 1 else f"{cell:.3g}"),
                   "changed", page.words, alt="Norm, cosine and change of the key and of the value of this neuron, beside random neurons of its layer")  # fmt: skip


def examples(page: shell.Page, neuron: Neuron) -> None:
    st.subheader("Where it fires most", anchor=False)
    found = surveyed(page)
    near = neuron in set(state.toxic_neurons(page.source))
    if near and found is None:
        if st.session_state.get("by") == "Selectivity":
            st.caption("Shown here when the texts have been read: see the button above the table.")
            return
        found = ask_survey(
            page,
            "The windows of text on which it fires most, and how often it fires at all: both models read 760 texts for this, once for all neurons near the probe.",
        )
        if found is None:
            return
    if near and found is not None:
        windows = found.examples
    else:
        pair = page.pair
        windows = job_view.ask(
            jobs.key_of("examples", pair.base.digest, pair.tuned.digest, neuron), f"Reading the texts that ship for {name_of(neuron)}",
            lambda step: answers.examples(pair, [neuron], step), f"Read the texts for {show.plain(name_of(neuron))}",
            note="This neuron is not among the 128 nearest to the probe: the 760 texts that ship are read for it alone.",
            help="Reads the texts with both models, once for this neuron.",
        )  # fmt: skip
        if windows is None:
            return
    spread = windows.spread.query("layer == @neuron[0] and neuron == @neuron[1]").set_index("side")
    st.html(
        '<dl class="facts">'
        + "".join(
            fact(f"active in {side}", f"{spread.loc[side, 'active']:.1%}", f"of tokens, highest {spread.loc[side, 'max']:.2f}")
            for side in ("base", "tuned")
        )
        + "</dl>"
    )
    left, right = st.columns([6, 5]) if found is not None else (st.container(), None)
    with left:
        st.caption(
            f"Of {windows.settings['tokens']:,} tokens in {windows.settings['texts']:,} texts, the windows with the highest activation in the base model, and what the tuned model's neuron does at the same token."
        )
        for window in windows.of(*neuron, side="base"):
            tuned = window.activations["tuned"][window.at]
            token = show.visible(window.tokens[window.at], page.words)
            st.html(
                f"<div><b>{window.peak:.2f}</b> in base, <b>{tuned:.2f}</b> in tuned, at {show.escaped(token)}</div>"
                + show.strip(
                    window.tokens,
                    window.activations["base"],
                    show.colour("base"),
                    page.words,
                    label=f"Window {window.rank}, activation {window.peak:.2f} at {token}",
                )
            )
        if not windows.of(*neuron, side="base"):
            st.caption("It is never active in the base model.")
    if right is not None and found is not None:
        with right:
            show.draw(answers.firing(found, neuron), "firing", page.words)


def pinned(page: shell.Page, neuron: Neuron | None) -> None:
    st.header("Pinned sets", anchor=False)
    sets = pins.pinned(page.pair.base)
    if not sets:
        st.caption(
            "None yet. *Pin* above keeps a neuron in a set with a name; sets stay in the link, and the page *Steer and un-align* can scale them."
        )
    for name, neurons in sets.items():
        st.subheader(show.plain(name), anchor=False)
        with st.container(horizontal=True):
            for held in neurons:
                if st.button(
                    show.plain(name_of(held)),
                    key=f"unpin-{name}-{name_of(held)}",
                    icon=":material/close:",
                    help=f"Unpin {name_of(held)}",
                    type="tertiary",
                ):
                    pins.unpin(page.pair.base, name, held)
                    st.rerun()
        left, right, _ = st.columns([3, 3, 5])
        with left:
            shell.link("steer", "Scale these keys", keys=",".join(map(name_of, neurons)))
        if right.button("Forget the set", key=f"forget-{name}", icon=":material/delete:", type="tertiary", help="Unpin all its neurons."):
            pins.unpin(page.pair.base, name)
            st.rerun()


@st.fragment
def directions(page: shell.Page) -> None:
    st.header("Directions that they share", anchor=False)
    st.caption(
        "The singular vectors of the nearest value vectors, strongest first: what they have in common, beside as many random neurons of the same layers. "
        "Where the two halves of the table look alike, the direction is what any neurons share, such as frequent words."
    )
    most = len(state.toxic_neurons(page.source))
    options = [count for count in (8, 16, 32, 64, 128) if count < most] + [most]
    count = st.select_slider(
        "Value vectors",
        options,
        most,
        key="top",
        bind="query-params",
        help="How many of the value vectors nearest to the probe the directions are taken from.",
    )
    show.table(
        answers.shared(page.source, count), "directions", page.words, alt="Shared directions of the nearest value vectors and of random ones, with the words that they promote",
        column_config=config(pd.DataFrame()),
    )  # fmt: skip


with shell.page("vectors", LEAD) as page:
    st.header("Which value vectors", anchor=False)
    neuron = ranking(page)
    honest(page)
    if neuron is not None:
        detail(page, neuron)
    pinned(page, neuron)
    directions(page)
