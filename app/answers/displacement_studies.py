"""The studies of paper B that the page Displacement shows: where the probability goes while a model is tuned, and filters of pairs.

They are read from the logs that belong to the pair's base model and judged by the experiments B-E1, B-E4 and B-E6, which draw nothing anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import state
from app.settings import Source
from interp.errors import UserError
from interp.experiments.displacement import b_e1_single_token, b_e4_filters, b_e6_filtered_tuning
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.registry import EXPERIMENTS, Experiment, Finding
from interp.results import figures
from interp.results.result import Figure
from interp.runs.logs import read_single_token, shipped_logs

STAGES = {"sft": "after SFT", "base": "without SFT"}


@dataclass(frozen=True, eq=False)
class Mass:
    """The study of one-token answers, and what B-E1 finds in it."""

    record: dict[str, Any]
    finding: Finding

    @property
    def curves(self) -> pd.DataFrame:
        """Mean probabilities by set of tokens and step, with intervals over runs."""
        return self.finding.tables["curves"]


def experiment(id: str) -> Experiment:
    """The registered experiment of an id."""
    return EXPERIMENTS[id]


def context(source: Source) -> DisplacementContext:
    """The study of a pair with the logs that belong to it."""
    pair = state.load_pair(source)
    return DisplacementContext(pair, logs=shipped_logs(pair))


@st.cache_resource(show_spinner=False, max_entries=4)
def mass(source: Source) -> Mass:
    """The runs on one-token answers. Raises `UserError` where there are none of this base model."""
    study = context(source)
    return Mass(read_single_token(study.logs, study.pair.base), b_e1_single_token.run(study))


def filters(source: Source) -> Finding:
    """What B-E4 finds. Raises `UserError` where its study has not been made for this base model."""
    return b_e4_filters.run(context(source))


def filtered_tuning(source: Source) -> Finding:
    """What B-E6 finds. Raises `UserError` where its study has not been made for this base model."""
    return b_e6_filtered_tuning.run(context(source))


def answers(masses: Mass) -> dict[str, list[str]]:
    """By preferred answer the dispreferred ones that the study has runs of."""
    with_runs = set(masses.curves["role"])
    pairs: dict[str, list[str]] = {}
    for one in masses.record["answers"]:
        if one["role"] in with_runs:
            pairs.setdefault(one["preferred"], []).append(one["dispreferred"])
    return pairs


def role_of(masses: Mass, preferred: str, dispreferred: str) -> dict[str, Any]:
    """The study's record of a pair of answers. Raises `UserError` where it has none."""
    both = (preferred, dispreferred)
    record = next((one for one in masses.record["answers"] if (one["preferred"], one["dispreferred"]) == both), None)
    if record is None:
        raise UserError("the study has no runs on these two answers", "choose two others")
    return record


def kinds(masses: Mass, role: str) -> list[str]:
    """The kinds of run (stage, loss, optimizer) that the study has of a pair of answers."""
    cells = masses.curves.loc[masses.curves["role"] == role, ["stage", "objective", "optimizer"]].drop_duplicates()
    return [kind_of(*cell) for cell in cells.itertuples(index=False, name=None)]


def kind_of(stage: str, objective: str, optimizer: str) -> str:
    """A kind of run in words."""
    return f"{objective.upper()} with {optimizer}, {STAGES.get(stage, stage)}"


def part(table: pd.DataFrame, role: str, kind: str) -> pd.DataFrame:
    """The rows of one pair of answers and one kind of run."""
    cells = table[["stage", "objective", "optimizer"]].itertuples(index=False, name=None)
    return table[(table["role"] == role) & np.array([kind_of(*cell) == kind for cell in cells], dtype=bool)]


def sets_of(record: dict[str, Any]) -> dict[str, str]:
    """The names of the sets of tokens, for readers."""
    sets = record["sets"]
    return {
        "preferred": f"preferred: {record['preferred']}",
        "dispreferred": f"dispreferred: {record['dispreferred']}",
        "similar": f"same meaning as preferred: {len(sets['similar'])} other tokens",
        "opposite": f"opposite meaning: {len(sets['opposite'])} other tokens",
        "rest": "all other tokens",
    }


def curves(masses: Mass, record: dict[str, Any], kind: str) -> Figure:
    """The mean probability of each set by step, beside where the preferred answer began."""
    frame = part(masses.curves, record["role"], kind)
    start = float(frame.loc[(frame["set"] == "preferred") & (frame["step"] == 0), "probability"].iloc[0])
    runs = int(frame["runs"].max())
    named = frame.assign(tokens=frame["set"].map(sets_of(record)))
    return figures.lines(
        "mass", named, x="step", y="probability", colour="tokens", low="low", high="high",
        title=f"Where the probability goes: {record['preferred']} preferred to {record['dispreferred']}",
        x_title="step of tuning on one statement", y_title="probability of the next token", markers=True,
        reference=(start, "preferred, before tuning"),
        caption=f"Means over {runs} runs, each with a statement of its own, and their 95 % intervals; runs whose loss rose are left out. "
        "Words are sorted by a list for yes and one for no: it does not show which answer is worse for a reader, and says nothing of "
        "answers of several tokens.",
    )  # fmt: skip


def gaining(masses: Mass, record: dict[str, Any], kind: str) -> pd.DataFrame:
    """The tokens that gained most since the start, by step."""
    table = part(masses.finding.tables["tokens that gain"], record["role"], kind)
    return table[["step", "token", "mean gain", "runs"]]


def moved(masses: Mass, record: dict[str, Any], kind: str) -> pd.Series:
    """The means of a pair of answers over the runs of one kind, as `cells_table` names them."""
    return part(masses.finding.tables["cells"], record["role"], kind).iloc[0]
