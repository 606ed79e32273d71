"""A-E11: cosines of value-vector updates with the offset, and the share of the offset that inactive neurons write (paper A, Figure 5)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.diffing.antipodes import Antipodes, antipodes
from interp.diffing.offset_sources import Decomposition, decompose, pooled, spearman
from interp.diffing.offsets import resampled, shifts
from interp.errors import UserError
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.a_e11_rule import PLAIN, RANDOM, SHUFFLED, chance_beyond, judge, judge_1, layers_of
from interp.experiments.toxicity.a_e11_tables import (
    by_layer_rows,
    parts_figure,
    profile_figure,
    readings,
    sentence_of,
    spread_figure,
    summary_of,
    swaps_figure,
    tables_of,
)
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.experiments.toxicity.weight_swaps import weight_swaps
from interp.forward.capture import capture
from interp.models.pair import ModelPair
from interp.models.tokens import token_rows
from interp.stats.intervals import Interval
from interp.stats.nulls import gradient_step, perturbed

STEP_TEXTS = (16, 32)
STEP_TOKENS = 64
DRAWS = 200
# Version 1 of the criterion knew the first four steps only; those after the random change take other texts.
FIRST = [PLAIN, *[SHUFFLED] * 3, RANDOM]
FURTHER = [PLAIN, PLAIN, PLAIN, SHUFFLED]
VALUES, LAYERS = "share of the offset from changed values of inactive neurons", "share of layers with updates beyond every gradient step"
BY_ATTENTION, BY_MLP = "share of the offset by attention weights alone", "share of the offset by MLP weights alone"


@experiment(
    "A-E11",
    claim="A-C8",
    title="Inactive neurons write the offset through antipodal updates",
    question="Is the offset produced by neurons with negative mean activation whose value vectors were moved against it, more than any gradient step would do?",
    criterion=CRITERIA["A-E11"],
    caveat="The steps have the length of the tuning in every tensor but are one step long, and each is compared with its own offset. Means run over all positions of the prompts, without padding "
    "(the paper's code includes padding). The decomposition is exact for a sum and follows the direct path only: what attention writes may be changed by changed values below it. "
    "The swaps of weights are causal, but shares of parts need not add up to 1.",
    does_not_show="That attention writes most of the offset by the direct path does not show that the change of attention weights causes all of it: MLP weights alone, in the base model, give a share too.",
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
    counts = resampled(len(shift), DRAWS, context.seed) * weights
    counts = counts / counts.sum(dim=1, keepdim=True)
    medians, inactive = _intervals(context, layer, shift, counts, tuning, parts)
    swaps = weight_swaps(context, layer, base[site], shift, weights, counts)
    attention, mlp = (_alone(swaps, group, len(shift)) for group in ("attention", "mlp"))
    layers = layers_of(medians, nulls)
    trend = spearman(range(layer), tuning.medians)
    steps = [null for name, null in nulls if name != RANDOM]
    first = [null for name, null in nulls[: len(FIRST)] if name != RANDOM]
    negative = float((torch.cat(activations) < 0).double().mean())
    by_layer, changes = tables_of(tuning, nulls, activations)
    rows = by_layer_rows(layers, by_layer, parts)
    null_parts = {
        LAYERS: chance_beyond(nulls, layer), "median cosine": float(np.mean([null.last for null in steps])),
        "share of signs told by mean activation": tuning.guessed, "rank correlation with the layer": float(np.mean([spearman(range(layer), null.medians) for null in steps])),
    }  # fmt: skip
    return Finding(
        judge(layers, inactive, mlp), summary_of(layer, layers, steps, parts, swaps, tuning, negative),
        {LAYERS: sum(one.beyond for one in layers) / layer if all(one.tested for one in layers) else float("nan"), "median cosine": tuning.last, "rank correlation with the layer": trend, "share of neurons with negative mean activation": negative, VALUES: inactive.value,
         BY_ATTENTION: attention.value, BY_MLP: mlp.value, "share of signs told by mean activation": tuning.predicted},
        null_parts,
        {"median cosine": (medians[-1].low, medians[-1].high), VALUES: (inactive.low, inactive.high), BY_ATTENTION: (attention.low, attention.high), BY_MLP: (mlp.low, mlp.high)},
        {"antipodal by layer": rows, "weight swaps": swaps, "parts": parts.by_part(), "parts by layer": parts.table, "by layer": by_layer, "changes": changes, "readings": readings(context, layer, shift, weights)},
        (profile_figure(by_layer), spread_figure(tuning), parts_figure(parts), swaps_figure(swaps)),
        {"site": site, "layer_rule": "most of the 128 value vectors nearest to the probe, not the first layer", "gradient_steps": len(steps), "step_texts": STEP_TEXTS[0 if context.quick else 1], "step_tokens": STEP_TOKENS,
         "residual_of_the_sum": parts.residual, "share_beyond_first_order": parts.share("both", "inactive") + parts.share("both", "active"), "mode": "fixed"},
        sentence=sentence_of(layer, layers, inactive, attention, mlp, null_parts[LAYERS]),
        earlier={1: judge_1(medians[-1], min(null.last for null in first), trend, inactive)},
    )  # fmt: skip


def _alone(swaps: pd.DataFrame, group: str, n: int) -> Interval:
    """The share of the offset that one group of tuned weights gives in the base model; NaN where the model has no such group."""
    rows = swaps[(swaps["group"] == group) & (swaps["layer"] == -1)]
    if rows.empty:
        return Interval(np.nan, np.nan, np.nan, n)
    row = rows.iloc[0]
    return Interval(float(row["share of the offset"]), float(row["low"]), float(row["high"]), n)


def _nulls(context: ToxicityContext, layer: int, base: Tensor, activations: list[Tensor], weights: Tensor) -> list[tuple[str, Antipodes]]:
    """The same cosines for changes of the weights that do not depend on toxicity, each against its own offset."""
    count = STEP_TEXTS[0 if context.quick else 1]
    every = [passage.text for passage in context.passages]
    rng = np.random.default_rng(context.seed)
    site = f"resid_mid.{layer}"

    def rows_of(number: int) -> list[list[int]]:
        """The texts of a step: the first ones take evenly spread passages, further ones a random choice."""
        texts = every[:: max(1, len(every) // count)][:count]
        if number >= len(FIRST):
            texts = list(np.random.default_rng([context.seed, number]).permutation(every)[: min(count, max(1, 2 * len(every) // 3))])
        rows = token_rows(context.pair.base, texts, max_tokens=min(STEP_TOKENS, context.pair.base.context))
        return [list(row) for row in rows if len(row) > 1]

    def reading_of(kind: str, number: int) -> Antipodes:
        """The cosines of one change; its model is dropped before the next is made, since copies of a large model fill the memory."""
        rows = rows_of(number)
        signs = [int(sign) for sign in rng.permutation([1, -1] * len(rows))[: len(rows)]] if kind == SHUFFLED else None
        model = perturbed(context.pair, context.seed) if kind == RANDOM else gradient_step(context.pair, rows, signs=signs)
        shift = shifts(base, capture(model, context.prompt_rows(), [site], positions="mean")[site])
        return antipodes(ModelPair(context.pair.base, model), layer, shift, activations, weights)

    readings: list[tuple[str, Antipodes]] = []
    kinds = [PLAIN, SHUFFLED, RANDOM] if context.quick else [*FIRST, *FURTHER]
    for number, kind in enumerate(kinds):
        context.say(f"{kind.removesuffix(' (null)')}, {number + 1} of {len(kinds)}")
        readings.append((kind, reading_of(kind, number)))
    return readings


def _intervals(
    context: ToxicityContext, layer: int, shift: Tensor, counts: Tensor, tuning: Antipodes, parts: Decomposition
) -> tuple[list[Interval], Interval]:
    """Bootstrap intervals over prompts of the median cosine in each layer below, and of the share of changed values of inactive neurons."""
    n = len(shift)
    offsets = counts @ shift
    lengths = offsets.norm(dim=1).clamp(min=1e-300)
    unit = offsets / lengths[:, None]
    written = torch.zeros(len(counts), dtype=torch.float64)
    medians = []
    base = context.mean_states(context.pair.base)
    for below in range(layer):
        old, new = (model.value_vectors(below).detach().double().cpu() for model in context.pair.sides.values())
        change = new - old
        along = unit @ change.T
        means = counts @ base[f"mlp_post.{below}"].double()
        written += (means.clamp(max=0) * along).sum(dim=1)
        drawn = (along / change.norm(dim=1).clamp(min=1e-300)).median(dim=1).values
        medians.append(_interval(tuning.medians[below], drawn, n))
    return medians, _interval(parts.share("changed values", "inactive"), written / lengths, n)


def _interval(value: float, drawn: Tensor, n: int) -> Interval:
    low, high = np.quantile(drawn.numpy(), (0.025, 0.975))
    return Interval(value, float(low), float(high), n)
