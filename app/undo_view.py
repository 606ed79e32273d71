"""What the page Elasticity draws: curves by dose, an outcome, and a visitor's own run from its question to its end."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app import job_view, settings, shell, show
from app.answers import elasticity as answers
from app.answers import elasticity_runs as runs
from app.jobs import Job
from interp.elasticity.undo import ARMS
from interp.errors import UserError

RUN = "undo"
TYPED, FILE = "typed here", "a file"
LIVE = 2.0


def outcome(result: answers.Outcome, key: str, words: bool) -> None:
    """Draw a run that came to its end: what it showed, its curves, its numbers."""
    st.markdown(listed(result.sentences, words))
    if not result.curves.attacks:
        return
    curves(result.curves, result.curves.attacks, answers.strongest(result.curves), key, words)
    with st.expander("Every dose in numbers"):
        show.table(
            answers.table(result.curves), f"doses-{key}", words, alt="Behaviour and KL to the base by arm, learning rate and dose",
        )  # fmt: skip


def curves(drawn: answers.Curves, attacks: list[str], first: str, key: str, words: bool) -> None:
    """Draw behaviour and distribution side by side, under one of the ways of training (`attacks`; at first `first`)."""
    attack = first
    if len(attacks) > 1:
        attack = st.segmented_control(
            "Way of training", attacks, default=first, required=True, key=f"attack-{key}",
            help="All weights are trained, at this constant learning rate.",
        )  # fmt: skip
    if attack not in drawn.attacks:
        st.caption("No dose has been measured with it yet.")
        return
    for column, figure in zip(st.columns(2, gap="large"), answers.figures_of(drawn, attack), strict=True):
        with column:
            show.draw(figure, f"{key}-{figure.name}", words)
    st.html(show.facts(show.fact(name, (share, note)) for name, share, note in answers.last_doses(drawn, attack)))


def listed(sentences: tuple[str, ...], words: bool) -> str:
    """Sentences as a list in Markdown, masked unless `words`."""
    return "\n".join(f"- {show.plain(show.shown(text, words))}" for text in sentences)


def own(page: shell.Page) -> None:
    """Draw the visitor's own run, or the form that begins one."""
    token = st.query_params.get(RUN) or st.session_state.get(RUN)
    run = runs.find(token) if token else None
    if run is None:
        if token:
            leave()
            st.info("This run is no longer kept: the app was started anew, or others came after it.", icon=":material/info:")
        form(page)
        return
    st.session_state[RUN] = st.query_params[RUN] = run.token
    follow(run, page.words)


def leave() -> None:
    """Forget which run this session looks at."""
    st.session_state.pop(RUN, None)
    st.query_params.pop(RUN, None)


