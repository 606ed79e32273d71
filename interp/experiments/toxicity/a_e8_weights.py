"""A-E8: how far tuning moved each weight tensor and the toxic neurons, beside control runs (paper A, section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from interp.diffing.weights import neuron_shift, weight_shift
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.models.model import Neuron
from interp.neurons.ranking import keys_at, nearest_in_layers, values_at
from interp.results import figures
from interp.results.result import Verdict
from interp.runs.logs import controls_if_any
from interp.stats.intervals import permutation_p
from interp.stats.nulls import random_directions

THRESHOLDS = CRITERIA["A-E8"][-1].thresholds
# Of version 1 of the criterion.
PERCENTILE, POINTS = 75, 10.0
DIRECTIONS, FEWER_DIRECTIONS = 200, 40
NEAREST = 16
CONTROLS = {"sft": "fine-tuning on the chosen side", "shuffled": "shuffled labels", "reversed": "reversed labels"}


def judge(cosines: Sequence[float], moved_times: float, p_values: Sequence[float]) -> Verdict:
    """The verdict on the weights.

    Args:
        cosines: the least cosine of a tensor, and the mean ones of toxic keys and of toxic values.
        moved_times: how far the weights moved, over the control run that moved most; NaN without control runs.
        p_values: of the mean percentiles of toxic keys and values, that they exceed those of neurons near random directions.
    """
    if min(cosines) < THRESHOLDS["cosine"]:
        return "fails"
    usual = not moved_times > THRESHOLDS["size"]
    return "holds" if usual and min(p_values) > THRESHOLDS["p"] else "inconclusive"


def judge_1(least: float, percentile: float, total: float, controls: pd.DataFrame) -> Verdict:
    """The verdict under version 1 of the criterion."""
    usual = controls.empty or (
        total <= 2 * controls["relative change"].max() and percentile <= controls["percentile of toxic values"].max() + POINTS
    )
    return "fails" if least < THRESHOLDS["cosine"] else "holds" if percentile < PERCENTILE and usual else "inconclusive"


def percentiles_beside_random(context: ToxicityContext) -> pd.DataFrame:
    """The mean percentile by which toxic keys and values moved, beside that of neurons near random directions.

    One row for keys and values of all toxic neurons and of the nearest 16: part, neurons, mean percentile, null mean, null low,
    null high (95 % of the draws), p (of the mean percentile being larger). A draw is as many neurons of each layer as are toxic, those
    nearest to one random direction: neurons near one direction move together, so that whole sets are drawn.
    """
    pair, toxic, rows = context.pair, context.ranking.neurons, []
    draws = random_directions(context.direction, FEWER_DIRECTIONS if context.quick else DIRECTIONS, context.seed)
    for neurons in (toxic, toxic[:NEAREST]):
        sets: list[list[Neuron]] = nearest_in_layers(pair.base, draws, neurons)
        own = neuron_shift(pair, neurons)
        drawn = neuron_shift(pair, [neuron for chosen in sets for neuron in chosen])
        for part in ("key", "value"):
            null = drawn[f"{part}_percentile"].to_numpy().reshape(len(sets), -1).mean(axis=1)
            mean = float(own[f"{part}_percentile"].mean())
            low, high = np.quantile(null, (0.025, 0.975))
            rows.append((part, len(neurons), mean, float(null.mean()), float(low), float(high), permutation_p(mean, null)))
    return pd.DataFrame(rows, columns=["part", "neurons", "mean percentile", "null mean", "null low", "null high", "p"])


def mean_cosines(context: ToxicityContext) -> dict[str, float]:
    """The mean cosine of the toxic neurons' keys, and of their values, with what they were before tuning."""
    base, tuned = context.pair.base, context.pair.tuned
    neurons = context.ranking.neurons
    return {
        part: float(torch.cosine_similarity(read(base, neurons).double().cpu(), read(tuned, neurons).double().cpu(), dim=1).mean())
        for part, read in (("key", keys_at), ("value", values_at))
    }


