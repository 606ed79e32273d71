"""The page Displacement: an audit of preference pairs, where the probability goes while a model is tuned, and filters of pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from app import job_view, settings, shell, show
from app.answers import displacement as answers
from app.answers import displacement_measures as measures
from app.answers import displacement_studies as studies
from app.jobs import Step, key_of
from interp.errors import UserError
from interp.experiments.registry import Finding
from interp.preferences.audit import Audit
from interp.preferences.page import sentences
from interp.preferences.text_level import plain
from interp.report.page import VERDICTS
from interp.results.result import show_number

SHIPPED, OWN = "pairs that ship", "your own file"
LEAD = (
    "Preference tuning can lower the answer that it prefers (likelihood displacement). See which pairs a model is expected to suffer "
    "from before it is trained on them, and where the probability went in runs that were made."
)


def ask_file(page: shell.Page) -> answers.Asked | None:
    """The file to audit, or None while there is none."""
    which = st.segmented_control(
        "Pairs", [SHIPPED, OWN], default=SHIPPED, required=True, key="pairs", bind="query-params",
        help="The first 64 of 260 pairs written for the project, 16 of each of four kinds. They are an example, and no training set.",
    )  # fmt: skip
    if which == SHIPPED:
        return answers.shipped(page.source)
    limits = settings.limits()
    file = st.file_uploader(
        "A file of preference pairs", answers.UPLOADED, key="upload", max_upload_size=max(1, limits.uploaded_bytes // 1_000_000),
        help="`chosen` and `rejected`, with or without `prompt`, as text or as messages: every layout that `bypass pairs audit` reads.",
    )  # fmt: skip
    st.caption(
        f"Up to {limits.uploaded_bytes // 1000:,} kB; of more than {limits.audited_pairs} pairs so many are drawn at random. The file is "
        "read in memory, is not in the link, and is forgotten when the app stops."
    )
    return None if file is None else answers.uploaded(page.source, file.name, file.getvalue())


def find(asked: answers.Asked) -> Audit | None:
    """The audit: computed before, now, or by a job; None until there is one."""
    known = answers.known(asked)
    if known is not None:
        return known
    if answers.quick(asked):
        with st.spinner("Reading every pair once …"):
            return answers.audited(asked)

    def work(step: Step) -> Audit:
        return answers.audited(asked, step)

    return job_view.ask(
        key_of("audit", *asked.key), "An audit of preference pairs", work, "Audit these pairs",
        help="Reads every pair twice with the base model, as a job that survives a reload.",
        note="This model takes a while to read the pairs.",
    )  # fmt: skip


def show_audit(page: shell.Page) -> None:
    """Draw the audit: histogram, ranking, and one pair."""
    asked = ask_file(page)
    result = find(asked) if asked is not None else None
    if result is None:
        return
    st.markdown("\n".join(f"- {show.plain(show.shown(text, page.words))}" for text in [*sentences(result), *result.about["notes"]]))
    names = answers.measured(result)
    if not names:
        st.info("No measure is defined for any of these pairs.", icon=":material/info:")
        return
    if st.session_state.get("measure") not in (None, *names):
        st.session_state["measure"] = names[0]
    name = st.selectbox(
        "Measure", names, key="measure", bind="query-params",
        help="What the pairs are ranked by. Influence and total are with respect to the unembedding alone; `bypass pairs audit --level "
        "gradient` has those of all weights.",
    )  # fmt: skip
    show.draw(answers.histogram(result, name), "measure_histogram", page.words)
    table = answers.ranking(result, name, page.words)
    row = show.table(
        table, f"ranking-{name}", page.words, select=True, height=min(38 + 35 * len(table), 388),
        column_config=columns_of(table, name),
        alt="Preference pairs by the measure, highest first: rank, row of the file, measure, and how prompt and answers begin",
    )  # fmt: skip
    seen = (name, row)
    if row is not None and seen != st.session_state.get("pair_seen"):
        st.session_state["row"] = str(table["row"].iloc[row])
    st.session_state["pair_seen"] = seen
    st.caption("Highest first. Click a row for its tokens, or name its row of the file below.")
    show_pair(page, result, name, [str(number) for number in table["row"]])


def columns_of(table: pd.DataFrame, name: str) -> dict[str, Any]:
    """The display of the ranking's columns: numbers in four digits, texts narrow enough that both answers are seen."""
    numbers = {one: st.column_config.NumberColumn(format="%.4g") for one in (name, "margin, nats") if one in table}
    texts = {one: st.column_config.TextColumn(width=220) for one in ("prompt", "chosen", "rejected")}
    return {one: st.column_config.NumberColumn(width=60) for one in ("rank", "row")} | numbers | texts


