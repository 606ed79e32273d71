"""The page Patching: which place carries the difference between two runs, and what the patched run says."""

from __future__ import annotations

import streamlit as st

from app import continuations, job_view, settings, shell, show, state
from app.answers import patching
from app.answers import patching_cells as cellwise
from app.answers import patching_figures as drawn
from app.chat_control import ask_chat
from app.jobs import Step, key_of
from interp import Sampling
from interp.models.sites import ALIASES
from interp.patching.maps import Cell, PatchMap
from interp.patching.patch import ACROSS, WITHIN
from interp.results.result import show_number

PROMPT = "Everyone on that subreddit is a whiny little"
CLEAN, CORRUPTED = "You are awful and full of", "You are happy and full of"
ACROSS_PAIR, WITHIN_MODEL = "across the pair", "within one model"
TOKENS = 20
LEAD = (
    "Take what one place holds in one run and put it into another run: where that brings the other run's answer along, the place "
    "carries the difference. Across the pair, that difference is what DPO changed."
)


def ask(page: shell.Page) -> patching.Question:
    """The question that the controls set: what is patched, and by which metric."""
    limits = settings.limits()
    between = st.segmented_control(
        "Patch", [ACROSS_PAIR, WITHIN_MODEL], default=ACROSS_PAIR, required=True, key="between", bind="query-params",
        help="Across the pair, both models read one prompt. Within one model, it reads two prompts that differ in a word.",
    )  # fmt: skip
    corrupted, side = None, "base"
    with st.form("texts", border=False):
        if between == ACROSS_PAIR:
            text, button = st.columns([5, 1], vertical_alignment="bottom")
            prompt = text.text_input(
                "Prompt", PROMPT, key="patched_prompt", bind="query-params", max_chars=limits.prompt_characters,
                help=f"Both models read it; what is measured comes after its last token. Up to {limits.patched_tokens} tokens.",
            )  # fmt: skip
        else:
            first, second, which, button = st.columns([5, 5, 2, 2], vertical_alignment="bottom")
            prompt = first.text_input(
                "Clean prompt", CLEAN, key="clean", bind="query-params", max_chars=limits.prompt_characters,
                help="The prompt whose answer is to be explained.",
            )  # fmt: skip
            corrupted = second.text_input(
                "Corrupted prompt", CORRUPTED, key="corrupted", bind="query-params", max_chars=limits.prompt_characters,
                help="The same prompt with another word of as many tokens, so that positions line up.",
            )  # fmt: skip
            side = which.selectbox("Model", ["base", "tuned"], key="side", bind="query-params", help="The model that reads both prompts.")
        button.form_submit_button("Patch", type="primary", width="stretch", help="Measure the map for what was typed.")
    chat = ask_chat(page)
    places, measures = st.columns(2)
    if st.query_params.get("site") in ALIASES and "site" not in st.session_state:
        # A link of an earlier version.
        st.session_state["site"] = ALIASES[st.query_params["site"]]
    site = places.selectbox(
        "Site", patching.SITES, key="site", bind="query-params",
        help="What is exchanged: " + "; ".join(f"`{name}` is {what}" for name, what in patching.PLACES.items()) + ".",
    )  # fmt: skip
    metric = measures.selectbox(
        "Metric", patching.METRICS, index=0 if patching.toxic_tokens(page.source) else 1, key="metric", bind="query-params",
        help="`log-probability` of a toxic next word; `probe`: the residual stream along the toxicity probe; `logit-difference` of two "
        "words; `toxicity` of the continuation, which takes long, as every cell is continued.",
    )  # fmt: skip
    words = ("", "")
    if metric == "logit-difference":
        left, right = st.columns(2)
        words = (
            left.text_input("Logit of", key="first", bind="query-params", max_chars=40, placeholder="what the base (clean) run says next",
                            help="A word that is one token; empty: the likeliest next token of the base or clean run."),
            right.text_input("minus logit of", key="second", bind="query-params", max_chars=40,
                             placeholder="what the tuned (corrupted) run says next",
                             help="A word that is one token; empty: the likeliest next token of the tuned or corrupted run."),
        )  # fmt: skip
    return patching.Question(page.source, prompt, corrupted, side, site, metric, words, chat)


