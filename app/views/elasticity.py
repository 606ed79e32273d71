"""The page Elasticity: what further training on which texts undoes a tuning, and whether that is a return to the base."""

from __future__ import annotations

import streamlit as st

from app import shell, show, undo_view
from app.answers import elasticity as answers
from interp.elasticity.undo_page import LIMITS
from interp.errors import UserError

LEAD = (
    "Train the tuned model a little further: on which texts does its tuned behaviour go away, and after how many steps? And does the model "
    "then return to its base, or learn something new? Behaviour and distribution are shown side by side, because one may come back "
    "without the other."
)


def shipped(page: shell.Page) -> None:
    """Draw the run that ships, or the command that makes one."""
    result = answers.shipped()
    if result is None:
        st.info("No run ships with this version. This command makes one:", icon=":material/info:")
        st.code(answers.COMMAND, language="bash", wrap_lines=True)
        return
    if not answers.is_of(result, page.pair):
        st.info("This run is of other models than the pair that is chosen here.", icon=":material/info:")
    undo_view.outcome(result, "shipped", page.words)
    st.caption(show.plain(show.shown(f"{answers.scope(result)} Made with {answers.COMMAND}; docs/undo.md says how.", page.words)))


with shell.page("elasticity", LEAD) as page:
    st.header("What undoes the tuning?")
    shipped(page)
    st.header("On your own texts")
    try:
        undo_view.own(page)
    except UserError as error:
        shell.problem(error)
    st.header("What this does not show")
    st.markdown(undo_view.listed((
        *LIMITS, "One seed says nothing of another order of the texts, and intervals over few prompts are wide. Other texts of the same "
        "kind were not tried.", "If the scorer is wrong, all of it is wrong: the table has a second one where there are two.",
    ), page.words))  # fmt: skip