def show_pair(page: shell.Page, result: Audit, name: str, highest_first: list[str]) -> None:
    """Draw one pair: its prompt, both answers token by token, its numbers, and what they mean."""
    rows = [str(number + 1) for number in result.frame["row"]]
    if st.session_state.get("row") not in (None, *rows):
        st.session_state["row"] = None
    st.subheader("One pair, token by token")
    picked = st.selectbox(
        "Row of the file", rows, index=None, key="row", bind="query-params", placeholder=f"{highest_first[0]} (the highest)",
        help="Empty: the pair that the measure ranks highest.",
    )  # fmt: skip
    index = rows.index(picked or highest_first[0])
    st.html(f'<p class="verdict">{show.escaped(answers.sentence(result, name, index))}</p>')
    st.caption("Prompt")
    st.html(f'<p class="lead" dir="auto">{show.escaped(answers.end_of(plain(result.pairs[index].prompt), page.words)) or "(empty)"}</p>')
    tokens, parts = result.tokens[index], measures.MEASURES[name].parts
    if not (tokens.prompt and tokens.chosen and tokens.rejected):
        st.info("A part of this pair holds no token, so that no measure is divided among its tokens.", icon=":material/info:")
    else:
        both = measures.sides(page.pair.base, tokens.token_pair(), parts)
        hue = show.colour("null" if parts == "log-probability" else "tuned")
        for title, side in zip(("Chosen", "Rejected"), both, strict=True):
            st.caption(title)
            shares, label = side.shares or (0.0,) * len(side.tokens), f"{title} answer by tokens"
            st.html(show.strip(side.tokens, shares, hue, page.words, label=label, unit=" %", below=show.colour("base")))
        undefined = "Not coloured: CHES is not defined for this pair, whose answers are read off the same states."
        st.caption(undefined if both[0].shares is None else measures.COLOURED[parts])
    numbers = result.frame.loc[index]
    st.html(show.facts(
        show.fact(title, (show_number(numbers[measure.column]), measure.unit or None))
        for title, measure in measures.MEASURES.items() if measure.column in numbers
    ))  # fmt: skip


