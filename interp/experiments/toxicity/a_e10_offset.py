"""A-E10: how alike the residual-stream shifts of all prompts are, and how many prompts they take out of the toxic neurons' firing region (paper A, Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from interp.diffing.offsets import (
    FLIPPED,
    MODES,
    RANDOM,
    consistency,
    coordinates,
    explained_share,
    held_out_cosines,
    key_products,
    pairwise_cosine,
    shifts,
    sign_flipped,
)
from interp.diffing.regions import STATES, firing_states
from interp.errors import UserError
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.forward.capture import capture
from interp.results import figures
from interp.results.figures import moves
from interp.results.result import Verdict
from interp.stats.intervals import bootstrap_difference, bootstrap_mean, bootstrap_ratio
from interp.stats.nulls import matched_neurons, perturbed

TOP = 5
DRAWN_PROMPTS = 100
MARGIN = 0.1


def layer_neurons(context: ToxicityContext, layer: int, count: int = TOP) -> list[int]:
    """The neurons of one layer, at most `count`, whose value vectors point most along the probe."""
    return [index for at, index in context.ranking.neurons if at == layer][:count]


@experiment(
    "A-E10",
    claim="A-C7",
    title="Tuning adds one offset that leaves the toxic neurons' region",
    question="Is what tuning adds to the residual stream the same vector for every prompt, and does it take prompts out of the region where toxic neurons fire?",
    criterion=CRITERIA["A-E10"],
    caveat="A consistent shift is not yet a cause: whether it suffices and is needed is asked by the causal experiment. The mean shift has a positive coordinate along itself by construction, "
    "so only coordinates along a direction fitted on the other half of the prompts count. States are read at the last position of the prompt.",
)
def run(context: ToxicityContext) -> Finding:
    layer = context.offset_layer
    site = f"resid_mid.{layer}"
    context.say("states of both sides at every half layer")
    base, tuned = (context.last_states(model) for model in context.pair.sides.values())
    shift = shifts(base[site], tuned[site])
    if not bool(shift.any()):
        raise UserError(f"tuning moved nothing at {site}", "give a tuned side that differs below that layer")
    random = _random_changes(context, base)
    by_layer = _by_layer(context, base, tuned, random)
    share, cosine = consistency(shift, seed=context.seed)
    same_way = bootstrap_mean(held_out_cosines(shift, context.seed).numpy() > 0, seed=context.seed)
    flips = [sign_flipped(shift, context.seed + draw) for draw in range(context.draws)]
    controls = [*(pairwise_cosine(flip) for flip in flips), *(pairwise_cosine(changed[site]) for changed in random)]
    region, fall, null_fall = _region(context, layer, base[site], tuned[site])
    moved = f"share moved the same way at {site}"
    key_fall = "fall of the share that fires"
    verdict: Verdict = (
        "fails"
        if cosine.value < max(controls) + MARGIN or same_way.value <= 0.5
        else "holds"
        if cosine.value >= 0.3 and cosine.low > max(controls) and same_way.value >= 0.9 and fall.low > 0
        else "inconclusive"
    )
    null = {
        "mean pairwise cosine": float(np.mean([pairwise_cosine(changed[site]) for changed in random])),
        "explained share": float(np.mean([explained_share(changed[site]) for changed in random])),
        moved: float(np.mean([(held_out_cosines(changed[site], context.seed) > 0).double().mean() for changed in random])), key_fall: null_fall,
    }  # fmt: skip
    toxic_neurons = [f"{layer}.{index}" for index in layer_neurons(context, layer)]
    summary = (
        f"Before the MLP of layer {layer} the shifts of two prompts have a mean cosine of {cosine.value:.2f} ({np.mean([pairwise_cosine(f) for f in flips]):.2f} with shuffled labels, "
        f"{null['mean pairwise cosine']:.2f} under random changes); their mean explains {share.value:.0%} of their size, and {same_way.value:.0%} of the prompts move along a direction fitted on others. "
        f"The share of prompts on which the {len(toxic_neurons)} most toxic neurons there fire falls by {fall.value:.3f} (matched neurons {null_fall:.3f})."
    )
    return Finding(
        verdict, summary, {"mean pairwise cosine": cosine.value, "explained share": share.value, moved: same_way.value, key_fall: fall.value}, null,
        {"mean pairwise cosine": (cosine.low, cosine.high), "explained share": (share.low, share.high), moved: (same_way.low, same_way.high), key_fall: (fall.low, fall.high)},
        {"by layer": by_layer, "region of the toxic neurons": region, "readings": _readings(context, layer, base[site], tuned[site])},
        (_plane(context, layer, base[site], tuned[site]), _profile(by_layer)),
        {"site": site, "layer_rule": "most of the 128 value vectors nearest to the probe, not the first layer", "neurons": toxic_neurons, "random_changes": len(random), "label_shuffles": len(flips), "mode": "fixed"},
    )  # fmt: skip


def _random_changes(context: ToxicityContext, base: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The shifts at every site under random weight changes of equal norm, one table per draw."""
    by_draw = []
    draws = 2 if context.quick else 5
    for draw in range(draws):
        context.say(f"states under a random change of equal norm, {draw + 1} of {draws}")
        states = capture(perturbed(context.pair, context.seed + draw), context.prompt_rows(), list(base))
        by_draw.append({site: shifts(base[site], states[site]) for site in base})
    return by_draw


