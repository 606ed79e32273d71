"""A-E8: how far did the weights move, and did the toxic neurons move more than others? (paper A, section 5.1)"""

from __future__ import annotations

from interp import figures
from interp.compare import neuron_shift, weight_shift
from interp.experiments.registry import Context, Finding, experiment
from interp.results import Verdict
from interp.stats import bootstrap_mean


@experiment(
    "A-E8",
    claim="A-C5",
    title="The weights hardly change",
    question="Is every weight tensor of the tuned model almost the base model's, toxic value vectors included?",
    criterion="Holds if the cosine of every tensor is above 0.99 and the toxic neurons' value vectors are not among the most changed "
    "(mean percentile below 75); fails if a cosine is below 0.99; otherwise inconclusive.",
    refuted_by="Toxic value vectors that had been rewritten or shrunk: then tuning would have removed what it is said to bypass.",
    caveat="With a small learning rate almost any short training leaves cosines near 1, so this alone says little about DPO; "
    "a fine-tuning run of equal steps is the comparison that would say more.",
)
def run(context: Context) -> Finding:
    shift = weight_shift(context.pair)
    table, groups = shift.to_frame(), shift.by_group()
    shifts = neuron_shift(context.pair, context.ranking.neurons)
    least = float(table["cosine"].min())
    percentile = bootstrap_mean(shifts["value_percentile"].to_numpy(), seed=context.seed)
    keys = bootstrap_mean(shifts["key_percentile"].to_numpy(), seed=context.seed)
    verdict: Verdict = "fails" if least < 0.99 else "holds" if percentile.value < 75 else "inconclusive"
    moved = figures.bars(
        "weight-shift", groups, x="group", y="relative_difference", title="How far each group of weights moved", x_title="group of tensors",
        y_title="norm of the difference / norm of the weights", caption="Every bar should be far below 1: the tuned model is the base model, slightly moved.",
        horizontal=True,
    )  # fmt: skip
    percentiles = figures.histogram(
        "toxic-percentiles", shifts.assign(kind="toxic neurons"), x="value_percentile", colour="kind", bins=20, title="Where toxic value vectors stand among all, by how far they moved",
        x_title="percentile of the relative shift among all value vectors", y_title="neurons", marks=[(50.0, "what chance gives")],
        caption="A pile at the right end would mean that tuning rewrote the toxic vectors more than others.",
    )  # fmt: skip
    summary = (
        f"The least cosine of any tensor is {least:.5f}; the 128 toxic value vectors moved more than {percentile.value:.0f} % of all on average "
        f"(keys {keys.value:.0f} %), chance is 50 %."
    )
    return Finding(
        verdict, summary, {"largest 1 − cosine of a tensor": 1 - least, "percentile of toxic values": percentile.value, "percentile of toxic keys": keys.value},
        {"percentile of toxic values": 50.0, "percentile of toxic keys": 50.0},
        {"percentile of toxic values": (percentile.low, percentile.high), "percentile of toxic keys": (keys.low, keys.high)},
        {"groups": groups, "tensors": table, "toxic neurons": shifts.head(20)}, (moved, percentiles),
    )  # fmt: skip
