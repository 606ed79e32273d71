"""The sections on one neuron: the tokens it promotes, where it fires, and how tuning changed it. Every section names its null."""

from __future__ import annotations

import streamlit as st

from app import job_view, jobs, settings, shell, show, state
from app.answers import vectors as answers
from app.answers import vectors_firing as firing
from app.answers.vectors import name_of
from app.answers.vectors_firing import Survey
from interp import Examples, UserError
from interp.models.digests import model_key
from interp.models.model import Neuron
from interp.neurons.example_results import Window
from interp.neurons.vocabulary import JUDGED_TOKENS

SIDES = ("base", "tuned")


def facts(page: shell.Page, neuron: Neuron) -> None:
    """Draw three numbers of the neuron: cosine with the probe, hostile words, and how far tuning moved its value vector."""
    place, cosine = answers.places(page.source)[neuron]
    moved, null = answers.changed(page.source, neuron), answers.hostility(page.source).null
    (count,) = answers.hostile([answers.words_of(page.source, neuron)])
    st.html(show.facts([
        show.fact("cosine with the probe", (f"{cosine:.3f}", f"place {place:,} of {len(answers.places(page.source)):,}")),
        show.fact("hostile words", (f"{count} of {JUDGED_TOKENS}", f"random neurons {JUDGED_TOKENS * null:.2g}")),
        show.fact("tuning moved its value vector by", (f"{100 * moved.moved:.2f} %", f"of its norm, cosine {moved.cosine:.6f}")),
    ]))  # fmt: skip


def words(page: shell.Page, neuron: Neuron) -> None:
    """Draw the tokens that the neuron promotes and suppresses, in both models."""
    tokens = answers.written(page.source, neuron)
    same, many = tokens.same(), len(tokens.promoted["base"])
    st.subheader("What it writes", anchor=False)
    left = "tuning left them in place" if same > many / 2 else "tuning changed what it writes"
    st.caption(
        "The words whose logits one unit of activation raises or lowers most. "
        f"{same} of the {many} that it promotes in the base model are the same in the tuned model: {left}."
    )
    parts = [(kind, side) for kind in ("Promoted", "Suppressed") for side in SIDES]
    for column, (kind, side) in zip(st.columns(len(parts)), parts, strict=True):
        rows = (tokens.promoted if kind == "Promoted" else tokens.suppressed)[side]
        column.html(show.bars(rows, show.colour(side), page.words, caption=f"{kind}, {side} (logit per unit)", number="+.2f"))


@st.fragment
def fires(page: shell.Page, neuron: Neuron) -> None:
    """Draw the neuron's activation at each token of one prompt, in both models."""
    st.subheader("Where it fires in a prompt", anchor=False)
    text = st.text_input(
        "Prompt", key="text", bind="query-params", max_chars=settings.limits().prompt_characters,
        placeholder=f"Type your own; empty: of the first {firing.TRIED} challenge prompts, the one on which it fires most",
        help="Every token is shaded by the activation of this neuron there; hover over a token for the number.",
    )  # fmt: skip
    try:
        fired = firing.fired(page.source, neuron, text)
    except UserError as error:
        shell.problem(error)
        return
    for side in SIDES:
        title = f"{side.capitalize()}: {fired.window.activations[side][fired.window.at]:.2f} at {peak(fired.window, page.words)}"
        head = f'<div><span class="role" style="--hue:{show.colour(side)}">{show.escaped(title)}</span></div>'
        st.html(head + strip(fired.window, side, page.words, fired.top))
    cut = "" if fired.whole else " The text is longer than the model reads at once: the part with the highest activation is shown."
    st.caption(compared(*(fired.window.activations[side][fired.window.at] for side in SIDES)) + cut)


def strip(window: Window, side: str, words: bool, top: float) -> str:
    """The tokens of a window as HTML, shaded by the activation in one model."""
    values = window.activations[side]
    label = f"Activation of neuron {window.layer}.{window.neuron} in the {side} model: {values[window.at]:.2f} at {peak(window, words)}"
    return show.strip(window.tokens, values, show.colour(side), words, top=top, label=label)


def peak(window: Window, words: bool) -> str:
    """The token of the highest activation; masked with its neighbours, because a word may be cut into several tokens."""
    return show.visible(window.strip(masked=not words)[window.at][0], True)


def compared(before: float, after: float) -> str:
    """A sentence that compares the base and tuned activations at the token of the highest one."""
    scale = "Both strips share one scale of colour."
    if before <= 0:
        return f"The neuron does not fire on this prompt in the base model. {scale}"
    if after <= 0:
        return f"At its highest token the neuron no longer fires in the tuned model. {scale}"
    change = after / before - 1
    way = "less strongly" if change < 0 else "more strongly"
    return f"At its highest token the neuron fires {abs(change):.0%} {way} in the tuned model. {scale}"