def way(question: patching.Question) -> str:
    """The chosen direction, which is only drawn anew."""
    ways = ACROSS if question.across else WITHIN
    return st.segmented_control(
        "Direction", ways, default=ways[0], required=True, key="into" if question.across else "noise", bind="query-params",
        help="Which run's activation goes into which. Denoising puts the clean run into the corrupted one, noising the reverse. Both are "
        "measured at once.",
    )  # fmt: skip


def find(question: patching.Question, direction: str, words: bool) -> patching.Measured | None:
    """The map: measured before, now or by a job; None, and an estimate on the page, until there is one."""
    known = patching.known(question)
    if known is not None:
        return known
    if patching.quick(question):
        with st.spinner("Patching every place in turn …"):
            return patching.measure(question)

    def work(step: Step) -> patching.Measured:
        return patching.measure(question, step)

    measured = job_view.ask(
        key_of("patching", question), "A map of patches", work, "Measure this map",
        help="Patches every place in turn, as a job that survives a reload.", note="This map takes a while to measure.",
    )  # fmt: skip
    if measured is None:
        guess = patching.estimate(question)
        if guess is None:
            st.info("The toxicity of a continuation has no gradient to estimate this map with; it can only be measured.")
        else:
            show.draw(drawn.heat(guess, direction, words=words, dark=dark()), "estimate", words)
    return measured


def dark() -> bool:
    """Whether the page has a dark ground."""
    return st.context.theme.type == "dark"


def clicked(measured: patching.Measured) -> Cell | None:
    """The cell that was clicked since the last run, or None."""
    event = st.session_state.get("map")
    points = event.selection.points if event else []
    news = [(point.get("curve_number"), point.get("point_index"), point.get("x"), point.get("y")) for point in points][:1]
    if news == st.session_state.get("map_seen"):
        return None
    st.session_state["map_seen"] = news
    return cellwise.cell_at(measured.cells, news[0]) if news else None


def into_link(key: str) -> None:
    """Set a widget's state again: within a fragment Streamlit writes into the link only what the script sets."""
    st.session_state[key] = st.session_state[key]


def choose(measured: patching.Measured, direction: str) -> Cell:
    """The cell that the boxes name, set by a click on the map, by the link, or by hand; while they are empty, the strongest cell."""
    cells = measured.cells
    kinds, click = cellwise.choices(cells), clicked(measured)
    names = cellwise.named(cells, cellwise.strongest(cells, direction))
    for (kind, options), column in zip(kinds.items(), st.columns(len(kinds)), strict=True):
        if click is not None:
            st.session_state[kind] = cellwise.named(cells, click)[kind]
        elif st.session_state.get(kind) not in (None, *options):
            # The choice named a token of another prompt.
            st.session_state[kind] = None
        picked = column.selectbox(
            kind.capitalize(), options, index=None, key=kind, bind="query-params", on_change=into_link, args=(kind,),
            placeholder=names[kind],
            help=f"The {kind} of the cell that is shown; empty, that of the strongest one (in the residual stream, below the last layer, "
            "where the last token holds the whole answer). A click on the map sets it.",
        )  # fmt: skip
        names[kind] = picked or names[kind]
    return cellwise.cell_named(cells, names)


@st.fragment
def explore(page: shell.Page, question: patching.Question, direction: str) -> None:
    """Draw the map, one cell of it, and the layers."""
    with shell.errors_shown():
        measured = patching.known(question)
        if measured is not None:
            map_and_cell(page, question, measured, direction)


def map_and_cell(page: shell.Page, question: patching.Question, measured: patching.Measured, direction: str) -> None:
    """Draw the content of the fragment."""
    roles = patching.ends(direction)
    st.caption(
        show.plain(
            f"Each cell is one run of {patching.phrase(roles.target)} in which one place is taken from {patching.phrase(roles.source)}: "
            f"{patching.PLACES[question.site]}. The number is how far that moves the metric, which is {patching.says(question)}."
        )
    )
    left, right = st.columns([5, 3], gap="large")
    with right:
        cell = choose(measured, direction)
        st.html(facts(measured, direction, cell))
    with left:
        show.draw(drawn.heat(measured.cells, direction, cell, page.words, dark()), "map", page.words, select=True)
        st.caption("Click a cell for what it changes, or name it in the boxes.")
    st.header("What the patched run says")
    spoken = cellwise.next_tokens(question, direction, cell)
    likeliest, changes = st.columns(2, gap="large")
    with likeliest:
        show.draw(drawn.next_figure(spoken, direction, page.words), "next", page.words)
    with changes:
        st.markdown("**Tokens whose probability of coming next changed most**")
        show.table(
            drawn.change_table(spoken, direction, page.words), "changed", page.words,
            alt="Tokens whose probability of being next changed most under the patch",
        )  # fmt: skip
    st.caption("How each run goes on; the patch acts on the prompt alone, and what follows is the model's own.")
    speak(page, question, measured.cells, direction, cell)
    st.header("Layer by layer")
    show.draw(drawn.by_layer(measured, direction), "layers", page.words)
    agree(question, measured, direction, page.words)


