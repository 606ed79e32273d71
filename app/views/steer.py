"""The page Steer: a prompt, an edit and three growing columns; a strength sweep; and the edit as link, command, Python and JSON."""

from __future__ import annotations

import json
from functools import partial
from urllib.parse import urlencode

import streamlit as st

from app import continuations, job_view, settings, shell, show
from app.answers import steer
from app.chat_control import ask_chat
from app.continuations import EditedModel
from app.edit_controls import Asked, Chosen, ask_edit, ask_prompt, ask_sampling
from app.edit_forms import NEUTRAL, Form, command, python, shortened
from app.jobs import key_of
from app.shell import Page
from interp import UserError
from interp.models.chat import Chat
from interp.models.digests import model_key
from interp.models.positions import ROLES

ASKED, EVERY = "steer_asked", 4


def columns(page: Page, asked: Asked) -> None:
    """Draw the three continuations, growing or from the cache."""
    pair, prompt = page.pair, asked.prompt
    heads = [("base", "Base", "as it was trained"), ("tuned", "Tuned", "after preference tuning")]
    models = [EditedModel(pair.base), EditedModel(pair.tuned)]
    if asked.chosen is not None:
        form = asked.chosen.form
        side = steer.role_of(form)
        heads.append((side, "Keys enlarged" if side == "un-aligned" else f"Edited {form.side}", f"{form.side}, {asked.chosen.what}"))
        models.append(EditedModel(pair.sides[form.side], steer.edits(page.source, form)))
    places = [column.empty() for column in st.columns(3)]
    scores: list[float | None] = [None] * len(models)
    steps = [0] * len(models)

    def draw_card(place: int, text: str, ended: bool) -> None:
        steps[place] += 1
        if ended or (steps[place] % EVERY == 0 and text.strip()):
            scores[place] = steer.toxicity(text)
        places[place].html(show.card(*heads[place], prompt, text, page.words, toxicity=scores[place], waiting=not ended))

    for place, edited in enumerate(models):
        if continuations.cached(edited, prompt, asked.new_tokens, asked.sampling, asked.chat) is None:
            places[place].html(show.card(*heads[place], prompt, "", page.words, waiting=True))
    try:
        continuations.continue_together(
            models, prompt, new_tokens=asked.new_tokens, sampling=asked.sampling, on_text=draw_card, chat=asked.chat
        )
    except UserError as error:
        for empty in places:
            empty.empty()
        shell.problem(error)


@st.fragment
def strength_sweep(page: Page, chosen: Chosen, new: int, chat: Chat | bool) -> None:
    """Draw toxicity and perplexity by strength, beside random controls; computed by a job."""
    form, limits = chosen.form, settings.limits()
    if form.op not in NEUTRAL or form.idle:
        st.info("This edit has no strength to sweep, or changes nothing: scale keys, or add a direction.", icon=":material/info:")
        return
    if form.positions in ROLES:
        st.info(
            "An edit of one role's tokens is not swept: perplexity is measured on raw text, which has no roles.", icon=":material/info:"
        )
        return
    left, right, _ = st.columns([1, 1, 2])
    choices = [number for number in (3, 5, 7, 9) if number <= limits.sweep_points]
    points = left.selectbox(
        "Strengths", choices, index=min(1, len(choices) - 1), key="sweep_points", bind="query-params",
        help="How many, evenly from no change to twice what is set above.",
    )  # fmt: skip
    prompts = right.number_input(
        "Prompts", 8, limits.sweep_prompts, min(24, limits.sweep_prompts), 8, key="sweep_prompts", bind="query-params",
        help="More prompts give narrower bands and take longer. None of them decided which keys are selective.",
    )  # fmt: skip
    values = ", ".join(f"{value / chosen.unit:.3g}" for value in steer.strengths(form, points))
    question = (model_key(page.pair.base), model_key(page.pair.tuned), form, points, prompts, new, chat)
    sweep = job_view.ask(
        key_of("sweep", *map(str, question)), f"Sweep of {chosen.what}",
        partial(steer.sweep, page.source, form, chosen.unit, chosen.unit_name, points, prompts, new, chat=chat),
        "Run the sweep", help="It runs in the background: you may go on, reload, or come back later.",
        note=f"Strengths {values} on {prompts} prompts, and {settings.sizes().control_draws} random controls at each.",
    )  # fmt: skip
    if sweep is None:
        return
    for column, figure in zip(st.columns(2), sweep.figures, strict=True):
        with column:
            show.draw(figure, f"figure_{figure.name}", page.words)
    numbers = {name: st.column_config.NumberColumn(format="percent" if name.startswith("share") else "%.3g") for name in sweep.table}
    show.table(
        sweep.table, "sweep_table", page.words, column_config=numbers,
        alt="Toxicity, perplexity, F1 and distinct-2 at each strength, with the range of the random controls",
    )  # fmt: skip