def change(page: shell.Page, neuron: Neuron) -> None:
    """Draw how far tuning moved the key and the value, beside random neurons of the layer."""
    changed = answers.changed(page.source, neuron)
    st.subheader("What tuning changed in it", anchor=False)
    st.caption(
        f"Its value vector moved more than {changed.percentile:.0f} % of all value vectors of the model did (chance is 50 %). "
        f"The null: {changed.others} random neurons of layer {neuron[0]}."
    )
    left, right = st.columns([6, 5])
    with left:
        show.draw(changed.figure, "moved", page.words)
    with right:
        show.table(
            changed.table, "changed", page.words, column_config=COLUMNS,
            alt="Norm, cosine and change of the key and of the value of this neuron, beside random neurons of its layer",
        )  # fmt: skip


COLUMNS = {
    "measure": st.column_config.TextColumn(width=200),
    "key": st.column_config.TextColumn(width=105, help="What the neuron reads."),
    "value": st.column_config.TextColumn(width=105, help="What the neuron writes."),
}


def survey_key(page: shell.Page) -> str:
    """The key of the job that reads all texts that ship with this pair."""
    return jobs.key_of("texts", model_key(page.pair.base), model_key(page.pair.tuned))


def surveyed(page: shell.Page) -> Survey | None:
    """The result of reading the texts, or None where they have not been read."""
    job = jobs.runner.find(survey_key(page))
    return job.result if job is not None and job.state == "done" else None


def ask_survey(page: shell.Page, note: str) -> Survey | None:
    """The result of reading the texts, or None and the button that starts it."""
    pair, neurons = page.pair, state.toxic_neurons(page.source)
    survey: Survey | None = job_view.ask(
        survey_key(page), "Reading the texts that ship", lambda step: firing.survey(pair, neurons, step), "Read the texts that ship",
        help="Reads 760 short texts with both models, once for all neurons near the probe; half a minute for the pair that ships.",
        note=note,
    )  # fmt: skip
    return survey


def most(page: shell.Page, neuron: Neuron, asked: bool) -> None:
    """Draw the texts on which the neuron fires most; `asked`: the button that reads them is on the page already."""
    st.subheader("Where it fires most", anchor=False)
    near = neuron in state.toxic_neurons(page.source)
    survey = surveyed(page)
    if near and survey is None:
        if asked:
            st.caption("Shown here once the texts have been read: the button is above.")
            return
        survey = ask_survey(
            page,
            "The pieces of text on which it fires most, and how often it fires at all. Both models read 760 texts for this, "
            "once for all neurons near the probe.",
        )
        if survey is None:
            return
    examples = survey.examples if near and survey is not None else ask_examples(page, neuron)
    if examples is None:
        return
    spread(examples, neuron)
    left, right = st.columns([6, 5])
    with left:
        windows(examples.of(*neuron, side="base"), page.words, examples.settings["tokens"])
    if survey is not None:
        with right:
            show.draw(firing.firing(survey, neuron), "firing", page.words)


def ask_examples(page: shell.Page, neuron: Neuron) -> Examples | None:
    """The examples of one neuron that is not near the probe, or None and the button that starts the search."""
    pair, name = page.pair, name_of(neuron)
    examples: Examples | None = job_view.ask(
        jobs.key_of("examples", model_key(pair.base), model_key(pair.tuned), neuron), f"Reading the texts that ship for {name}",
        lambda step: firing.examples(pair, [neuron], step), f"Read the texts for {name}",
        note=f"This neuron is not among the {len(state.toxic_neurons(page.source))} nearest to the probe: the texts are read for it alone.",
        help="Reads 760 short texts with both models, once for this neuron.",
    )  # fmt: skip
    return examples


def spread(examples: Examples, neuron: Neuron) -> None:
    """Draw in what share of tokens the neuron is active, and its largest activation, in both models."""
    rows = examples.spread[(examples.spread["layer"] == neuron[0]) & (examples.spread["neuron"] == neuron[1])].set_index("side")
    parts = [
        show.fact(f"active in {side}", (f"{rows.loc[side, 'active']:.1%}", f"of tokens, at most {rows.loc[side, 'max']:.2f}"))
        for side in SIDES
    ]
    st.html(show.facts(parts))


def windows(best: list[Window], words: bool, tokens: int) -> None:
    """Draw pieces of text, the highest activation first, shaded by the base model's; both models' activations stand above each."""
    if not best:
        st.caption(f"It is active on none of {tokens:,} tokens in the base model.")
        return
    st.caption(f"Of {tokens:,} tokens, those with the highest activation in the base model, and the tuned model at the same token.")
    top = max(abs(value) for window in best for value in window.activations["base"])
    for window in best:
        numbers = [f"{side} {window.activations[side][window.at]:.2f}" for side in SIDES]
        roles = [f'<span class="role" style="--hue:{show.colour(side)}">{n}</span>' for side, n in zip(SIDES, numbers, strict=True)]
        at = show.escaped(f" at {peak(window, words)}")
        st.html(f"<div>{' → '.join(roles)}{at}</div>" + strip(window, "base", words, top))
