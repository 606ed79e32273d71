"""A prompt, an edit and three columns that grow; how far the edit carries; and the edit to take along."""

from __future__ import annotations

import json
from functools import partial
from urllib.parse import urlencode

import streamlit as st

from app import job_view, pins, settings, shell, show, streams
from app.answers import steer
from app.edit_forms import NEUTRAL, Form, command, listed, python, rounded, shortened
from app.jobs import key_of
from app.shell import Page
from app.streams import Voice
from interp import Sampling, UserError
from interp.neurons import Neuron
from interp.results import show_number

KEYS, ADD, OUT, SET = "Scale keys", "Add a direction", "Project out", "Set neurons"
SELECTIVE, NEAREST, PINNED, OWN = "Selective", "Nearest to the probe", "A pinned set", "My list"
VECTORS = {"Probe": "probe", "Difference of means": "difference", "Value vector": "value"}
POSITIONS = {"all tokens": "all", "the prompt only": "prompt", "new tokens only": "generated"}
ASKED, EVERY = "steer_asked", 4


def ask_prompt() -> str:
    """The prompt that is set; raises `UserError` for one that is too long."""
    most = settings.limits().prompt_characters
    left, right = st.columns(2)
    offered = steer.prompts()
    first = next((place for place, text in enumerate(offered.values()) if text.startswith(steer.FIRST)), 0)
    chosen = left.selectbox(
        "Prompt", list(offered), index=first, key="prompt", bind="query-params",
        help="Prompts that ship: most break off where a hostile word is likely next, those marked Neutral do not. Masked in this list always.",
    )  # fmt: skip
    own = right.text_input(
        "Or your own", key="own", bind="query-params", max_chars=most, placeholder="Write the beginning of a sentence",
        help=f"Used in place of the chosen prompt; up to {most} characters. It is data: nothing in it is run or looked up.",
    )  # fmt: skip
    text = own if own and own.strip() else offered[chosen] if chosen else ""
    if len(text) > most:
        raise UserError(f"the prompt has {len(text)} characters", f"use at most {most}")
    return text


def ask_sampling() -> tuple[int, Sampling]:
    """How many tokens, and how each is chosen."""
    most = settings.limits().new_tokens
    new = st.number_input(
        "New tokens", 1, most, min(20, most), key="new", bind="query-params", help="How far each column goes on; a text may end sooner."
    )
    with st.popover("Sampling", icon=":material/casino:", width="stretch", help="How the next token is chosen."):
        temperature = st.slider(
            "Temperature", 0.0, 2.0, 0.0, 0.1, key="temperature", bind="query-params",
            help="0 takes the likeliest token each time (greedy), so that the columns differ by the models alone. Higher is more random.",
        )  # fmt: skip
        top_p = st.slider(
            "Top p", 0.05, 1.0, 1.0, 0.05, key="top_p", bind="query-params",
            help="Sample from the likeliest tokens of this total probability. Without effect at temperature 0.",
        )  # fmt: skip
        seed = st.number_input(
            "Seed", 0, 999_999, 0, key="seed", bind="query-params",
            help="The same seed gives the same random numbers. Without effect at temperature 0.",
        )  # fmt: skip
    return int(new), Sampling(temperature, None, float(top_p) if top_p < 1 else None, int(seed))


def ask_neurons(page: Page, side: str) -> tuple[tuple[Neuron, ...], str]:
    """Which neurons, and what to call them."""
    model = steer.model_of(page.source, side)
    which = st.selectbox(
        "Which", [SELECTIVE, NEAREST, PINNED, OWN], key="which", bind="query-params",
        help="Selective: of the 128 neurons whose value vectors are nearest to the toxicity probe, those first that fire at the end of provoking "
        "prompts and not of plain ones. Nearest: those 128 in order of nearness.",
    )  # fmt: skip
    if which in (SELECTIVE, NEAREST):
        found = steer.candidates(page.source, side, "selective" if which == SELECTIVE else "top")
        count = st.number_input(
            "How many", 1, len(found), min(7, len(found)), key="count", bind="query-params", help="Paper A scales seven."
        )
        return found[: int(count)], f"{int(count)} {'selective' if which == SELECTIVE else 'toxic'}"
    if which == PINNED:
        sets = pins.pinned(page.pair.base)
        if not sets:
            shell.link("vectors", "Nothing is pinned yet: pin value vectors first")
            raise UserError("no set of neurons is pinned", "choose another way, or pin some on the page Toxic vectors")
        name = st.selectbox(
            "Set", list(sets), format_func=show.plain, key="set", bind="query-params", help="A set that you pinned under a name."
        )
        return tuple(sets[name]), f"{len(sets[name])} pinned"
    typed = st.text_input(
        "Neurons", key="keys", bind="query-params", max_chars=800, placeholder="5.770,4.12",
        help="LAYER.INDEX with commas between, counted from 0.",
    )  # fmt: skip
    neurons = listed(typed or "", model)
    return neurons, f"{len(neurons)} chosen"