def _by_layer(
    context: ToxicityContext, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], random: list[dict[str, Tensor]]
) -> pd.DataFrame:
    rows: list[tuple[Any, ...]] = []
    for place, site in enumerate(base):
        shift = shifts(base[site], tuned[site])
        share, cosine = consistency(shift, draws=400, seed=context.seed)
        flips = [sign_flipped(shift, context.seed + draw) for draw in range(min(5, context.draws))]
        size = float(base[site].double().norm(dim=1).mean())
        for name, drawn, (low, high) in (
            ("tuned", [shift], (cosine.low, cosine.high)), (FLIPPED, flips, (np.nan, np.nan)),
            (RANDOM, [changed[site] for changed in random], (np.nan, np.nan)),
        ):  # fmt: skip
            cosines = [pairwise_cosine(some) for some in drawn]
            ends = (low, high) if name == "tuned" else (min(cosines), max(cosines))
            rows.append((
                site, (place + 1) / 2, name, "tuned" if name == "tuned" else "null", float(np.mean(cosines)), *ends, share.value if name == "tuned" else float(np.mean([explained_share(some) for some in drawn])),
                float(np.mean([(held_out_cosines(some, context.seed) > 0).double().mean() for some in drawn])), float(np.mean([some.norm(dim=1).mean() for some in drawn])) / size,
            ))  # fmt: skip
    return pd.DataFrame(
        rows, columns=["site", "depth", "model", "role", "mean pairwise cosine", "low", "high", "explained share", "share moved the same way", "shift length over state length"]
    )  # fmt: skip


def _region(context: ToxicityContext, layer: int, base: Tensor, tuned: Tensor) -> tuple[pd.DataFrame, Any, float]:
    """The share of prompts on which the toxic neurons of a layer fire in both models; its fall, and the fall in matched neurons."""
    model = context.pair.base
    toxic = [(layer, index) for index in layer_neurons(context, layer)]
    # A narrow model may have no neurons left in this layer after the exclusion.
    spare = model.d_mlp - sum(at == layer for at, _ in context.ranking.neurons) >= len(toxic)
    draws = [
        matched_neurons(model, toxic, seed=context.seed + draw, exclude=context.ranking.neurons if spare else (), candidates=8)
        for draw in range(10 if context.quick else 40)
    ]
    every = list(dict.fromkeys(index for some in (toxic, *draws) for _, index in some))
    place = {index: at for at, index in enumerate(every)}
    fires = {
        side: (key_products(sided, layer, every, states) > 0).double().numpy()
        for (side, sided), states in zip(context.pair.sides.items(), (base, tuned), strict=True)
    }
    rows: list[tuple[Any, ...]] = []
    for _, index in toxic:
        before, after = (fires[side][:, place[index]] for side in ("base", "tuned"))
        rows.append(
            (
                f"{layer}.{index}",
                before.mean(),
                after.mean(),
                _left(before, after, context.seed),
                int((before * (1 - after)).sum()),
                int(((1 - before) * after).sum()),
            )
        )
    columns = [place[index] for _, index in toxic]
    fall = bootstrap_difference(fires["base"][:, columns].mean(axis=1), fires["tuned"][:, columns].mean(axis=1), seed=context.seed)
    falls = [float((fires["base"] - fires["tuned"])[:, [place[index] for _, index in some]].mean()) for some in draws]
    matched = [place[index] for some in draws for _, index in some]
    before, after = (fires[side][:, matched] for side in ("base", "tuned"))
    rows.append(
        (
            "matched neurons (null)",
            before.mean(),
            after.mean(),
            float((before * (1 - after)).sum() / max(1.0, before.sum())),
            np.nan,
            np.nan,
        )
    )
    frame = pd.DataFrame(
        rows,
        columns=[
            "neuron",
            "share of prompts, base",
            "share of prompts, tuned",
            "share of firing prompts that leave",
            "prompts that leave",
            "prompts that enter",
        ],
    )
    return frame, fall, float(np.mean(falls))


