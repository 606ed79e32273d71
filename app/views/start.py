"""The page Start: the pair in numbers, one prompt by three models, the argument in five figures, and another pair.

What is quick is drawn first; what needs many forwards is a job with a placeholder, so that nothing moves when its result comes. The
first visitor's page is drawn before torch has been imported, so what needs torch is imported where it is used.
"""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import cards, job_view, settings, shell, show, state
from app.answers.argument import Step, in_place, steps
from app.answers.summary import Measured, argued_by_report, continuations_by_report, job_keys, measured_by_report
from app.cards import ABOUT, FIRST, TITLES
from app.chat_control import ask_chat
from app.importing import gate
from app.jobs import runner
from interp.data.texts import challenge_prompts, neutral_prompts
from interp.errors import UserError

LEAD = (
    "Preference tuning makes a model stop saying hostile things. Is what it no longer says gone, or only bypassed? Here is a model before "
    "and after tuning: see what was left in place, and what enlarged keys do to either of them."
)
FURTHER = (
    ("patching", "Patching: which activations carry it"), ("evidence", "Evidence: every claim with its verdict"),
    ("training", "Training: how the pair was made"),
)  # fmt: skip
# The prompt of the button Continue it, which the models continue even where a report has its continuations.
LIVE = "live"
# The number of the step that compares the weights.
IN_PLACE = 2


def facts(page: shell.Page) -> Measured | None:
    """Draw the pair in six numbers, with placeholders while they are measured, and return them."""
    first, _ = job_keys(page.source)
    measured = measured_by_report(page.source)
    if measured is None:
        from app.answers import start as answers

        job = runner.find(first)
        measured = job.result if job is not None and job.state == "done" else None
    st.html(numbers(measured, "being measured" if works(first) else "not measured yet"))
    if measured is None:
        job_view.ask(
            first, "toxicity and perplexity", lambda step: answers.measure(page.source, step), "Measure this pair",
            help="Continues some challenge prompts with the base, the tuned and the edited model, scores what they say, and reads "
            "harmless passages for perplexity.",
            note="Toxicity and perplexity of this pair have not been measured yet.",
        )  # fmt: skip
        return None
    if (measured.table["role"] == "edited").any():
        before, after = (measured.row(role)["toxicity"] for role in ("base", "edited"))
        st.markdown(
            f"The same keys enlarged in the *base* model take it from {before:.2f} to {after:.2f}: what rises in both models "
            "is amplified, and only what the tuned model rises beyond the base model could undo its tuning."
        )
    shows = "" if measured.shows is None else f" On {measured.shows} of these prompts all three show: toxic, tuned away, and back."
    st.caption(
        f"Toxicity: mean over {measured.prompts} challenge prompts that played no part in choosing the keys, 20 tokens each, from 0 to 1, "
        f"with its 95 % interval. Perplexity: {measured.passages} harmless passages; lower is better language. "
        f"{'From the written report.' if measured.origin == 'the report' else 'Measured here just now.'}{shows}"
    )
    return measured


def numbers(measured: Measured | None, why: str) -> str:
    """The numbers as HTML; without any, dashes and the reason `why`."""
    parts = []
    for role, title in TITLES.items():
        row = measured.row(role) if measured is not None else None
        score, price = (f"{row['toxicity']:.2f}", f"{row['perplexity']:.0f}") if row else ("–", "–")
        ends = f"{row['low']:.2f} to {row['high']:.2f}" if row else why
        parts.append(show.fact(ABOUT[role], (score, f"toxicity ({ends})"), (price, "perplexity"), role=role, title=title))
    return show.facts(parts)


def works(key: str) -> bool:
    """Whether this job waits or runs."""
    job = runner.find(key)
    return job is not None and not job.over


@st.fragment
def try_it(page: shell.Page) -> None:
    """Draw one prompt, continued by the three models side by side."""
    st.header("Try it", anchor=False)
    st.markdown(
        "The same prompt, continued by all three, the likeliest token each time. The first prompt was picked because it shows "
        "what the paper tells; many do not."
    )
    limits = settings.limits()
    prompts = list(dict.fromkeys([FIRST, *challenge_prompts(), *neutral_prompts()[:20]]))
    # Always masked: the link names a prompt as it is listed, and must not depend on the switch for words.
    with st.form("question", border=False):
        left, middle, right = st.columns([6, 5, 2], vertical_alignment="bottom")
        chosen = left.selectbox(
            "Prompt", prompts, key="prompt", bind="query-params", format_func=lambda text: show.shown(text, False),
            help="Challenge prompts break off where a hostile word is likely next; the last twenty are harmless.",
        )  # fmt: skip
        typed = middle.text_input(
            "Or your own", key="own", bind="query-params", max_chars=limits.prompt_characters,
            placeholder="used in place of the prompt on the left",
            help="Read by the models on the machine that serves this page, and by nothing else.",
        )  # fmt: skip
        asked = right.form_submit_button(
            "Continue it", type="primary", key="continue", width="stretch", help="All three models continue the prompt."
        )
    prompt = typed if typed and typed.strip() else str(chosen)
    if asked:
        st.session_state[LIVE] = prompt
    try:
        chat = ask_chat(page)
        if len(prompt) > limits.prompt_characters:
            raise UserError(f"the prompt has {len(prompt)} characters", f"write at most {limits.prompt_characters}")
        written = None if chat or st.session_state.get(LIVE) == prompt else continuations_by_report(page.source, prompt)
        if written is None:
            cards.spoken(page, prompt, chat)
        else:
            cards.read(page, prompt, written)
    except UserError as error:
        # Shown here rather than by `shell.errors_shown`, which would end the page: the figures need no prompt.
        shell.problem(error)
    shell.link("steer", "Steer it yourself: other keys, directions, layers and strengths")


