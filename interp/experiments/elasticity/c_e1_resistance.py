"""C-E1: whether a tuned model learns an earlier version of itself more easily than an earlier version learns it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from interp.experiments.elasticity.context import ElasticityContext
from interp.experiments.elasticity.criteria import CRITERIA
from interp.experiments.elasticity.rebound_rules import judge
from interp.experiments.elasticity.slice_rules import C_E1, LOSSES, PAPER, PLAIN, Resistance, resistance
from interp.experiments.registry import Finding, experiment
from interp.results import figures
from interp.results.result import Figure, number

BASE = "base and slices: forward minus inverse loss, own losses and lead taken off"
RAW = "slices: forward minus inverse loss, as in the paper"
OWN = "slices: the same, teachers' own losses taken off"
FORM = "slices: the same, own losses and lead taken off"
RANDOM = "last slice: loss on a random change minus on an earlier slice as far away"
KEYS = (RAW, OWN, FORM, BASE, RANDOM)
# Shown beside them.
BASE_RAW = "base and slices: forward minus inverse loss, as in the paper"
BASE_OWN = "base and slices: the same, teachers' own losses taken off"
SAMPLED = {PAPER: "temperature 0.05, top-p 0.95", PLAIN: "temperature 1"}
WHEN = {"start": "before", "mean": "mean over the epoch", "end": "after"}


@experiment(
    "C-E1",
    claim="C-C2",
    title="Going back is easier than going forward",
    question="Does a tuned model learn the answers of an earlier version of itself with less loss than an earlier version learns its own?",
    criterion=CRITERIA["C-E1"],
    caveat="One tuning, on positive reviews, of a small base; the paper tunes on instructions, truthful and safe answers. Whether a difference of losses is one of ease depends on the teachers' own losses, which differ, and on what a later slice has seen of the "
    "kind of text; both are taken off here.",
    does_not_show="That a model is pulled back: a loss says how far two models' answers are apart in one direction, and KL is not symmetric.",
    reads="elasticity-slices",
    about="base",
)
def run(context: ElasticityContext) -> Finding:
    record = context.slices()
    numbers = resistance(record)
    parts = dict(zip(KEYS, (part.mean for part in numbers.parts), strict=True))
    # The paper is about the base; a reader sees its number first.
    parts = {BASE: parts[BASE]} | parts
    table = epochs_table(record)
    return Finding(
        judge(numbers.parts, C_E1["seeds"]), _summary(record), {name: part.value for name, part in parts.items()}, dict.fromkeys(parts, 0.0),
        {name: (part.low, part.high) for name, part in parts.items()},
        {"parts": parts_table(record), "epochs": table, "KL between slices": kl_table(record)}, _figures(record),
        {"study": record["settings"], "interval": "Student's over seeds, each with reviews of its own", "null": "people's texts of the same kind, on which later slices have a lead, and a random change as far away"},
        sentence=_sentence(numbers),
    )  # fmt: skip


def parts_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """By way of sampling, and for the loss before, over and after the epoch: each part with its interval over seeds."""
    table = []
    # What decides comes first.
    for loss in ("mean", "start", "end"):
        for sampling, shown in SAMPLED.items():
            numbers = resistance(record, sampling=sampling, loss=loss)
            deciding = dict(zip(KEYS, numbers.parts, strict=True))
            parts = {BASE_RAW: numbers.base_raw, BASE_OWN: numbers.base_own, BASE: deciding[BASE]} | deciding
            for name, part in parts.items():
                if part.mean.n:
                    table.append({
                        "answers": shown, "loss": WHEN[loss], "part": name, "nats per token": part.mean.value, "low": part.mean.low, "high": part.mean.high,
                        "seeds": part.mean.n, "decides": sampling == PAPER and loss == "mean" and name in KEYS,
                    })  # fmt: skip
    return pd.DataFrame(table)


def epochs_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Every kind of epoch by student and teacher: losses as means over seeds, in nats a token."""
    runs = pd.DataFrame([run for row in record["rows"] for run in row["runs"]])
    runs["teacher"] = [_teacher(kind, teacher) for kind, teacher in zip(runs["kind"], runs["teacher"], strict=True)]
    runs["answers"] = [SAMPLED.get(name, "as written") for name in runs["sampling"]]
    runs["own"] = [number(value) for value in runs["own"]]
    means = runs.groupby(["answers", "student", "teacher"], sort=False)[[*LOSSES, "own"]].mean().reset_index()
    return means.rename(columns={**WHEN, "own": "teacher's own"})


def kl_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """The KL of each slice to each other on held-out posts, means over seeds."""
    rows = [row["kl"] for row in record["rows"]]
    return pd.DataFrame([
        {"model": int(one), "other": int(other), "KL": float(np.mean([row[one][other] for row in rows]))}
        for one in rows[0] for other in rows[0][one] if one != other
    ])  # fmt: skip


def _teacher(kind: str, teacher: float | None) -> str:
    if kind == "third":
        return "the reviews' writers"
    name = "base" if teacher == 0 else f"slice {teacher:g}"
    return f"a random change as far away as the {name}" if kind == "random" else name


def _sentence(numbers: Resistance) -> str:
    return (
        f"With the base as the earlier one, an epoch forward costs {numbers.base_raw.mean} nats a token more than one back, as the paper compares them; {numbers.base_own.mean} once each teacher's own loss is taken off, and {numbers.base.mean} once what the later slice is ahead on people's "
        f"texts is. Between slices these are {numbers.raw.mean}, {numbers.own.mean} and {numbers.form.mean}, and a random change as far away costs {numbers.random.mean} more than an earlier slice (resistance is above 0)."
    )  # fmt: skip


def _summary(record: Mapping[str, Any]) -> str:
    sampled = resistance(record, sampling=PLAIN)
    settings = record["settings"]
    return (
        f"The base and slices after {', '.join(map(str, settings['slices']))} reviews, {settings['queries']} openings, {len(record['rows'])} seeds; the mean loss over an epoch, of answers sampled as in the paper. Of answers sampled at temperature 1 the numbers with the base are "
        f"{sampled.base_raw.mean}, {sampled.base_own.mean} and {sampled.base.mean}, and between slices {sampled.raw.mean}, {sampled.own.mean} and {sampled.form.mean}."
    )  # fmt: skip


def _figures(record: Mapping[str, Any]) -> tuple[Figure, ...]:
    frame = parts_table(record)
    frame = frame[frame["loss"] == WHEN["mean"]].copy()
    if frame.empty:
        return ()
    return (figures.bars(
        "resistance", frame, x="part", y="nats per token", colour="answers", low="low", high="high", title="Is going back easier than going forward?",
        x_title="", y_title="nats per token, above 0: back is easier", caption="Means over seeds with Student's intervals; the mean loss over one epoch.",
    ),)  # fmt: skip
