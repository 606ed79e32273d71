"""Tables, figures and sentences of A-E11: cosines by layer beside their nulls, parts of the offset, swaps of weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from interp.diffing.antipodes import Antipodes
from interp.diffing.offset_sources import Decomposition, pooled, value_update_cosines
from interp.experiments.toxicity.a_e11_rule import PLAIN, RANDOM, SHUFFLED, Layer
from interp.experiments.toxicity.context import ToxicityContext
from interp.results import figures
from interp.results.result import Figure
from interp.stats.intervals import Interval

BINS = np.linspace(-1, 1, 21)
KEYS_OF = {"tuned": "tuned", PLAIN: "plain step", SHUFFLED: "shuffled step", RANDOM: "random change"}


def tables_of(tuning: Antipodes, nulls: list[tuple[str, Antipodes]], activations: list[Tensor]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per change and layer, and one row per change."""
    layers, changes = [], []
    draw_of: dict[str, int] = {}
    for name, change in [("tuned", tuning), *nulls]:
        draw_of[name] = draw_of.get(name, 0) + 1
        changes.append((name, KEYS_OF[name], draw_of[name], change.last, change.predicted, change.guessed, change.alike))
        for below, cosines in change.cosines.items():
            low, high = (float(cosines.quantile(at)) for at in (0.25, 0.75))
            against, negative = float((cosines < -0.3).double().mean()), float((activations[below] < 0).double().mean())
            layers.append(
                (name, "tuned" if name == "tuned" else "null", draw_of[name], below, float(cosines.median()), low, high, against, negative)
            )
    return (
        pd.DataFrame(layers, columns=["model", "role", "draw", "layer", "median cosine", "low", "high", "share below -0.3", "share of negative mean activations"]),
        pd.DataFrame(changes, columns=["model", "row_key", "draw", "median cosine, last layer", "share of signs told by mean activation", "share of the commoner sign", "mean cosine of prompts' offsets"]),
    )  # fmt: skip


def readings(context: ToxicityContext, layer: int, shift: Tensor, weights: Tensor) -> pd.DataFrame:
    """The paper's definition (which is `fixed` here) beside its code: value vectors without their mean, activations of the tuned model."""
    rows = []
    offset = pooled(shift, weights)
    for mode, side in (("fixed", "base"), ("paper", "base"), ("code", "tuned")):
        cosines = value_update_cosines(context.pair, offset, layer - 1, mode="code" if mode == "code" else "fixed")
        means = pooled(context.mean_states(context.pair.sides[side])[f"mlp_post.{layer - 1}"], weights)
        rows.append(
            (mode, layer - 1, side, float(cosines.median()), float((cosines < -0.3).double().mean()), float((means < 0).double().mean()))
        )
    columns = ["mode", "layer", "activations of", "median cosine", "share below -0.3", "share of negative mean activations"]
    return pd.DataFrame(rows, columns=columns)


def profile_figure(by_layer: pd.DataFrame) -> Figure:
    """The median cosine by layer of the tuning and of the first draw of each control."""
    return figures.lines(
        "by-layer", by_layer[by_layer["draw"] == 1], x="layer", y="median cosine", colour="model", role="role", low="low", high="high", reference=(-0.3, "criterion"), title="Value updates against the offset, by layer",
        x_title="layer of the value vectors", y_title="cosine with the offset (median, quartiles)",
        caption="Below zero, updates point against the offset. What tuning does is evidence only where its line lies below those of the plain and the shuffled gradient step (first draws).",
    )  # fmt: skip


def spread_figure(tuning: Antipodes) -> Figure:
    """How the cosines of single neurons spread, by layer."""
    rows = []
    for below, cosines in tuning.cosines.items():
        counts, _ = np.histogram(cosines.numpy(), bins=BINS)
        rows += [(f"layer {below}", f"{(BINS[i] + BINS[i + 1]) / 2:+.2f}", count / len(cosines)) for i, count in enumerate(counts)]
    return figures.heatmap(
        "spread", pd.DataFrame(rows, columns=["layer", "cosine", "share"]), x="cosine", y="layer", z="share", title="Cosine of each neuron's value update with the offset",
        x_title="cosine (middle of the bin)", y_title="layer of the value vectors", z_title="share of neurons",
        caption="In the paper the mass starts around 0 in the first layer and moves to -1 towards the layer of the offset.",
    )  # fmt: skip


def parts_figure(parts: Decomposition) -> Figure:
    """The parts of the sum that the offset is."""
    frame = parts.by_part()
    frame["part"] = [f"{part}, {sign} neurons" if sign else part for part, sign in zip(frame["part"], frame["sign"], strict=True)]
    return figures.bars(
        "parts", frame, x="part", y="share", title=f"What writes the offset before the MLP of layer {parts.layer}", x_title="part", y_title="share of the offset's length", horizontal=True,
        caption="The bars add up to 1. The claim is that the bar of changed values of inactive neurons is more than one half.",
    )  # fmt: skip