def ask_direction(page: Page, side: str) -> str:
    """Which direction, as a form names it."""
    vector = st.selectbox(
        "Direction", list(VECTORS), key="vector", bind="query-params",
        help="Probe: the direction that best tells toxic from other texts. Difference of means: mean toxic minus mean other text. "
        "Value vector: what one neuron writes.",
    )  # fmt: skip
    if VECTORS[vector] != "value":
        return VECTORS[vector]
    near = steer.candidates(page.source, side, "top")[0]
    typed = st.text_input(
        "Neuron", f"{near[0]}.{near[1]}", key="neuron", bind="query-params", max_chars=20,
        help="LAYER.INDEX, counted from 0; first that whose value vector is nearest to the probe.",
    )  # fmt: skip
    ((layer, index),) = listed(typed or "", steer.model_of(page.source, side))[:1]
    return f"value.{layer}.{index}"


def ask_site(page: Page, side: str) -> str:
    model = steer.model_of(page.source, side)
    layer = st.number_input(
        "Layer", 0, model.n_layers - 1, max(0, model.n_layers - 2), key="layer", bind="query-params", help="Counted from 0."
    )
    site = st.selectbox(
        "Where in the layer", ["after the MLP", "before the MLP"], key="site", bind="query-params",
        help="The residual stream after the layer's MLP (resid_post), or between its attention and its MLP (resid_mid).",
    )  # fmt: skip
    return f"{'resid_post' if site == 'after the MLP' else 'resid_mid'}.{int(layer)}"


def ask_positions() -> str:
    where = st.selectbox(
        "On which tokens", list(POSITIONS), key="positions", bind="query-params", help="The edit leaves the model as it is on all others."
    )
    return POSITIONS[where]


def ask_edit(page: Page) -> tuple[Form, str, float, str]:
    """The edit that is set, what it is called, and by what its strength is divided where it is shown, in numbers and words."""
    first, second = st.columns([3, 1])
    kind = first.segmented_control(
        "What is done", [KEYS, ADD, OUT, SET], default=KEYS, required=True, key="edit", bind="query-params",
        help="Scale keys: neurons read more (or less) of what they look for. Add: push the residual stream along a direction. "
        "Project out: take a direction away. Set: fix what neurons give.",
    )  # fmt: skip
    side = second.segmented_control(
        "To which model", ["tuned", "base"], default="tuned", required=True, key="side", bind="query-params",
        help="Un-aligning edits the tuned model; detoxifying edits the base model.",
    )  # fmt: skip
    left, middle, right = st.columns(3)
    if kind == KEYS:
        with left:
            neurons, name = ask_neurons(page, side)
        with middle:
            factor = st.number_input(
                "Times", -100.0, 100.0, 10.0, 1.0, key="factor", bind="query-params",
                help="The factor of the key vectors. 1 changes nothing, 0 switches them off; paper A uses 10.",
            )  # fmt: skip
        with right:
            form = Form("scale_keys", side, neurons, strength=rounded(factor), positions=ask_positions())
        return form, f"{name} key{'s' if len(neurons) != 1 else ''} × {factor:g}", 1.0, "factor of the keys (1 changes nothing)"
    if kind == SET:
        with left:
            neurons, name = ask_neurons(page, side)
        with middle:
            how = st.selectbox(
                "How", ["Set to", "Multiply by"], key="how", bind="query-params", help="What is done to the neurons' activations."
            )
            value = st.number_input(
                "Number", -100.0, 100.0, 0.0, 0.5, key="value", bind="query-params", help="0 switches the neurons off either way."
            )
        with right:
            form = Form("set" if how == "Set to" else "scale", side, neurons, strength=rounded(value), positions=ask_positions())
        what = f"{name} neuron{'s' if len(neurons) != 1 else ''} {'set to' if how == 'Set to' else '×'} {value:g}"
        return form, what, 1.0, "factor of the activations (1 changes nothing)"
    with left:
        vector = ask_direction(page, side)
    with middle:
        site = ask_site(page, side)
    name = (
        vector.replace("value.", "value vector ")
        if vector.startswith("value.")
        else {"probe": "the probe", "difference": "the difference of means"}[vector]
    )
    if kind == OUT:
        with right:
            form = Form("project_out", side, vector=vector, site=site, positions=ask_positions())
        return form, f"{name} projected out at {site}", 1.0, ""
    with right:
        share = st.slider(
            "Strength", -1.0, 1.0, 0.2, 0.05, key="strength", bind="query-params",
            help="In lengths of the residual stream: at 0.2 what is added is a fifth as long as what is there. Below 0 the direction is subtracted.",
        )  # fmt: skip
        positions = ask_positions()
    unit = steer.lengths(page.source, side)[site] / steer.vector_length(page.source, side, vector)
    form = Form("add", side, vector=vector, site=site, strength=rounded(share * unit), positions=positions)
    st.caption(
        f"The residual stream is {steer.lengths(page.source, side)[site]:.3g} long here on average, so {share:g} of it is "
        f"{show_number(form.strength)} times the direction."
    )
    done = "subtracted" if share < 0 else "added"
    return form, f"{name} {done} at {site}, strength {abs(share):g}", unit, f"strength (share of the residual stream's length at {site})"