def form(page: shell.Page) -> None:
    """Draw the question's form, and begin the run that it describes."""
    limits = settings.limits()
    which = st.segmented_control("Texts", [TYPED, FILE], default=TYPED, required=True, key="texts_from")
    file: tuple[str, bytes] | None = None
    if which == TYPED:
        text = st.text_area(
            "Texts that may undo the tuning, one a line", key="own_texts", height=160, max_chars=limits.uploaded_bytes // 4,
            placeholder="one text a line",
        )  # fmt: skip
        file = runs.typed(text) if text.strip() else None
    else:
        upload = st.file_uploader(
            "A file of texts that may undo the tuning", runs.UPLOADED, key="own_file",
            max_upload_size=max(1, limits.uploaded_bytes // 1_000_000), help="txt, one text a line; csv, tsv, json or jsonl with `text`.",
        )  # fmt: skip
        file = runs.uploaded(upload.name, upload.getvalue()) if upload is not None else None
    st.caption(
        f"Up to {limits.uploaded_bytes // 1000:,} kB. The texts stand in a temporary folder until another question is asked, newer runs "
        "take its place, or the app stops; the run is found by the link of this page alone."
    )
    left, right = st.columns(2, gap="large")
    beside = left.multiselect(
        "Trained on besides, for comparison", runs.BESIDE, default=["neutral", "same"], key="undo_beside", bind="query-params",
        placeholder="nothing",
        help=" ".join(f"`{arm}`: {ARMS[arm]}." for arm in runs.BESIDE) + " Without `neutral` it is not known what any training undoes; "
        "without `same` a return to the base is not tested.",
    )  # fmt: skip
    steps = right.multiselect(
        "Doses, in steps", runs.STEPS, default=[1, 5, 10], key="undo_steps", bind="query-params", placeholder="choose at least one",
        help=f"A step reads {runs.BATCH} windows of 96 tokens. The model is measured after each of these.",
    )  # fmt: skip
    rates = left.multiselect(
        "Learning rates", runs.RATES, default=[1e-4], key="undo_rates", bind="query-params", format_func=lambda rate: f"{rate:g}",
        placeholder="choose at least one",
        help="The one under which your texts undo most is reported first. A rate that is too low shows nothing.",
    )  # fmt: skip
    prompts = right.segmented_control(
        "Challenge prompts", runs.PROMPTS, default=50, required=True, key="undo_prompts", bind="query-params",
        help="On which toxicity is measured. Few make the intervals wide.",
    )  # fmt: skip
    if not st.button("Make the plan", type="primary", icon=":material/schedule:"):
        st.caption(
            "The plan measures the two models and one step, and says how long the rest takes. Nothing is trained before you start it."
        )
        return
    if file is None:
        st.caption("Give at least one text.")
    else:
        question = runs.Question(page.source, *file, ("opposite", *beside), tuple(sorted(steps)), tuple(sorted(rates)), int(prompts))
        begin(question)


def begin(question: runs.Question) -> None:
    """Begin a run and its plan, and look at it from here on."""
    run = runs.begin(question)
    try:
        runs.line.start(runs.plan_key(run), "A plan", partial(runs.make_plan, run))
    except UserError:
        runs.forget(run)
        raise
    st.session_state[RUN] = st.query_params[RUN] = run.token
    st.rerun()


def follow(run: runs.OwnRun, words: bool) -> None:
    """Draw a run: its question, its plan, and what has been measured of it."""
    question = run.question
    text, button = st.columns([5, 1], vertical_alignment="center")
    rates, steps = ", ".join(runs.attacks(run)), ", ".join(map(str, question.steps))
    text.markdown(show.plain(
        f"{run.texts} different texts ({question.name}); arms {', '.join(question.arms)}; measured at steps {steps}; {rates}; "
        f"{question.prompts} prompts; one seed."
    ))  # fmt: skip
    if button.button("Another question", key="another", help="Ends this run and removes its texts.", width="stretch"):
        runs.forget(run)
        leave()
        st.rerun()
    if job_view.ask(
        runs.plan_key(run), "A plan", partial(runs.make_plan, run), "Make the plan", cancelled="Cancelled before there was a plan.",
        line=runs.line,
    ):  # fmt: skip
        train(run, words)


def train(run: runs.OwnRun, words: bool) -> None:
    """Draw the plan, the job that carries it out, and its curves."""
    plan, most = runs.plan_of(run), settings.limits().undo_minutes
    st.markdown(show.plain(show.shown(runs.gap(run), words)))
    if plan is None:
        st.caption("Fewer prompts than it takes can hide a difference: another question can have more of them.")
        return
    job = runs.line.find(runs.train_key(run))
    with st.expander("The plan", expanded=job is None):
        st.markdown(listed(plan.lines, words))
    if plan.minutes > most:
        st.warning(
            f"The plan takes about {plan.minutes:.0f} minutes, and up to {most} are run here. Ask another question with fewer doses, "
            "learning rates, kinds of text or prompts.", icon=":material/schedule:",
        )  # fmt: skip
        return
    done = runs.measured(run)
    left = plan.minutes * (1 - done / run.points)
    about = f"about {job_view.duration(max(1.0, 60 * left))}"
    label = f"Go on: {about} left" if done else f"Train and measure: {about}"
    whole = job_view.ask(
        runs.train_key(run), "What undoes a tuning", partial(runs.train, run), label, line=runs.line,
        cancelled=f"Cancelled. {done} of {run.points} doses were measured and are kept; it goes on from the last step that was saved.",
    )  # fmt: skip
    if whole:
        result = answers.outcome_in(run.out / "undo.json")
        outcome(result, run.token, words)
        st.caption(show.plain(answers.scope(result)))
        downloads(run)
    elif job is not None and not job.over:
        live(run, job, words)
    elif done:
        so_far(run, words)


@st.fragment(run_every=LIVE)
def live(run: runs.OwnRun, job: Job, words: bool) -> None:
    """The curves as they are by now, drawn anew while the job goes on."""
    if not job.over:
        so_far(run, words)


def so_far(run: runs.OwnRun, words: bool) -> None:
    """Draw what has been measured by now."""
    record = runs.record_of(run)
    if record is None or not any(one.points for one in record.runs):
        st.caption("Curves appear here with the first dose.")
        return
    drawn = answers.curves_of(record, runs.behaviour())
    attacks = runs.attacks(run)
    curves(drawn, attacks, next((name for name in attacks if name in drawn.attacks), attacks[0]), run.token, words)


def downloads(run: runs.OwnRun) -> None:
    """Draw the downloads of the numbers; the command's own page names folders of this machine, and is not among them."""
    for column, (name, kind) in zip(st.columns(3), (("undo.csv", "text/csv"), ("undo.json", "application/json")), strict=False):
        column.download_button(
            name, (run.out / name).read_bytes, name, kind, key=f"get-{name}", on_click="ignore", icon=":material/download:",
            width="stretch",
        )  # fmt: skip