def _left(before: np.ndarray, after: np.ndarray, seed: int) -> float:
    return bootstrap_ratio(before * (1 - after), before, seed=seed, draws=10).value if before.any() else float("nan")


def _readings(context: ToxicityContext, layer: int, base: Tensor, tuned: Tensor) -> pd.DataFrame:
    """The same figure and region as the paper defines them, as its code computes them, and as here (`fixed`)."""
    neurons = layer_neurons(context, layer)
    rows = []
    for mode in MODES:
        placed = coordinates(base, tuned, mode=mode, seed=context.seed)
        count = len(placed.moves)
        before, after = (
            (key_products(model, layer, neurons, states[:count], mode=mode) > 0).double()
            for model, states in zip(context.pair.sides.values(), (base, tuned), strict=True)
        )
        rows.append((
            mode, count, float((placed.moves > 0).double().mean()), float(placed.moves.mean()), float(before.mean()), float(after.mean()),
            float((before * (1 - after)).sum() / before.sum()) if bool(before.any()) else np.nan,
        ))  # fmt: skip
    return pd.DataFrame(
        rows, columns=["mode", "prompts", "share moved the same way", "mean move", "share that fires, base", "share that fires, tuned", "share of firing that leave"]
    )  # fmt: skip


def _plane(context: ToxicityContext, layer: int, base: Tensor, tuned: Tensor) -> Any:
    placed = coordinates(base, tuned, seed=context.seed)
    index = layer_neurons(context, layer, 1)
    before, after = (
        key_products(model, layer, index, states)[:, 0] for model, states in zip(context.pair.sides.values(), (base, tuned), strict=True)
    )
    states = {side: firing_states(reads, before) for side, reads in (("base", before), ("tuned", after))}
    rows = []
    for number in range(0, len(base), max(1, len(base) // DRAWN_PROMPTS)):
        for side, place in (("base", placed.base[number]), ("tuned", placed.tuned[number])):
            rows.append((number, side, float(place[0]), float(place[1]), states[side][number]))
    frame = pd.DataFrame(rows, columns=["prompt", "side", "shift", "component", "state"])
    return moves(
        "plane", frame, item="prompt", side="side", x="shift", y="component", colour="state", order=STATES, title=f"Each prompt before and after tuning, before the MLP of layer {layer}",
        x_title="coordinate along the mean shift of the other half of the prompts", y_title="first principal component",
        caption=f"A dotted line joins a prompt's state in the base model (circle) to that in the tuned model (diamond), coloured by whether neuron {layer}.{index[0]} fires on it "
        "(strongly: above the base model's median). One offset for all prompts shows as parallel lines to the right, which end where the neuron is silent.",
    )  # fmt: skip


def _profile(by_layer: pd.DataFrame) -> Any:
    return figures.lines(
        "by-layer", by_layer, x="depth", y="mean pairwise cosine", colour="model", role="role", low="low", high="high", reference=(0.3, "criterion"), title="How alike the shifts of two prompts are, by layer",
        x_title="layers done (half steps are after attention)", y_title="mean cosine between two prompts' shifts",
        caption="The tuned model's line should lie far above shuffled labels (near 0) and above random weight changes (the band spans the draws).",
    )  # fmt: skip