@experiment(
    "A-E8",
    claim="A-C5",
    title="The weights hardly change",
    question="Is every weight tensor of the tuned model almost the base model's, and are the toxic neurons' keys and values not moved more than others?",
    criterion=CRITERIA["A-E8"],
    caveat="With a small learning rate almost any short training leaves cosines near 1, so a cosine alone says little about DPO. The control runs are read from the training logs of this pair; "
    "where there are none, that this holds is weak evidence. A percentile says where a neuron stands among all, not how far it moved. Neurons near one direction move together, so they are "
    "no independent units: the null draws whole sets of them.",
    does_not_show="Weights that hardly move do not show that tuning leaves toxicity in place: any short training does this, and keys that move little can silence a neuron.",
    reads="logs",
)
def run(context: ToxicityContext) -> Finding:
    shift = weight_shift(context.pair)
    table, groups = shift.to_frame(), shift.by_group()
    shifts = neuron_shift(context.pair, context.ranking.neurons)
    least = float(table["cosine"].min())
    context.say("neurons near random directions")
    beside = percentiles_beside_random(context)
    keys, percentile, first_keys, first_values = beside["mean percentile"]
    own = mean_cosines(context)
    controls = control_rows(context)
    total = float(((table["difference_norm"] ** 2).sum() / (table["base_norm"] ** 2).sum()) ** 0.5)
    times = total / float(controls["relative change"].max()) if len(controls) else float("nan")
    verdict = judge([least, *own.values()], times, beside["p"].tolist())
    moved = figures.bars(
        "weight-shift", groups, x="group", y="relative_difference", title="How far each group of weights moved", x_title="group of tensors",
        y_title="norm of the difference / norm of the weights", caption="Every bar should be far below 1: the tuned model is the base model, slightly moved.",
        horizontal=True,
    )  # fmt: skip
    percentiles = figures.histogram(
        "toxic-percentiles", shifts.assign(kind="toxic neurons"), x="value_percentile", colour="kind", bins=20, title="Where toxic value vectors stand among all, by how far they moved",
        x_title="percentile of the relative shift among all value vectors", y_title="neurons", marks=[(50.0, "chance")],
        caption="A pile at the right end would mean that tuning rewrote the toxic vectors more than others.",
    )  # fmt: skip
    compared = (
        "No control runs of this pair are logged, and such a cosine alone is nearly vacuous."
        if controls.empty
        else f"The weights moved by {total:.2%} of their norm; in control runs of equal steps by {', '.join(f'{row[1]:.2%} ({row[0]}, toxic values at {row[3]:.0f} %)' for row in controls.itertuples(index=False))}."
    )
    summary = (
        f"The least cosine of any tensor is {least:.5f}; the {len(context.ranking)} toxic value vectors moved more than {percentile:.0f} % of all on average, their keys more than {keys:.0f} % "
        f"(the {NEAREST} nearest: values {first_values:.0f} %, keys {first_keys:.0f} %). {_singled_out(beside)} {compared}"
    )
    tables = {"toxic neurons beside random directions": beside, "groups": groups, "tensors": table, "toxic neurons": shifts.head(20)}
    if not controls.empty:
        this_pair = {
            "run": "this pair",
            "relative change": total,
            "least cosine": least,
            "percentile of toxic values": percentile,
            "percentile of toxic keys": keys,
        }
        tables = {"beside control runs": pd.concat([pd.DataFrame([this_pair]), controls], ignore_index=True)} | tables
    names = [
        "percentile of toxic keys",
        "percentile of toxic values",
        f"percentile of the {NEAREST} nearest keys",
        f"percentile of the {NEAREST} nearest values",
    ]
    null = dict(zip(names, beside["null mean"], strict=True))
    if not controls.empty:
        null |= {
            "relative change of all weights": float(controls["relative change"].max()),
            "largest 1 − cosine of a tensor": 1 - float(controls["least cosine"].min()),
        }
    statistic = {
        "largest 1 − cosine of a tensor": 1 - least,
        **dict(zip(names, beside["mean percentile"], strict=True)),
        "relative change of all weights": total,
    }
    first = beside.iloc[2]
    usual_change = (
        "no control run is logged" if controls.empty else f"control runs of equal steps: at most {controls['relative change'].max():.2%}"
    )
    sentence = (
        f"The weights moved by {total:.2%} of their norm ({usual_change}), and the keys of the {first['neurons']} neurons nearest to the probe by more than {first['mean percentile']:.0f} % "
        f"of all keys, against {first['null mean']:.0f} % [{first['null low']:.0f}, {first['null high']:.0f}] for neurons near random directions."
    )
    return Finding(
        verdict, summary, statistic, null, {}, tables, (moved, percentiles), {"controls": controls["run"].tolist()}, sentence=sentence,
        earlier={1: judge_1(least, percentile, total, controls)},
    )  # fmt: skip


def _singled_out(beside: pd.DataFrame) -> str:
    """Which parts of the toxic neurons moved more than those near random directions, in a sentence."""
    more = [
        f"{row['part']}s of the nearest {row['neurons']} (random directions {row['null mean']:.0f} %, p = {row['p']:.3f})"
        for row in beside.to_dict("records") if row["p"] <= THRESHOLDS["p"]
    ]  # fmt: skip
    return (
        f"More than those near random directions moved the {', '.join(more)}."
        if more
        else "Neither moved more than those near random directions."
    )


def control_rows(context: ToxicityContext) -> pd.DataFrame:
    """The logged control runs of equal steps, one row each; no row where there is no table of this pair."""
    table, count = controls_if_any(context.logs, context.pair), len(context.ranking.neurons)
    rows = []
    for row in (table or {}).get("runs", []):
        kind = "sft" if row["method"] == "sft" else row["labels"]
        if kind in CONTROLS and row["equal_steps"]:
            values, keys = (row.get(f"neurons_{part}_{count}", row.get(f"neurons_{part}_16")) for part in ("value", "key"))
            rows.append((CONTROLS[kind], row["relative_change"], row["least_cosine"], values, keys))
    columns = ["run", "relative change", "least cosine", "percentile of toxic values", "percentile of toxic keys"]
    return pd.DataFrame(rows, columns=columns)
