"""The rule of A-E10: whether the shifts of prompts are one offset, and whether that offset acts by leaving the region of the toxic neurons.

An offset that leaves a neuron's region changes what blocks compute of the stream. So what is asked is how much of the fall in
toxicity it brings on the path through later blocks alone, and not what it does when it is added to the logits directly. This path
holds all attention and all neurons of the later blocks: a large share on it is needed for the claim, and does not prove it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from interp.errors import UserError
from interp.experiments.toxicity import shared
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.offset_paths import (
    Effect,
    TrainedEffect,
    control_shares,
    control_vectors,
    effects_on_paths,
    gap_of,
    mean_offset_over_positions,
    spread_of_layers,
    trained_effects,
    transfer_of,
)
from interp.patching.vector_paths import DIRECT, LATER
from interp.results.result import Verdict
from interp.stats.intervals import Interval


@dataclass(frozen=True, eq=False)
class LaterPath:
    """The offset added to the base model on the path through later blocks alone.

    Attributes:
        layer: the offset's layer.
        by_layer: the effect at each layer, with its own offset.
        direct: the effect on the direct path, at the offset's layer.
        untrained: the effects of permuted and random vectors, at the offset's layer and through later blocks.
        trained: the logged effects of the offsets of control runs.
    """

    layer: int
    by_layer: Mapping[int, Effect]
    direct: Effect
    untrained: Sequence[Effect]
    trained: Sequence[TrainedEffect]

    def verdict(self, fall: Interval, matched: float, thresholds: Mapping[str, float], *, second: bool) -> Verdict | None:
        """`leaves_region` under one of the scorers; None where the second one sees no gap."""
        shares = {layer: share for layer, effect in self.by_layer.items() if (share := effect.under(second)) is not None}
        if self.layer not in shares:
            return None
        controls, logged = control_shares(self.untrained, self.trained, self.layer, LATER, second=second)
        highest_end = max(share.high for share in shares.values())
        return leaves_region(fall, matched, shares[self.layer], highest_end, controls, logged, thresholds)


def judge_1(cosine: Interval, highest_control: float, same_way: float, fall: Interval) -> Verdict:
    """The verdict of A-E10 under version 1, in which signs flipped at random after tuning and random weight changes are the controls."""
    if cosine.value < highest_control + 0.1 or same_way <= 0.5:
        return "fails"
    return "holds" if cosine.value >= 0.3 and cosine.low > highest_control and same_way >= 0.9 and fall.low > 0 else "inconclusive"


def one_offset(cosine: Interval, trained: Sequence[Interval], random: Sequence[float], thresholds: Mapping[str, float]) -> Verdict:
    """Whether shifts are more alike than those of control runs and of random changes, by a margin and interval against interval.

    Args:
        trained: the mean cosine of each control run's shifts; empty where none is logged.
        random: the mean cosine under each random change of the weights.
    """
    lows, highs = [item.low for item in trained] + list(random), [item.high for item in trained] + list(random)
    if cosine.high < thresholds["alike"] or cosine.high - max(lows) < thresholds["margin"]:
        return "fails"
    apart = cosine.value >= thresholds["alike"] and cosine.low - max(highs) >= thresholds["margin"]
    return "holds" if apart and trained else "inconclusive"


def leaves_region(
    fall: Interval, matched: float, share: Interval, highest_end: float, controls: Sequence[float], logged: bool,
    thresholds: Mapping[str, float],
) -> Verdict:  # fmt: skip
    """Whether the toxic neurons fire on fewer prompts, and the offset lowers toxicity by what later blocks make of it.

    Args:
        fall: of the share of prompts on which the toxic neurons fire; `matched`: the same for matched neurons.
        share: of the fall in toxicity through later blocks, at the offset's layer.
        highest_end: the highest upper end of that share's interval among all layers.
        controls: the shares of all controls on this path; `logged`: whether control runs are among them.
    """
    if fall.high <= 0 or highest_end < thresholds["enough"]:
        return "fails"
    fires_less = fall.low > max(0.0, matched)
    return "holds" if fires_less and logged and share.low >= thresholds["enough"] and share.low > max(controls) else "inconclusive"


def both_parts(offset: Verdict, region: Verdict) -> Verdict:
    """The verdict of A-E10 from those of its two parts."""
    if "fails" in (offset, region):
        return "fails"
    return "holds" if (offset, region) == ("holds", "holds") else "inconclusive"


def later_path(context: ToxicityContext, draws: int) -> LaterPath | None:
    """Measure the offset on the path through later blocks; None where tuning did not lower toxicity on the held-out prompts."""
    fitted, held_out = shared.fitted(context), shared.held_out(context)
    try:
        gap_of(held_out, context.pair)
    except UserError:
        return None
    transfer = transfer_of(context.pair, "base")
    by_layer: dict[int, Effect] = {}
    for layer in spread_of_layers(context):
        try:
            offset = mean_offset_over_positions(fitted, layer)
        except UserError:
            continue  # tuning moved nothing below this layer
        context.say(f"offset at layer {layer}, through later blocks")
        by_layer[layer] = effects_on_paths(held_out, transfer, layer, offset, (LATER,))[LATER]
    layer = context.offset_layer
    offset = mean_offset_over_positions(fitted, layer)
    context.say("controls of the offset, through later blocks")
    untrained = [
        effects_on_paths(held_out, transfer, layer, vector, (LATER,))[LATER]
        for vectors in control_vectors(offset, draws, context.seed).values()
        for vector in vectors
    ]
    direct = effects_on_paths(held_out, transfer, layer, offset, (DIRECT,))[DIRECT]
    return LaterPath(layer, by_layer, direct, untrained, trained_effects(context, "base"))


def path_table(path: LaterPath) -> pd.DataFrame:
    """The shares of the fall in toxicity, one row for each layer through later blocks and one for each control at the offset's layer."""
    rows: list[tuple[str, int, str, float, float, float]] = []
    effects = [("this pair's offset", layer, LATER, effect) for layer, effect in path.by_layer.items()]
    effects.append(("this pair's offset", path.layer, DIRECT, path.direct))
    effects += [
        (f"offset of {item.run}{', scaled' if item.scaled else ''}", item.layer, item.path, item.effect)
        for item in path.trained
        if item.layer == path.layer and item.path in (LATER, DIRECT)
    ]
    for name, layer, way, effect in effects:
        rows.append((name, layer, way, effect.share.value, effect.share.low, effect.share.high))
    shares = [effect.share.value for effect in path.untrained]
    rows.append(("permuted and random vectors, mean and range", path.layer, LATER, float(np.mean(shares)), min(shares), max(shares)))
    return pd.DataFrame(rows, columns=["vector", "layer", "path", "share of the fall", "low", "high"])