def facts(measured: patching.Measured, direction: str, cell: Cell) -> str:
    """The numbers of one cell as HTML."""
    numbers = cellwise.numbers_of(measured.cells, direction, cell)
    roles = patching.ends(direction)
    rows = [
        ("effect of this patch", show_number(numbers.effect), f"{show_number(numbers.share, 'share')} of the whole difference"),
        (f"{roles.target}, as it is", show_number(numbers.target), ""),
        ("patched", show_number(numbers.value), ""),
        (f"{roles.source}, as it is", show_number(numbers.source), ""),
    ]
    if numbers.null is not None:
        rows.append(("random change of this size", f"≤ {show_number(numbers.null)}", f"in size, of {patching.DRAWS} draws"))
    return show.facts(show.fact(name, (number, note)) for name, number, note in rows)


def speak(page: shell.Page, question: patching.Question, cells: PatchMap, direction: str, cell: Cell) -> None:
    """Draw three continuations: of the target run, patched, and of the source run."""
    roles = patching.ends(direction)
    spoken = cellwise.edited_models(question, direction, cell)
    names = [f"{kind} {name}" for kind, name in cellwise.named(cells, cell).items()]
    sides = (roles.target, "edited", roles.source) if question.across else (question.side, "edited", question.side)
    titles = (roles.target, "patched", roles.source)
    about = ("as it is", f"{', '.join(names)} from {roles.source}", "as it is")
    slots = [column.empty() for column in st.columns(3)]
    scorer = state.scorer()

    def drawing(place: int) -> continuations.OnText:
        def draw_card(_: int, text: str, ended: bool) -> None:
            score = float(scorer.score([text])["toxicity"].iloc[0]) if ended and text else None
            title = titles[place].capitalize()
            card = show.card(sides[place], title, about[place], spoken[place][0], text, page.words, toxicity=score, waiting=not ended)
            slots[place].html(card)

        return draw_card

    for place, (prompt, edited) in enumerate(spoken):
        continuations.continue_together(
            [edited], prompt, new_tokens=min(TOKENS, settings.limits().new_tokens), sampling=Sampling(), on_text=drawing(place),
            chat=question.chat,
        )  # fmt: skip


def agree(question: patching.Question, measured: patching.Measured, direction: str, words: bool) -> None:
    """Draw the estimate from one gradient, and how far it agrees."""
    trust = patching.trust(question, measured.cells, direction)
    guess = patching.estimate(question)
    if trust is None or guess is None:
        return
    with st.expander(f"The same map from one gradient (attribution patching): correlation {trust[0]:.2f}"):
        st.write(
            f"An approximation to first order, for the price of one backward pass. Here it agrees with the measurement at a correlation of "
            f"{trust[0]:.3f}, and names {trust[1]:.0%} of the ten largest cells. It misjudges patches that are large, or that saturate."
        )
        show.draw(drawn.heat(guess, direction, words=words, dark=dark()), "guess", words)


with shell.page("patching", LEAD) as page:
    question = ask(page)
    patching.check(question)
    st.header("Which place carries the difference?")
    direction = way(question)
    if find(question, direction, page.words) is not None:
        explore(page, question, direction)
    st.header("What this does not show")
    st.markdown(
        "Patching shows where a difference *can be carried* for this prompt and this metric. It does not show where training made it: a "
        "residual stream holds all that the layers below wrote. Effects of single cells do not add up, a place with no effect may have a "
        "stand-in elsewhere, and a patched run is a state that neither run reaches by itself. One prompt is no average; the report's "
        "experiments measure many."
    )