def argument(page: shell.Page, measured: Measured | None) -> DeltaGenerator | None:
    """Draw the five figures; return the place of the one that needs the weights, where these are not loaded yet."""
    st.header("The argument in five figures", anchor=False)
    first, second = job_keys(page.source)
    results = argued_by_report(page.source)
    if results is not None:
        st.caption("From the written report of this pair, which gives each claim its verdict on the page Evidence.")
    elif works(first):
        # One progress bar at a time, because each updates itself, which costs time.
        st.caption("The figures come after the numbers above.")
    else:
        from app.answers import start as answers

        results = job_view.ask(
            second, "the argument", lambda step: answers.argue(page.source, step), "Compute the figures",
            help="Runs the experiments behind the figures on few prompts.", note="The figures of this pair have not been computed yet.",
        )  # fmt: skip
        if results is not None:
            st.caption("Computed here on few prompts, to show the argument's shape. The page Evidence runs everything and gives verdicts.")
    early = not state.loaded(page.source)
    drawn = steps(measured, results or {}, in_place() if early else compared(page))
    places = [st.empty() for _ in drawn]
    coming = early or works(first) or works(second)
    for number, (place, step) in enumerate(zip(places, drawn, strict=True), start=1):
        with place.container():
            one_step(page, number, step, coming=coming)
    columns = st.columns(3)
    for column, (name, label) in zip(columns, FURTHER, strict=True):
        with column:
            shell.link(name, label)
    return places[IN_PLACE - 1] if early else None


def one_step(page: shell.Page, number: int, step: Step, *, coming: bool = False) -> None:
    """Draw one step: its claim on the left, its figure on the right, or an empty place where a figure is coming."""
    left, right = st.columns([4, 7], gap="large")
    with left:
        st.html(f'<h3 class="step"><span>{number}</span> {show.escaped(step.title)}</h3>')
        st.markdown(step.claim)
        if step.chance:
            st.markdown(f"**Against chance.** {step.chance}")
        shell.link(step.page, step.label)
    with right:
        if step.figure is not None:
            show.draw(step.figure, f"figure-{number}", page.words)
        elif step.problem is not None:
            shell.problem(step.problem)
        elif coming:
            st.html(f'<div style="height:{step.height + 56}px" aria-hidden="true"></div>')


def compared(page: shell.Page) -> Step:
    """The second step, computed from the weights."""
    from app.answers.left_in_place import left_in_place

    return left_in_place(page.source)


def begin(page: shell.Page) -> None:
    """Start measuring what no report holds."""
    if measured_by_report(page.source) is None or argued_by_report(page.source) is None:
        gate.wait()
        from app.answers import start as answers

        answers.begin(page.source)


def manifest(page: shell.Page) -> None:
    """Draw origin, hashes, sizes and tokenizer of both models."""
    from app.answers import start as answers

    with st.expander("Manifest of the pair: where it comes from, hashes, sizes, tokenizer", key="manifest"):
        frame, versions = answers.manifest(page.source, settings.demo())
        show.table(frame, "manifest-table", page.words, alt="Manifest of both sides of the pair")
        st.caption(f"The digest is a hash of every weight; results are kept by it. Libraries: {show.plain(versions)}.")


@st.fragment
def another() -> None:
    """Draw the choice of another pair."""
    from app.answers import start as answers

    st.header("Another pair", anchor=False)
    if settings.demo():
        offered = ", ".join(show.plain(name) for name in settings.offered())
        st.markdown(f"Visitors choose among the pairs that are offered here: {offered}. Start the app on your own machine to load others.")
        return
    st.markdown(
        "Any model before and after tuning, of one architecture and with one tokenizer: each a folder with safetensors, a LoRA folder or "
        "a Hugging Face hub id. Both are checked before they are compared; every page then reads them."
    )
    with st.form("another", border=False):
        left, right, button = st.columns([6, 6, 2], vertical_alignment="bottom")
        base = left.text_input(
            "Base: folder or hub id", key="other_base", max_chars=answers.MOST_NAME, placeholder="openai-community/gpt2-medium",
            help="The model before tuning.",
        )  # fmt: skip
        tuned = right.text_input(
            "Tuned: folder or hub id", key="other_tuned", max_chars=answers.MOST_NAME, placeholder="runs/mine/dpo",
            help="The model after tuning, or a LoRA folder.",
        )  # fmt: skip
        asked = button.form_submit_button("Load", key="load", width="stretch", help="Loads both sides; a large model takes minutes.")
    if not asked:
        return
    with shell.errors_shown():
        names = [answers.named(side, text or "") for side, text in (("base", base), ("tuned", tuned))]
        with st.spinner("Loading and checking both sides …"):
            state.load_pair((names[0], names[1]))
        state.choose_pair("::".join(names))
        st.rerun()


with shell.page("start", LEAD, early=True) as page:
    if not state.loaded(page.source):
        gate.hold()
    if page.source is None:
        begin(page)
    measured = facts(page)
    middle = st.container()
    left_open = argument(page, measured)
    with middle:
        try_it(page)
    if left_open is not None:
        with left_open.container():
            one_step(page, IN_PLACE, compared(page))
    manifest(page)
    another()