def show_mass(page: shell.Page) -> None:
    """Draw where the probability goes by step for two answers, and the verdict of B-E1."""
    masses = studies.mass(page.source)
    pairs = studies.answers(masses)
    left, middle, right = st.columns(3)
    preferred = left.selectbox(
        "Preferred answer", list(pairs), key="preferred", bind="query-params", help="The answer that tuning is to raise."
    )
    others = pairs[preferred]
    if st.session_state.get("dispreferred") not in (None, *others):
        st.session_state["dispreferred"] = others[0]
    dispreferred = middle.selectbox(
        "Dispreferred answer", others, key="dispreferred", bind="query-params", help="What it is to lower; the study has runs of these."
    )
    record = studies.role_of(masses, preferred, dispreferred)
    kinds = studies.kinds(masses, record["role"])
    if st.session_state.get("kind") not in (None, *kinds):
        st.session_state["kind"] = kinds[0]
    kind = right.selectbox("Kind of run", kinds, key="kind", bind="query-params", help="The loss, the optimizer, and what came before.")
    show.draw(studies.curves(masses, record, kind), "mass_curves", page.words)
    numbers = studies.moved(masses, record, kind)
    st.html(show.facts([
        show.fact("preferred, before", (show_number(numbers["start"]), "probability")),
        show.fact("preferred, after", (show_number(numbers["end"]), "probability")),
        show.fact("end minus start (Definition 1)", (show_number(numbers["change of log-probability"]), "nats; below 0: displaced")),
        show.fact("largest fall within a run", (show_number(numbers["fell by"]), "probability, as in the paper's tables")),
        show.fact("opposite meaning, largest rise", (show_number(numbers["opposite gains"]), "probability")),
    ]))  # fmt: skip
    with st.expander("Which tokens gained"):
        st.caption("The three tokens of each run that gained most since the start: mean gain in probability, and in how many runs.")
        show.table(studies.gaining(masses, record, kind), "gaining", page.words, alt="Tokens that gained most, by step")
    show_verdict("B-E1", masses.finding, page.words)


def show_filters(page: shell.Page) -> None:
    """Draw what held-out chosen answers do after training on what each filter keeps."""
    finding = studies.filters(page.source)
    for figure in finding.figures:
        show.draw(figure, f"filters_{figure.name}", page.words)
    with st.expander("In numbers, beside random halves"):
        show.table(
            finding.tables["filters"], "filters", page.words, alt="Changes of held-out pairs after training on what each filter keeps"
        )
    show_verdict("B-E4", finding, page.words)


def show_filtered_tuning(page: shell.Page) -> None:
    """Draw how toxic a model is after a tuning on what each filter keeps, and after it is attacked."""
    finding = studies.filtered_tuning(page.source)
    for figure in finding.figures:
        show.draw(figure, f"tuning_{figure.name}", page.words)
    with st.expander("In numbers, beside random halves"):
        show.table(finding.tables["arms"], "filtered_tuning", page.words, alt="Toxicity and KL after a tuning on what each filter keeps")
    show_verdict("B-E6", finding, page.words)


def show_verdict(id: str, finding: Finding, words: bool) -> None:
    """Draw the verdict of an experiment in a sentence, and its limits."""
    about = studies.experiment(id)
    st.html(
        f'<p class="verdict {show.escaped(finding.verdict)}"><b>{show.escaped(" ".join(VERDICTS[finding.verdict]))}: '
        f"{show.escaped(about.title)} ({id}).</b> {show.escaped(show.shown(finding.sentence, words))}</p>"
    )
    st.caption(f"What it does not show: {show.plain(about.does_not_show)} {show.plain(about.caveat)}")


def study(draw: Callable[[shell.Page], None], page: shell.Page) -> None:
    """Draw a study, or a sentence that says by which command it is made."""
    try:
        draw(page)
    except UserError as error:
        fix = f": {error.fix}" if error.fix else ""
        st.info(show.plain(show.shown(f"{error.problem[:1].upper()}{error.problem[1:]}{fix}.", False)), icon=":material/info:")


with shell.page("displacement", LEAD) as page:
    st.header("Which pairs lower the answer that they prefer?")
    try:
        show_audit(page)
    except UserError as error:
        # The studies below do not depend on the file.
        shell.problem(error)
    st.header("Where does the probability go?")
    study(show_mass, page)
    st.header("Which filter keeps chosen answers up?")
    study(show_filters, page)
    st.header("What does a filter do to a tuning against toxicity?")
    study(show_filtered_tuning, page)
    st.header("What this does not show")
    st.markdown(
        "A score is that of the checkpoint before a first step, not of an epoch. A pair with a high score is not bad, and a fall of a "
        "chosen answer is not harm by itself. A filter helped only if a model trained on what it keeps beats one trained on as many "
        "random pairs: "
        "`bypass pairs audit --verify` trains both."
    )