def take_along(page: Page, asked: Asked, form: Form) -> None:
    """Draw the edit in four forms, each of which does the same as the third column."""
    # Visitors are not shown the folders of this machine.
    source = ("BASE_FOLDER", "TUNED_FOLDER") if settings.demo() and page.source is not None else page.source
    what = (form, asked.prompt, asked.new_tokens, asked.sampling, source, asked.chat)
    edits = steer.edits(page.source, form)
    query = urlencode(st.query_params.to_dict())
    link = f"{st.context.url or ''}?{query}" if query else st.context.url or ""
    ways = {
        "Link": (link, None, "Opens this page as it is set now, and runs it. The address bar holds the same."),
        "Command line": (command(*what), "bash", "Prints the continuation without and with the edit."),
        "Python": (python(*what), "python", "Prints the continuation with the edit."),
        "JSON": (json.dumps(shortened(edits)), "json", "The edit as data: `Edit.from_json` reads each object."),
    }
    for tab, (name, (text, language, note)) in zip(st.tabs(list(ways)), ways.items(), strict=True):
        with tab:
            masked = show.shown(text, page.words)
            st.caption(note if masked == text else f"{note} It is masked here: switch **Show words** on to copy what runs.")
            st.code(masked, language=language, wrap_lines=True)
            if name == "Link" and link:
                st.link_button("Open in a new tab", link, icon=":material/open_in_new:", help="A session of its own, with this edit.")
            if name == "JSON":
                st.download_button(
                    "Download edit.json", json.dumps([edit.to_json() for edit in edits]), "edit.json", "application/json", key="download",
                    on_click="ignore", icon=":material/download:",
                    help=f"Every number of it; `bypass generate {form.side} PROMPT --edit edit.json` reads it.",
                )  # fmt: skip


LEAD = (
    "Change one model while it speaks, and watch three columns grow: the base, the tuned model, and the one that you edit. "
    "Enlarged keys raise toxicity in the tuned model; put them into the base model too, to see how much of that is amplification."
)

with shell.page("steer", LEAD) as page:
    fresh = "edit" not in st.session_state
    prompt = ask_prompt()
    chat = ask_chat(page)
    st.header("The edit")
    chosen: Chosen | None = None
    with st.container(border=True):
        try:
            chosen = ask_edit(page, chat)
        except UserError as error:
            shell.problem(error)
    button, number, more, _ = st.columns([1.2, 1.2, 1.2, 3], vertical_alignment="bottom")
    run = button.button(
        "Run", key="run", type="primary", icon=":material/play_arrow:", width="stretch", disabled=chosen is None, help="All three speak."
    )
    new, sampling = ask_sampling(number, more)
    now = Asked(page.source, prompt, new, sampling, chosen, chat)
    asked = st.session_state.get(ASKED)
    if run or fresh or asked is None or asked.source != page.source:
        asked = st.session_state[ASKED] = now
    st.header("What they say")
    changed = "The settings have changed since: press **Run** to hear them." if asked != now else "Toxicity is scored as the text grows."
    st.caption(changed)
    columns(page, asked)
    st.header("Strength sweep")
    st.write(
        "One prompt is an anecdote. Here the edit runs at several strengths on many prompts, beside random controls of the same size: "
        "whatever they do as well is no finding about this edit."
    )
    if chosen is None:
        st.caption("This needs an edit: correct the one above first.")
    else:
        strength_sweep(page, chosen, new, chat)
    st.header("Take it with you")
    st.write("The edit is data: the same numbers give the same words here, in a terminal and in a notebook.")
    if chosen is None:
        st.caption("This needs an edit: correct the one above first.")
    else:
        take_along(page, now, chosen.form)
