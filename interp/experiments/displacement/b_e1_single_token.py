"""B-E1: what tuning on one pair of one-token answers does to the preferred answer, and to which answers the probability goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.displacement.criteria import CRITERIA
from interp.experiments.displacement.single_token_rules import B_E1, Displaced, answers, displaced, is_papers, judge_displaced
from interp.experiments.registry import Finding, experiment
from interp.preferences.unembedding import difference_of
from interp.results import figures
from interp.results.result import Figure, number
from interp.stats.repeats import repeats_mean

FALL, CHANGE, OPPOSITE = "largest fall of the preferred answer", "change of its log-probability", "rise of the opposite meaning"
CELL = ["stage", "objective", "optimizer", "role"]
SAYS = {
    "fall": "the preferred answer falls from an earlier value", "change": "it ends below its start (Definition 1)",
    "opposite": "the opposite meaning gains more than in the control pair",
}  # fmt: skip


@experiment(
    "B-E1",
    claim="B-C1",
    title="One pair of one-token answers lowers the preferred one",
    question="When a model is tuned to prefer one one-token answer to a similar one on a single prompt, does the preferred answer lose probability, and does the opposite answer gain it?",
    criterion=CRITERIA["B-E1"],
    caveat="The statements were written for the project after the Persona set, and the model is small, so its learning rates are larger than the paper's; they are the largest of a grid under which the loss falls at every step on a "
    "statement that is not measured. The paper's tables give the largest fall within a run, which may follow upon a rise; Definition 1 compares end and start, and both are shown. The cosines of the answers were known when the "
    "criterion was fixed, no run was.",
    does_not_show="Whether the answers that gain are worse for a reader: they are sorted by a list of words for yes and for no. Nor what happens with answers of more than one token.",
    reads="single-token",
    about="base",
)
def run(context: DisplacementContext) -> Finding:
    record = context.single_token()
    runs = record["runs"]
    pairs = {pair["role"]: f"{pair['preferred']} over {pair['dispreferred']}" for pair in record["answers"]}
    numbers = displaced(runs, cosine_gap(context, record))
    verdict = judge_displaced(numbers)
    control = _rises([run for run in runs if run["falls"] and is_papers(run) and run["role"] == "control"])
    similar = _rises([run for run in runs if run["falls"] and is_papers(run) and run["role"] == "similar"])
    parts = {FALL: numbers.fall, CHANGE: numbers.change, f"{OPPOSITE}, minus the control's": numbers.opposite}
    tables = {
        "cells": cells_table(runs, pairs), "curves": curves_table(runs, pairs), "tokens that gain": gaining_table(runs, pairs),
        "learning rates": pd.DataFrame(record["learning_rates"].items(), columns=["cell", "learning rate"]),
    }  # fmt: skip
    if record["missing"]:
        tables["not run"] = pd.DataFrame(record["missing"].items(), columns=["run", "why"])
    return Finding(
        verdict,
        _summary(numbers, runs, pairs, similar, control),
        {name: part.value for name, part in parts.items()} | {OPPOSITE: similar, "cosine, similar minus control": numbers.gap},
        {FALL: B_E1["fall"], CHANGE: 0.0, f"{OPPOSITE}, minus the control's": 0.0, OPPOSITE: control},
        {name: (part.low, part.high) for name, part in parts.items()},
        tables,
        _figures(tables["curves"], tables["cells"]),
        {"study": record["settings"], "interval": "Student's over seeds, each with a statement of its own", "missing": sorted(record["missing"])},
        sentence=_sentence(numbers, pairs, similar, control),
    )  # fmt: skip


def cosine_gap(context: DisplacementContext, record: Mapping[str, Any]) -> float:
    """The cosine of the similar pair's unembeddings minus that of the control's, in the base model."""
    cosines = {pair["role"]: difference_of(context.pair.base.unembedding, *pair_tokens(pair)).cosine for pair in record["answers"]}
    return cosines["similar"] - cosines["control"]


def pair_tokens(pair: Mapping[str, Any]) -> tuple[int, int]:
    """The ids of the preferred and the dispreferred token of a pair in the study's record."""
    return int(pair["tokens"][0]), int(pair["tokens"][1])


def cells_table(runs: Sequence[Mapping[str, Any]], pairs: Mapping[str, str]) -> pd.DataFrame:
    """One row for each kind of run and pair: means over the runs whose loss falls, and how many they are.

    `fell by` is the largest fall within a run, `ends lower` the share of runs that end below their start.
    """
    flat = pd.DataFrame([
        {
            **{name: run[name] for name in CELL}, "falls": run["falls"], "start": run["preferred"]["start"], "end": run["preferred"]["end"],
            "fell by": run["preferred"]["decrease"], "drawdown at the end": run["preferred"]["drawdown"], "change of log-probability": run["log_change"],
            "fell by 0.1 or more": run["preferred"]["decrease"] >= B_E1["fall"], "ends lower": run["preferred"]["change"] < 0,
            "similar gains": run["rise"]["similar"], "opposite gains": run["rise"]["opposite"], "opposite, mean over steps": run["integral"]["opposite"],
            "start's argmax gains": max(run["argmax"]["mass"]) - run["argmax"]["mass"][0],
            "entanglement at the start": number(run["entanglement"].get("0")), "entanglement at the end": number(list(run["entanglement"].values())[-1]) if run["entanglement"] else np.nan,
        }
        for run in runs
    ])  # fmt: skip
    if flat.empty:
        return pd.DataFrame(columns=[*CELL, "pair", "runs", "left out"])
    rows = []
    for cell, part in flat.groupby(CELL, sort=False):
        falling = part[part["falls"]].drop(columns=["falls", *CELL])
        counts = {"pair": pairs[cell[3]], "runs": len(falling), "left out": len(part) - len(falling)}
        rows.append({**dict(zip(CELL, cell, strict=True)), **counts, **falling.mean().to_dict()})
    return pd.DataFrame(rows)