def by_layer_rows(layers: Sequence[Layer], by_layer: pd.DataFrame, parts: Decomposition) -> pd.DataFrame:
    """One row per layer below the offset's: its median cosine, what the steps give there, and what its attention and values write.

    The last two columns are shares of the offset by the direct path, as in the decomposition.
    """
    against = by_layer[by_layer["role"] == "tuned"].set_index("layer")["share below -0.3"]
    written = parts.table.set_index(["layer", "part", "sign"])["share"]
    return pd.DataFrame([
        {
            "layer": below, "median cosine": one.median.value, "low": one.median.low, "high": one.median.high,
            "share below -0.3": float(against[below]), "lowest of the steps": one.lowest, "bound of the steps": one.bound,
            "beyond the steps": one.beyond if one.tested else None, "written by its attention": float(written[below, "attention", ""]),
            "written by changed values of its inactive neurons": float(written[below, "changed values", "inactive"]),
        }
        for below, one in enumerate(layers)
    ])  # fmt: skip


def _which(layers: Sequence[Layer]) -> str:
    """The layers whose updates are antipodal beyond the steps, with their medians, in words."""
    if not all(one.tested for one in layers):
        return "not tested, with so few steps"
    named = [f"{number} ({one.median.value:.2f})" for number, one in enumerate(layers) if one.beyond]
    if not named:
        return "in no layer"
    return f"in {'layer' if len(named) == 1 else 'layers'} {' and '.join([', '.join(named[:-1]), named[-1]] if len(named) > 1 else named)}"


def summary_of(
    layer: int, layers: Sequence[Layer], steps: Sequence[Antipodes], parts: Decomposition, swaps: pd.DataFrame, tuning: Antipodes, negative: float
) -> str:  # fmt: skip
    """What was found, layer by layer, then by the direct path, then by cause."""
    medians = ", ".join(f"{one.median.value:.2f}" for one in layers)
    lowest = ", ".join(f"{one.lowest:.2f}" for one in layers)
    writes = parts.table[parts.table["part"] == "attention"].set_index("layer")["share"]
    words = [
        f"Median cosine of value updates with the offset at layer {layer}, from layer 0 on: {medians} (lowest of {len(steps)} gradient steps of equal norm: {lowest}). Antipodal beyond every step, corrected for {len(layers)} layers: {_which(layers)}.",
        f"{negative:.0%} of the neurons have negative mean activation, and the sign of that activation alone tells {tuning.predicted:.0%} of the signs of the cosines.",
        f"By the direct path, attention of all layers up to {layer} writes {parts.share('attention'):.0%} of the offset read at layer {layer} ({writes[layer]:.0%} by layer {layer}'s own), changed values of inactive neurons "
        f"{parts.share('changed values', 'inactive'):.0%}, those of active ones {parts.share('changed values', 'active'):.0%}, changed activations {parts.share('changed activations', 'inactive') + parts.share('changed activations', 'active'):.0%}.",
    ]
    fall = swaps["share of the fall"].notna().any()
    causes = [
        f"{row['weights']} {row['share of the offset']:.0%}" + (f" and {row['share of the fall']:.0%}" if fall else "")
        for _, row in swaps.iterrows()
        if row["group"] in ("attention", "mlp") and row["layer"] in (-1, layer)
    ]
    words.append(
        f"By cause, tuned weights alone in the base model give of the offset{' and of the fall of toxicity' if fall else ''}: {'; '.join(causes)}."
    )
    return " ".join(words)


def sentence_of(layer: int, layers: Sequence[Layer], inactive: Interval, attention: Interval, mlp: Interval, chance: float) -> str:
    """The result in one sentence: layers beyond their null, the share written, and the causal shares, with intervals."""
    null = "" if np.isnan(chance) else f" (gradient steps pass this test in {chance:.0%} of layers)"
    first = f"Value updates are antipodal to the offset beyond what gradient steps of equal norm do {_which(layers)} of {len(layers)}{null}"
    if not all(one.tested for one in layers):
        first = "Whether value updates are antipodal to the offset beyond gradient steps of equal norm is not tested, with so few steps"
    return (
        f"{first}; changed values of inactive neurons write {inactive.value:.1%} [{inactive.low:.1%}, {inactive.high:.1%}] "
        f"of the offset at layer {layer} by the direct path, and put into the base model alone, tuned attention weights give {attention.value:.1%} [{attention.low:.1%}, {attention.high:.1%}] of it and tuned MLP weights {mlp.value:.1%} [{mlp.low:.1%}, {mlp.high:.1%}]."
    )  # fmt: skip


def swaps_figure(swaps: pd.DataFrame) -> Figure:
    """The share of the offset that each part of the tuned weights gives in the base model."""
    return figures.bars(
        "weight swaps", swaps, x="weights", y="share of the offset", low="low", high="high", title="Tuned weights of one part alone in the base model", x_title="part of the weights", y_title="share of the offset", horizontal=True,
        caption="Each bar is a model of its own. Unlike the parts of the sum, this counts what changed weights do through later layers; the bars need not add up to 1.",
    )  # fmt: skip