def columns(page: Page, asked: tuple[str, int, Sampling, Form | None, str]) -> None:
    """The three answers, as they grow or as they were kept."""
    prompt, new, sampling, form, what = asked
    pair = page.pair
    heads = [("base", "Base", "as it was trained"), ("tuned", "Tuned", "after preference tuning")]
    voices = [Voice(pair.base), Voice(pair.tuned)]
    if form is not None:
        side = steer.voice_name(form)
        title = "Un-aligned" if side == "un-aligned" else f"{form.side.capitalize()}, edited"
        heads.append((side, title, f"{form.side}, with {what}"))
        voices.append(Voice(pair.sides[form.side], steer.edits(page.source, form)))
    places = [column.empty() for column in st.columns(3)]
    scores: list[float | None] = [None] * len(voices)
    steps = [0] * len(voices)

    def tell(place: int, text: str, ended: bool) -> None:
        if ended or (steps[place] % EVERY == EVERY - 1 and text.strip()):
            scores[place] = steer.toxicity(text)
        steps[place] += 1
        places[place].html(show.card(*heads[place], prompt, text, page.words, toxicity=scores[place], waiting=not ended))

    for place, voice in enumerate(voices):
        if streams.said(voice, prompt, new, sampling) is None:
            places[place].html(show.card(*heads[place], prompt, "", page.words, waiting=True))
    try:
        streams.speak(voices, prompt, new_tokens=new, sampling=sampling, on_text=tell)
    except UserError as error:
        for place in places:
            place.empty()
        shell.problem(error)


@st.fragment
def strength_sweep(page: Page, form: Form, what: str, unit: float, unit_name: str, new: int) -> None:
    """Strength against toxicity and price, with random controls, as a job."""
    limits = settings.limits()
    st.html(
        '<p class="lead">One prompt is an anecdote. Here the edit runs at several strengths over many prompts, beside random controls of the same size: '
        "what they do as well is no finding about this edit.</p>"
    )
    if form.op not in NEUTRAL or form.idle:
        st.info(f"There is nothing to sweep: {show.plain(what)} has no strength, or changes nothing.", icon=":material/info:")
        return
    left, right, _ = st.columns([1, 1, 2])
    points = left.selectbox(
        "Strengths", [n for n in (3, 5, 7, 9) if n <= limits.sweep_points], index=1 if limits.sweep_points >= 5 else 0, key="sweep_points", bind="query-params",
        help="How many strengths, evenly from no change to twice what is set above.",
    )  # fmt: skip
    prompts = right.number_input(
        "Prompts", 8, limits.sweep_prompts, min(32, limits.sweep_prompts), 8, key="sweep_prompts", bind="query-params",
        help="More prompts give narrower bands and take longer. None of them decided which keys are selective.",
    )  # fmt: skip
    values = ", ".join(f"{value / unit:.3g}" for value in steer.strengths(form, points))
    key = key_of("sweep", page.pair.base.digest, page.pair.tuned.digest, form, points, int(prompts), new)
    found = job_view.ask(
        key, f"Sweep of {what}",
        partial(steer.sweep, page.source, form, unit, unit_name, points, int(prompts), new),
        "Run the sweep", help="Runs in the background; you can go on, reload or come back.",
        note=f"Strengths {values}; {int(prompts)} prompts, {steer.DRAWS} random controls.",
    )  # fmt: skip
    if found is None:
        return
    for column, figure in zip(st.columns(2), found.figures, strict=True):
        with column:
            show.draw(figure, f"figure_{figure.name}", page.words)
    show.table(
        found.table, "sweep_table", page.words, alt="Toxicity, perplexity, F1 and distinct-2 at each strength, with the range of the random controls",
        column_config={name: st.column_config.NumberColumn(format="percent" if name == "share above half" else "%.3g") for name in found.table},
    )  # fmt: skip


