"""A-E11: cosines of value-vector updates with the offset, and the share of the offset that inactive neurons write (paper A, Figure 5)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.diffing.antipodes import Antipodes, antipodes
from interp.diffing.offset_sources import Decomposition, decompose, pooled, spearman, value_update_cosines
from interp.diffing.offsets import resampled, shifts
from interp.errors import UserError
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.forward.capture import capture
from interp.models.pair import ModelPair
from interp.models.tokens import token_rows
from interp.results import figures
from interp.results.result import Figure, Verdict
from interp.stats.intervals import Interval
from interp.stats.nulls import gradient_step, perturbed

STEP_TEXTS = (16, 32)
STEP_TOKENS = 64
DRAWS = 200
BINS = np.linspace(-1, 1, 21)
PLAIN, SHUFFLED, RANDOM = (
    "one plain fine-tuning step (null)",
    "one preference step on shuffled labels (null)",
    "random change of equal norm (null)",
)
KEYS_OF = {"tuned": "tuned", PLAIN: "plain step", SHUFFLED: "shuffled step", RANDOM: "random change"}


@experiment(
    "A-E11",
    claim="A-C8",
    title="Inactive neurons write the offset through antipodal updates",
    question="Is the offset produced by neurons with negative mean activation whose value vectors were moved against it, more than any gradient step would do?",
    criterion=CRITERIA["A-E11"],
    caveat="The steps have the length of the tuning in every tensor but are one step long, and each is compared with its own offset. Means run over all positions of the prompts, without padding "
    "(the paper's code includes padding). The decomposition is exact for a sum, not a causal account: a changed activation may itself be caused by changed values below.",
)
def run(context: ToxicityContext) -> Finding:
    pair, layer = context.pair, context.offset_layer
    site = f"resid_mid.{layer}"
    context.say("mean states and activations of both sides")
    base, tuned = (context.mean_states(model) for model in pair.sides.values())
    weights = torch.tensor([len(row) for row in context.prompt_rows()]).double()
    shift = shifts(base[site], tuned[site])
    if not bool(shift.any()):
        raise UserError(f"tuning moved nothing at {site}", "give a tuned side that differs below that layer")
    activations = [pooled(base[f"mlp_post.{below}"], weights) for below in range(layer)]
    tuning = antipodes(pair, layer, shift, activations, weights)
    nulls = _nulls(context, layer, base[site], activations, weights)
    parts = decompose(pair, layer, base, tuned, weights)
    median, inactive = _intervals(context, layer, shift, weights, tuning, parts)
    trend = spearman(range(layer), tuning.medians)
    steps = [null for name, null in nulls if name != RANDOM]
    lowest = min(null.last for null in steps)
    negative = float((torch.cat(activations) < 0).double().mean())
    verdict: Verdict = (
        "fails"
        if median.value > -0.1 or median.value >= lowest
        else "holds"
        if median.value < -0.3 and median.high < lowest and trend <= -0.8 and inactive.low > 0.5
        else "inconclusive"
    )
    by_layer, changes = _tables(tuning, nulls, activations)
    values = "share of the offset from changed values of inactive neurons"
    plain = [null.last for name, null in nulls if name == PLAIN]
    null_parts = {"median cosine": float(np.mean([null.last for null in steps])), "share of signs told by mean activation": tuning.guessed}
    summary = (
        f"Below layer {layer} the median cosine of value updates with the offset is {median.value:.2f} (plain fine-tuning step {plain[0]:.2f}, lowest of the steps {lowest:.2f}); "
        f"{negative:.0%} of the neurons have negative mean activation, and the sign of that activation alone tells {tuning.predicted:.0%} of the signs of the cosines. "
        f"Changed values of inactive neurons make {inactive.value:.0%} of the offset, those of active ones {parts.share('changed values', 'active'):.0%}, changed activations "
        f"{parts.share('changed activations', 'inactive') + parts.share('changed activations', 'active'):.0%}, attention {parts.share('attention'):.0%}."
    )
    return Finding(
        verdict, summary,
        {"median cosine": median.value, "rank correlation with the layer": trend, "share of neurons with negative mean activation": negative, values: inactive.value, "share of signs told by mean activation": tuning.predicted},
        null_parts | {"rank correlation with the layer": float(np.mean([spearman(range(layer), null.medians) for null in steps]))},
        {"median cosine": (median.low, median.high), values: (inactive.low, inactive.high)},
        {"parts": parts.by_part(), "parts by layer": parts.table, "by layer": by_layer, "changes": changes, "readings": _readings(context, layer, shift, weights)},
        (_profile(by_layer), _spread(tuning), _parts(parts)),
        {"site": site, "layer_rule": "most of the 128 value vectors nearest to the probe, not the first layer", "gradient_steps": len(steps), "step_texts": STEP_TEXTS[0 if context.quick else 1], "step_tokens": STEP_TOKENS,
         "residual_of_the_sum": parts.residual, "share_beyond_first_order": parts.share("both", "inactive") + parts.share("both", "active"), "mode": "fixed"},
    )  # fmt: skip


def _nulls(context: ToxicityContext, layer: int, base: Tensor, activations: list[Tensor], weights: Tensor) -> list[tuple[str, Antipodes]]:
    """The same cosines for changes of the weights that do not depend on toxicity, each against its own offset."""
    count = STEP_TEXTS[0 if context.quick else 1]
    texts = [passage.text for passage in context.passages[:: max(1, len(context.passages) // count)]][:count]
    rows = [row for row in token_rows(context.pair.base, texts, max_tokens=min(STEP_TOKENS, context.pair.base.context)) if len(row) > 1]
    rng = np.random.default_rng(context.seed)
    site = f"resid_mid.{layer}"

    def reading_of(kind: str) -> Antipodes:
        """The cosines of one change; its model is dropped before the next is made, since copies of a large model fill the memory."""
        signs = [int(sign) for sign in rng.permutation([1, -1] * len(rows))[: len(rows)]] if kind == SHUFFLED else None
        model = perturbed(context.pair, context.seed) if kind == RANDOM else gradient_step(context.pair, rows, signs=signs)
        shift = shifts(base, capture(model, context.prompt_rows(), [site], positions="mean")[site])
        return antipodes(ModelPair(context.pair.base, model), layer, shift, activations, weights)

    readings: list[tuple[str, Antipodes]] = []
    kinds = [PLAIN, *[SHUFFLED] * (1 if context.quick else 3), RANDOM]
    for number, kind in enumerate(kinds):
        context.say(f"{kind.removesuffix(' (null)')}, {number + 1} of {len(kinds)}")
        readings.append((kind, reading_of(kind)))
    return readings


def _intervals(
    context: ToxicityContext, layer: int, shift: Tensor, weights: Tensor, tuning: Antipodes, parts: Decomposition
) -> tuple[Interval, Interval]:
    """Bootstrap intervals over prompts of the median cosine in the last layer below, and of the share of changed values of inactive neurons."""
    n = len(shift)
    counts = resampled(n, DRAWS, context.seed) * weights
    counts = counts / counts.sum(dim=1, keepdim=True)
    offsets = counts @ shift
    lengths = offsets.norm(dim=1).clamp(min=1e-300)
    unit = offsets / lengths[:, None]
    written = torch.zeros(DRAWS, dtype=torch.float64)
    medians = torch.zeros(DRAWS, dtype=torch.float64)
    base = context.mean_states(context.pair.base)
    for below in range(layer):
        old, new = (model.value_vectors(below).detach().double().cpu() for model in context.pair.sides.values())
        change = new - old
        along = unit @ change.T
        means = counts @ base[f"mlp_post.{below}"].double()
        written += (means.clamp(max=0) * along).sum(dim=1)
        if below == layer - 1:
            medians = (along / change.norm(dim=1).clamp(min=1e-300)).median(dim=1).values
    shares = written / lengths
    ends = [np.quantile(values_by_draw.numpy(), (0.025, 0.975)) for values_by_draw in (medians, shares)]
    values = (tuning.last, parts.share("changed values", "inactive"))
    first, second = (Interval(value, float(low), float(high), n) for value, (low, high) in zip(values, ends, strict=True))
    return first, second


def _tables(tuning: Antipodes, nulls: list[tuple[str, Antipodes]], activations: list[Tensor]) -> tuple[pd.DataFrame, pd.DataFrame]:
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


def _readings(context: ToxicityContext, layer: int, shift: Tensor, weights: Tensor) -> pd.DataFrame:
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


def _profile(by_layer: pd.DataFrame) -> Figure:
    return figures.lines(
        "by-layer", by_layer[by_layer["draw"] == 1], x="layer", y="median cosine", colour="model", role="role", low="low", high="high", reference=(-0.3, "criterion"), title="Value updates against the offset, by layer",
        x_title="layer of the value vectors", y_title="cosine with the offset (median, quartiles)",
        caption="Below zero, updates point against the offset. What tuning does is evidence only where its line lies below those of the plain and the shuffled gradient step (first draws).",
    )  # fmt: skip


def _spread(tuning: Antipodes) -> Figure:
    rows = []
    for below, cosines in tuning.cosines.items():
        counts, _ = np.histogram(cosines.numpy(), bins=BINS)
        rows += [(f"layer {below}", f"{(BINS[i] + BINS[i + 1]) / 2:+.2f}", count / len(cosines)) for i, count in enumerate(counts)]
    return figures.heatmap(
        "spread", pd.DataFrame(rows, columns=["layer", "cosine", "share"]), x="cosine", y="layer", z="share", title="Cosine of each neuron's value update with the offset",
        x_title="cosine (middle of the bin)", y_title="layer of the value vectors", z_title="share of neurons",
        caption="In the paper the mass starts around 0 in the first layer and moves to -1 towards the layer of the offset.",
    )  # fmt: skip


def _parts(parts: Decomposition) -> Figure:
    frame = parts.by_part()
    frame["part"] = [f"{part}, {sign} neurons" if sign else part for part, sign in zip(frame["part"], frame["sign"], strict=True)]
    return figures.bars(
        "parts", frame, x="part", y="share", title=f"What writes the offset before the MLP of layer {parts.layer}", x_title="part", y_title="share of the offset's length", horizontal=True,
        caption="The bars add up to 1. The claim is that the bar of changed values of inactive neurons is more than one half.",
    )  # fmt: skip
