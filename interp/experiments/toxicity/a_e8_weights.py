"""A-E8: how far tuning moved each weight tensor and the toxic neurons, beside control runs (paper A, section 5.1)."""

from __future__ import annotations

import pandas as pd

from interp.diffing.weights import neuron_shift, weight_shift
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.results import figures
from interp.results.result import Verdict
from interp.runs.logs import controls_if_any
from interp.stats.intervals import bootstrap_mean

COSINE, PERCENTILE = 0.99, 75
SIZE, POINTS = 2.0, 10.0
CONTROLS = {"sft": "fine-tuning on the chosen side", "shuffled": "shuffled labels", "reversed": "reversed labels"}


@experiment(
    "A-E8",
    claim="A-C5",
    title="The weights hardly change",
    question="Is every weight tensor of the tuned model almost the base model's, toxic value vectors included?",
    criterion=CRITERIA["A-E8"],
    caveat="With a small learning rate almost any short training leaves cosines near 1, so a cosine alone says little about DPO. The control runs are read from the training logs of this pair; "
    "where there are none, that this holds is weak evidence. A percentile says where a neuron stands among all, not how far it moved.",
    reads="logs",
)
def run(context: ToxicityContext) -> Finding:
    shift = weight_shift(context.pair)
    table, groups = shift.to_frame(), shift.by_group()
    shifts = neuron_shift(context.pair, context.ranking.neurons)
    least = float(table["cosine"].min())
    percentile = bootstrap_mean(shifts["value_percentile"].to_numpy(), seed=context.seed)
    keys = bootstrap_mean(shifts["key_percentile"].to_numpy(), seed=context.seed)
    controls = control_rows(context)
    total = float(((table["difference_norm"] ** 2).sum() / (table["base_norm"] ** 2).sum()) ** 0.5)
    usual = controls.empty or (
        total <= SIZE * controls["relative change"].max() and percentile.value <= controls["percentile of toxic values"].max() + POINTS
    )
    verdict: Verdict = "fails" if least < COSINE else "holds" if percentile.value < PERCENTILE and usual else "inconclusive"
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
        f"The least cosine of any tensor is {least:.5f}; the 128 toxic value vectors moved more than {percentile.value:.0f} % of all on average "
        f"(keys {keys.value:.0f} %), chance is 50 %. {compared}"
    )
    tables = {"groups": groups, "tensors": table, "toxic neurons": shifts.head(20)}
    if not controls.empty:
        this_pair = {
            "run": "this pair",
            "relative change": total,
            "least cosine": least,
            "percentile of toxic values": percentile.value,
            "percentile of toxic keys": keys.value,
        }
        tables = {"beside control runs": pd.concat([pd.DataFrame([this_pair]), controls], ignore_index=True)} | tables
    null = {"percentile of toxic values": 50.0, "percentile of toxic keys": 50.0}
    if not controls.empty:
        null |= {
            "relative change of all weights": float(controls["relative change"].max()),
            "largest 1 − cosine of a tensor": 1 - float(controls["least cosine"].min()),
        }
    return Finding(
        verdict, summary, {"largest 1 − cosine of a tensor": 1 - least, "percentile of toxic values": percentile.value, "percentile of toxic keys": keys.value, "relative change of all weights": total},
        null,
        {"percentile of toxic values": (percentile.low, percentile.high), "percentile of toxic keys": (keys.low, keys.high)},
        tables, (moved, percentiles), {"controls": controls["run"].tolist()},
    )  # fmt: skip


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