def take_along(page: Page, form: Form, prompt: str, new: int, sampling: Sampling) -> None:
    """The edit in four forms; each does what the column does."""
    # Visitors need not know where on this machine a model lies.
    source = ("BASE_FOLDER", "TUNED_FOLDER") if settings.demo() and page.source is not None else page.source
    edits = steer.edits(page.source, form)
    link = f"{st.context.url or ''}?{urlencode(st.query_params.to_dict())}".rstrip("?")
    texts = {
        "Link": (link, None, "Opens this page with everything that is set, and runs it."),
        "Command line": (command(form, prompt, new, sampling, source), "bash", "Prints the continuation without and with the edit."),
        "Python": (python(form, prompt, new, sampling, source), "python", "Prints the edited continuation."),
        "JSON": (json.dumps(shortened(edits)), "json", "The edit as data, as `Edit.to_json` writes it."),
    }
    for tab, (name, (text, language, note)) in zip(st.tabs(list(texts)), texts.items(), strict=True):
        with tab:
            shown = show.shown(text, page.words)
            st.caption(note)
            st.code(shown, language=language, wrap_lines=True)
            if shown != text:
                st.caption("Masked here, so it would not run as it stands: switch **Show words** on to copy it as it is.")
            if name == "Link":
                st.link_button("Open in a new tab", link, icon=":material/open_in_new:", help="The address of this page holds the same.")
            if name == "JSON":
                whole = json.dumps([edit.to_json() for edit in edits])
                st.download_button(
                    "Download edit.json", whole, "edit.json", "application/json", key="download", on_click="ignore", icon=":material/download:",
                    help="The whole edit with every number; `bypass generate tuned PROMPT --edit edit.json` reads it.",
                )  # fmt: skip


LEAD = "Change one model while it speaks, and watch three columns grow: the base, the tuned model, and the one that you edit. Enlarging a few keys of the tuned model brings back what tuning seemed to have removed."

with shell.page("steer", LEAD) as page:
    fresh = "edit" not in st.session_state
    if "keys" in st.query_params and "which" not in st.query_params and "which" not in st.session_state:
        st.session_state["which"] = OWN
    prompt = ask_prompt()
    st.header("The edit")
    form: Form | None = None
    what = unit_name = ""
    unit = 1.0
    with st.container(border=True):
        try:
            form, what, unit, unit_name = ask_edit(page)
            steer.edits(page.source, form)
        except UserError as error:
            form = None
            shell.problem(error)
    run, number, more, told = st.columns([1.2, 1, 1.2, 4], vertical_alignment="bottom")
    with number:
        holder = st.container()
    pressed = run.button(
        "Run", key="run", type="primary", icon=":material/play_arrow:", width="stretch", disabled=form is None, help="Let all three speak."
    )
    with more:
        new, sampling = ask_sampling()
    now = (prompt, new, sampling, form, what)
    kept = st.session_state.get(ASKED)
    if pressed or fresh or kept is None or kept[0] != page.source:
        kept = st.session_state[ASKED] = (page.source, now)
    st.header("What they say")
    if kept[1] != now:
        st.caption(":material/update: The settings have changed since: press **Run** to hear them.")
    columns(page, kept[1])
    st.header("Strength sweep")
    if form is None:
        st.caption("Mend the edit above first.")
    else:
        strength_sweep(page, form, what, unit, unit_name, new)
    st.header("Take it with you")
    if form is None:
        st.caption("Mend the edit above first.")
    else:
        take_along(page, form, prompt, new, sampling)