def curves_table(runs: Sequence[Mapping[str, Any]], pairs: Mapping[str, str]) -> pd.DataFrame:
    """The mean probability of each set of tokens at some steps, with its interval over seeds, for each kind of run and pair."""
    rows = [
        {**{name: run[name] for name in CELL}, "step": step, "set": name, "value": values[place]}
        for run in runs
        if run["falls"]
        for name, values in run["mass"].items()
        for place, step in enumerate(run["steps"])
    ]
    means = []
    for key, part in pd.DataFrame(rows, columns=[*CELL, "step", "set", "value"]).groupby([*CELL, "step", "set"], sort=False):
        mean = repeats_mean(part["value"].to_numpy())
        labels = dict(zip([*CELL, "step", "set"], key, strict=True))
        means.append({**labels, "pair": pairs[key[3]], "probability": mean.value, "low": mean.low, "high": mean.high, "runs": mean.n})
    return pd.DataFrame(means, columns=[*CELL, "step", "set", "pair", "probability", "low", "high", "runs"])


def gaining_table(runs: Sequence[Mapping[str, Any]], pairs: Mapping[str, str]) -> pd.DataFrame:
    """The tokens that are among the three that gained most since the start, with their mean gain and the number of runs in which they are."""
    rows = [
        {**{name: run[name] for name in CELL}, "step": int(step), "token": token, "gain": gain}
        for run in runs
        if run["falls"]
        for step, tokens in run["gaining"].items()
        for token, gain in tokens
    ]
    frame = pd.DataFrame(rows, columns=[*CELL, "step", "token", "gain"])
    table = frame.groupby([*CELL, "step", "token"], sort=False)["gain"].agg(["mean", "size"]).reset_index()
    table = table.rename(columns={"mean": "mean gain", "size": "runs"})
    table.insert(4, "pair", table["role"].map(dict(pairs)))
    return table.sort_values([*CELL, "step", "runs", "mean gain"], ascending=[True] * 5 + [False] * 2, kind="stable").reset_index(drop=True)


def _rises(runs: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([run["rise"]["opposite"] for run in runs])) if runs else float("nan")


def _summary(
    numbers: Displaced, runs: Sequence[Mapping[str, Any]], pairs: Mapping[str, str], similar: float, control: float
) -> str:  # fmt: skip
    words = {"yes": "so", "no": "refuted", "open": "open"}
    parts = "; ".join(f"{SAYS[name]}: {words[answer]}" for name, answer in answers(numbers).items())
    rising = sum(not run["falls"] for run in runs)
    return (
        f"{pairs['similar']}, after SFT, DPO with RMSprop, {numbers.fall.n} runs: the preferred answer falls by {numbers.fall} from an earlier value, and its "
        f"log-probability changes by {numbers.change} nats from start to end. The opposite meaning rises by {similar:.4g} at its highest, against {control:.4g} for {pairs['control']} "
        f"(difference {numbers.opposite}, {numbers.opposite.n} seeds; the cosines of the two pairs' unembeddings differ by {numbers.gap:.2f}). {parts}. "
        f"{rising} of {len(runs)} runs of all cells are left out because their loss rose."
    )  # fmt: skip


def _sentence(numbers: Displaced, pairs: Mapping[str, str], similar: float, control: float) -> str:
    """The result in a sentence; it says so where the fall within runs and Definition 1 disagree."""
    change = numbers.change
    where = "below its start" if change.high < 0 else "above its start" if change.low > 0 else "neither clearly above nor below its start"
    return (
        f"Tuned to prefer {pairs['similar']} on one statement, the model's preferred answer had a largest fall of {numbers.fall} in probability within a run, on average, and ended {where} "
        f"({change} nats), while that of the opposite meaning rose by {similar:.3g} at its highest, against {control:.3g} for the less similar {pairs['control']}."
    )  # fmt: skip


def _figures(curves: pd.DataFrame, cells: pd.DataFrame) -> tuple[Figure, ...]:
    papers = curves[(curves["stage"] == "sft") & (curves["objective"] == "dpo") & (curves["optimizer"] == "rmsprop")]
    drawn = []
    for role in ("similar", "opposite", "control"):
        part = papers[papers["role"] == role].drop(columns="role")
        if part.empty:
            continue
        drawn.append(figures.lines(
            f"mass {role}", part, x="step", y="probability", colour="set", low="low", high="high", title=f"Where the probability goes: {part['pair'].iloc[0]}",
            x_title="step", y_title="probability", caption="Means over seeds with their intervals. A preferred answer that is displaced ends below where it began; the paper's tables give the fall from its peak.",
        ))  # fmt: skip
    frame = cells.drop(columns="role").assign(cell=cells["stage"] + ", " + cells["objective"] + ", " + cells["optimizer"])
    if "fell by" in frame:
        drawn.append(figures.bars(
            "falls by cell", frame, x="cell", y="fell by", colour="pair", horizontal=True, title="The largest fall of the preferred answer, by kind of run",
            x_title="stage, objective, optimizer", y_title="largest fall of its probability within a run", caption="Means over runs. Stage sft: after a stage of SFT on answers; base: without it.",
        ))  # fmt: skip
    return tuple(drawn)
