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
from interp.experiments.toxicity.offset_paths import control_shares, name_of_run, null_runs
from interp.experiments.toxicity.offset_region import LaterPath, both_parts, judge_1, later_path, one_offset, path_table
from interp.experiments.toxicity.scorers import agreed
from interp.forward.capture import capture
from interp.patching.vector_paths import LATER
from interp.results import figures
from interp.results.figures import moves
from interp.results.result import number
from interp.stats.intervals import Interval, bootstrap_difference, bootstrap_mean, bootstrap_ratio, percent, percents
from interp.stats.nulls import matched_neurons, perturbed

TOP = 5
LATER_SHARE = "share of the fall through later blocks"
DRAWN_PROMPTS = 100


def layer_neurons(context: ToxicityContext, layer: int, count: int = TOP) -> list[int]:
    """The neurons of one layer, at most `count`, whose value vectors point most along the probe."""
    return [index for at, index in context.ranking.neurons if at == layer][:count]


@experiment(
    "A-E10",
    claim="A-C7",
    title="Tuning adds one offset that leaves the toxic neurons' region",
    question="Is what tuning adds to the residual stream the same vector for every prompt, more so than after training on anything else, and does it act by taking prompts out of the region where toxic neurons fire?",
    criterion=CRITERIA["A-E10"],
    caveat="The mean shift has a positive coordinate along itself by construction, so only coordinates along a direction fitted on the other half of the prompts count, and random changes of the weights move all prompts the same way too. "
    "States are read at the last position of the prompt. The path through later blocks holds all their attention and neurons, not the toxic neurons alone, so that a share on it is the most that leaving the region can bring. "
    "The control runs' numbers come from the logs, where they were measured on the prompts of the report.",
    does_not_show="An offset shared by all prompts is no mark of what this tuning learned: any training moves all prompts alike, on the labels of a coin too.",
    reads="logs",
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
    flips = [pairwise_cosine(sign_flipped(shift, context.seed + draw)) for draw in range(context.draws)]
    random_cosines = [pairwise_cosine(changed[site]) for changed in random]
    trained = _trained_cosines(context)
    region, fall, null_fall = _region(context, layer, base[site], tuned[site])
    path = later_path(context, 2 if context.quick else 3)
    thresholds = CRITERIA["A-E10"][-1].thresholds
    offset_part = one_offset(cosine, list(trained.values()), random_cosines, thresholds)
    region_parts = [path.verdict(fall, null_fall, thresholds, second=second) if path else None for second in (False, True)]
    verdicts = [both_parts(offset_part, part or "inconclusive") for part in region_parts]
    verdict = agreed(verdicts[0], verdicts[1] if region_parts[1] else None)
    moved, key_fall = f"share moved the same way at {site}", "fall of the share that fires"
    statistic = {"mean pairwise cosine": cosine, "explained share": share, moved: same_way, key_fall: fall}
    null = {
        "mean pairwise cosine": max((item.value for item in trained.values()), default=float(np.mean(random_cosines))),
        "explained share": float(np.mean([explained_share(changed[site]) for changed in random])),
        moved: float(np.mean([(held_out_cosines(changed[site], context.seed) > 0).double().mean() for changed in random])), key_fall: null_fall,
    }  # fmt: skip
    tables = {
        "by layer": by_layer,
        "how alike, beside control runs": _alike(cosine, trained, random_cosines, flips),
        "region of the toxic neurons": region,
    }
    if path:
        statistic[LATER_SHARE], tables["paths of the offset"] = path.by_layer[layer].share, path_table(path)
        null[LATER_SHARE] = max(control_shares(path.untrained, path.trained, layer, LATER)[0])
    toxic_neurons = [f"{layer}.{index}" for index in layer_neurons(context, layer)]
    sentence = _sentence(cosine, trained, random_cosines, path)
    summary = (
        f"{sentence} Before the MLP of layer {layer} the mean of the shifts explains {share.value:.0%} of their size. "
        f"The share of prompts on which the {len(toxic_neurons)} most toxic neurons there fire falls by {fall.value:.3f} (matched neurons {null_fall:.3f})."
    )
    return Finding(
        verdict, summary, {name: item.value for name, item in statistic.items()}, null,
        {name: (item.low, item.high) for name, item in statistic.items()},
        tables | {"readings": _readings(context, layer, base[site], tuned[site])},
        (_plane(context, layer, base[site], tuned[site]), _profile(by_layer)),
        {"site": site, "layer_rule": "most of the 128 value vectors nearest to the probe, not the first layer", "neurons": toxic_neurons, "random_changes": len(random), "mode": "fixed",
         "one_offset": offset_part, "leaves_the_region": region_parts[0], "leaves_the_region_by_second_scorer": region_parts[1]},
        sentence, {1: judge_1(cosine, max(*flips, *random_cosines), same_way.value, fall)},
    )  # fmt: skip


def _trained_cosines(context: ToxicityContext) -> dict[str, Interval]:
    """The mean cosine of the shifts of two prompts in each logged control run; one in which nothing moved has none."""
    return {
        name_of_run(run): Interval(
            number(run["consistency"]), number(run["consistency_low"]), number(run["consistency_high"]), len(context.prompts)
        )
        for run in null_runs(context)
        if run.get("consistency") is not None
    }


def _sentence(cosine: Interval, trained: Mapping[str, Interval], random: list[float], path: LaterPath | None) -> str:
    beside = ", ".join(f"{name} {item.value:.2f}" for name, item in trained.items()) or "no control run is logged"
    text = (
        f"The shifts of two prompts have a mean cosine of {cosine.value:.2f} [{cosine.low:.2f}, {cosine.high:.2f}] "
        f"({beside}; random changes of the weights {np.mean(random):.2f})"
    )
    if path is None:
        return f"{text}; tuning did not lower toxicity, so there is no fall that the offset could bring."
    later, direct = (
        f"{percent(share.value)} [{percents(share.low, share.high)}]" for share in (path.by_layer[path.layer].share, path.direct.share)
    )
    highest = max(control_shares(path.untrained, path.trained, path.layer, LATER)[0])
    best = max(path.by_layer, key=lambda layer: path.by_layer[layer].share.value)
    return (
        f"{text}; of the fall in toxicity the offset brings {later} through the blocks from layer {path.layer} on (controls at most {percent(highest)}; "
        f"from layer {best} on {percent(path.by_layer[best].share.value)}) and {direct} directly at the logits."
    )


def _alike(cosine: Interval, trained: Mapping[str, Interval], random: list[float], flips: list[float]) -> pd.DataFrame:
    """How alike the shifts of two prompts are at the offset's layer, in this pair and in its controls; ranges for drawn ones."""
    rows = [("this pair", "tuned", cosine.value, cosine.low, cosine.high)]
    rows += [(name, "control run", item.value, item.low, item.high) for name, item in trained.items()]
    rows += [(name, "drawn", float(np.mean(drawn)), min(drawn), max(drawn)) for name, drawn in ((RANDOM, random), (FLIPPED, flips))]
    return pd.DataFrame(rows, columns=["shifts of", "kind", "mean pairwise cosine", "low", "high"])


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
    for at in range(0, len(base), max(1, len(base) // DRAWN_PROMPTS)):
        for side, place in (("base", placed.base[at]), ("tuned", placed.tuned[at])):
            rows.append((at, side, float(place[0]), float(place[1]), states[side][at]))
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
        caption="The tuned model's line should lie above random weight changes (the band spans the draws). Signs flipped at random after tuning give 0 for any shifts and test nothing; the control runs, which do, stand in the table for the offset's layer.",
    )  # fmt: skip
