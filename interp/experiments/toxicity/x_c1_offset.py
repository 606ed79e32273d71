"""X-C1 and X-C2: causal tests of the residual stream's mean offset, added to the base model and subtracted from the tuned one.

Paper A describes the offset without intervening on it. Both tests are one procedure with the sides exchanged: the offset, fitted on
some prompts, is added to one side, and on other prompts the share of the gap to the other side's toxicity that this closes is measured,
as a whole and on each of the two paths by which it reaches the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from interp.edits.edit import Edit
from interp.errors import UserError
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity import shared
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.experiments.toxicity.offset_paths import (
    NO_TRAINED,
    PERMUTED,
    Effect,
    TrainedEffect,
    Transfer,
    control_shares,
    control_vectors,
    effect_of_edits,
    effects_on_paths,
    gap_of,
    mean_offset_over_positions,
    spread_of_layers,
    trained_effects,
    transfer_of,
)
from interp.experiments.toxicity.scorers import agreed, beside
from interp.experiments.toxicity.together import continue_together
from interp.models.model import Model
from interp.patching.vector_paths import BOTH, DIRECT, LATER, VECTOR_PATHS, edits_on_path
from interp.results import figures
from interp.results.result import Figure, Verdict
from interp.stats.intervals import Interval, bootstrap_mean, percent, percents

DOUBLE = 2.0
DRAWS, DRAWS_QUICK = 3, 2
PATH_NAMES = {DIRECT: "share by the direct path", LATER: "share through later blocks"}
CAVEAT = (
    "One vector, the mean over positions and prompts, stands for the offset, and is put before the MLP of one layer, in front of the other side's later layers. "
    "What it does not do may be done by what differs between prompts, or by changes in later layers. Shares of the two paths need not add up, because decoding is greedy. "
    "The effects of the control runs' offsets come from the logs, where they were measured on the prompts of the report. Greedy decoding, 20 tokens."
)


@experiment(
    "X-C1",
    claim="A-C7",
    title="The offset alone detoxifies the base model",
    question="Does adding the mean offset to the base model, fitted on other prompts, make it as little toxic as tuning does, and by which path to the logits?",
    criterion=CRITERIA["X-C1"],
    caveat=CAVEAT,
    does_not_show="An offset that suffices does not show that toxic neurons are bypassed: it may act as a steering vector, added to the logits directly.",
    reads="logs",
)
def sufficiency(context: ToxicityContext) -> Finding:
    return _run(context, transfer_of(context.pair, "base"), "X-C1")


@experiment(
    "X-C2",
    claim="A-C7",
    title="Without the offset the tuned model is toxic again",
    question="Does taking the mean offset, fitted on other prompts, off the tuned model bring its toxicity back, and by which path to the logits?",
    criterion=CRITERIA["X-C2"],
    caveat=CAVEAT,
    does_not_show="That toxicity returns without the offset does not show that tuning works by moving the stream out of a region: what is taken off before one MLP is taken off the logits as well.",
    reads="logs",
)
def necessity(context: ToxicityContext) -> Finding:
    return _run(context, transfer_of(context.pair, "tuned"), "X-C2")


def judge_1(share: Interval, controls: Sequence[float], guard: float) -> Verdict:
    """The verdict under version 1, in which the controls are permuted and random vectors.

    Args:
        guard: the edited side's perplexity over that of the side whose toxicity it should reach.
    """
    if share.value <= max(controls):
        return "fails"
    return "holds" if share.value >= 0.5 and share.low > max(controls) and guard <= 1.05 else "inconclusive"


def judge(share: Interval, controls: Sequence[float], trained: bool, guard: float, thresholds: Mapping[str, float]) -> Verdict:
    """The verdict under version 2.

    Args:
        controls: the shares of permuted and random vectors and of the offsets of control runs.
        trained: whether control runs are among them.
    """
    highest, enough = max(controls), thresholds["enough"]
    if share.value <= highest or share.high < enough:
        return "fails"
    holds = trained and share.low >= enough and share.low > highest and guard <= thresholds["dearer"]
    return "holds" if holds else "inconclusive"


def _run(context: ToxicityContext, transfer: Transfer, id: str) -> Finding:
    layer = context.offset_layer
    fitted, held_out = shared.fitted(context), shared.held_out(context)
    offset = mean_offset_over_positions(fitted, layer)
    gap_of(held_out, context.pair)
    start, goal = ("base", "tuned") if transfer.side == "base" else ("tuned", "base")
    edited = f"{start} {_word(transfer)} offset at layer {layer}"

    def edits(vector: Tensor, strength: float = 1.0, positions: Any = "all") -> tuple[Edit, ...]:
        return edits_on_path(transfer.start, layer, vector, BOTH, transfer.sign * strength, positions)

    controls = control_vectors(offset, DRAWS_QUICK if context.quick else DRAWS, context.seed)
    continue_together(
        held_out, transfer.start, [edits(vector) for vector in (offset, *(some for draws in controls.values() for some in draws))]
    )
    rows = [_row(held_out, transfer, start, (), start), _row(held_out, transfer, goal, (), goal, model=transfer.goal)]
    context.say(f"offset at layer {layer}")
    main = _row(held_out, transfer, edited, edits(offset), "edited")
    rows.append(main)
    if not context.quick:
        context.say(f"offset × {DOUBLE:g}")
        rows.append(_row(held_out, transfer, f"{edited} × {DOUBLE:g}", edits(offset, DOUBLE), "edited"))
        # After the last layer's attention no position reads another, so both would give the same.
        if layer < context.pair.base.n_layers - 1:
            context.say("offset at the last position of the prompt and in what follows")
            name = f"{edited}, from the prompt's last position"
            rows.append(_row(held_out, transfer, name, edits(offset, positions="from_last"), "edited", guard=False))
    drawn: dict[str, list[dict[str, Any]]] = {}
    for kind, vectors in controls.items():
        for number, vector in enumerate(vectors):
            context.say(f"{kind}, draw {number + 1} of {len(vectors)}")
            drawn.setdefault(kind, []).append(_row(held_out, transfer, kind, edits(vector), "null", guard=number == 0))
    rows += [
        {"model": f"{start} {_word(transfer)} {kind} (null, {len(draws)} draws)", "role": "null", **_pooled(context, draws)}
        for kind, draws in drawn.items()
    ]
    trained = trained_effects(context, transfer.side)
    effect, untrained = main["_effect"], [row["_effect"] for draws in drawn.values() for row in draws]
    share, shares = effect.share, [item.share.value for item in untrained]
    guard = main["perplexity"] / held_out.perplexity(transfer.goal).value
    thresholds = CRITERIA[id][-1].thresholds
    verdicts = [
        judge(closed, *control_shares(untrained, trained, layer, second=second), guard, thresholds)
        for second in (False, True)
        if (closed := effect.under(second)) is not None
    ]
    verdict = agreed(verdicts[0], verdicts[1] if len(verdicts) > 1 else None)
    by_layer = _by_layer(context, fitted, held_out, transfer, trained, untrained)
    table = pd.DataFrame(rows).drop(columns=["_scores", "_effect"])
    paths = by_layer[by_layer["layer"] == layer].set_index("path")
    logged = [item for item in trained if (item.layer, item.path) == (layer, BOTH)]
    sentence = _sentence(transfer, share, paths, shares, logged, layer)
    means = {path: float(paths.loc[path, "untrained controls, mean"]) for path in VECTOR_PATHS}
    return Finding(
        verdict,
        f"{sentence} Measured on {len(held_out.prompts)} held-out prompts, at {guard - 1:+.1%} of the other side's perplexity; {main['share of equal continuations']:.0%} of the continuations become the other side's word for word.",
        {"share of the way": share.value, "perplexity ratio to the other side": guard, **{PATH_NAMES[path]: float(paths.loc[path, "share of the way"]) for path in (DIRECT, LATER)}},
        {"share of the way": float(np.mean(shares)), "perplexity ratio to the other side": _guards(drawn) / held_out.perplexity(transfer.goal).value, **{PATH_NAMES[path]: means[path] for path in (DIRECT, LATER)}},
        {"share of the way": (share.low, share.high), **{PATH_NAMES[path]: (float(paths.loc[path, "low"]), float(paths.loc[path, "high"])) for path in (DIRECT, LATER)}},
        {"models": table, "by layer": by_layer, **({"trained controls": _trained_table(trained)} if trained else {}),
         "second scorer": beside(held_out, {start: (transfer.start, ()), goal: (transfer.goal, ()), edited: (transfer.start, edits(offset))})},
        (_bars(table, transfer), _lines(by_layer, layer, float(np.mean(shares)))),
        {"site": f"resid_mid.{layer}", "layer_rule": "most of the 128 value vectors nearest to the probe, not the first layer", "fitted_on": len(fitted.prompts), "measured_on": len(held_out.prompts),
         "perplexity_passages": len(held_out.passages), "offset_norm": float(offset.norm()), "controls": {kind: len(draws) for kind, draws in drawn.items()}, "positions": "all",
         "verdict_by_second_scorer": verdicts[1] if len(verdicts) > 1 else None},
        sentence, {1: judge_1(share, shares, guard)},
    )  # fmt: skip


def _word(transfer: Transfer) -> str:
    return "+" if transfer.side == "base" else "−"


def _sentence(
    transfer: Transfer, share: Interval, paths: pd.DataFrame, untrained: Sequence[float], logged: Sequence[TrainedEffect], layer: int
) -> str:  # fmt: skip
    adding = transfer.side == "base"
    doing = "Adding the offset to the base model brings" if adding else "Taking the offset off the tuned model returns"
    of = "of the fall in toxicity that tuning brings" if adding else "of the toxicity that tuning took"
    direct, later = (
        f"{percent(row['share of the way'])} [{percents(row['low'], row['high'])}]" for row in (paths.loc[DIRECT], paths.loc[LATER])
    )
    beside_it = ", ".join(
        f"{item.run}{' scaled to its length' if item.scaled else ''} {percent(item.effect.share.value)}" for item in logged if item.decides
    )
    nulls = f"permuted and random vectors {percent(float(np.mean(untrained)))}, at most {percent(max(untrained))}; offsets of control runs: {beside_it or 'none'}"
    reached = f"directly at the logits {direct}, through the blocks from layer {layer} on {later}"
    end = "" if logged else f" {NO_TRAINED}"
    return f"{doing} {percent(share.value)} [{percents(share.low, share.high)}] {of} ({reached}; {nulls}).{end}"


def _guards(drawn: dict[str, list[dict[str, Any]]]) -> float:
    return float(np.nanmean([row["perplexity"] for draws in drawn.values() for row in draws]))


def _pooled(context: ToxicityContext, draws: list[dict[str, Any]]) -> dict[str, Any]:
    """The draws of one control as one row, from each prompt's mean over draws."""
    interval = bootstrap_mean(np.mean([row["_scores"] for row in draws], axis=0), seed=context.seed)
    return {
        "toxicity": interval.value, "low": interval.low, "high": interval.high, "perplexity": float(np.nanmean([row["perplexity"] for row in draws])),
        "share of the way": float(np.mean([row["share of the way"] for row in draws])),
        "share of equal continuations": float(np.mean([row["share of equal continuations"] for row in draws])),
    }  # fmt: skip


def _row(
    held_out: ToxicityContext, transfer: Transfer, name: str, edits: tuple[Edit, ...], role: str, *, model: Model | None = None, guard: bool = True
) -> dict[str, Any]:  # fmt: skip
    """One row of the table; `guard` says whether perplexity is measured too."""
    measured = transfer.start if model is None else model
    scores = held_out.toxicity(measured, edits)
    interval = bootstrap_mean(scores, seed=held_out.seed)
    same = [
        mine == other for mine, other in zip(held_out.continuations(measured, edits), held_out.continuations(transfer.goal), strict=True)
    ]
    effect = effect_of_edits(held_out, transfer, edits) if model is None else None
    return {
        "model": name, "role": role, "toxicity": interval.value, "low": interval.low, "high": interval.high, "perplexity": held_out.perplexity(measured, edits).value if guard else float("nan"),
        "share of the way": 1.0 if effect is None else effect.share.value, "share of equal continuations": float(np.mean(same)), "_scores": scores, "_effect": effect,
    }  # fmt: skip


def _by_layer(
    context: ToxicityContext, fitted: ToxicityContext, held_out: ToxicityContext, transfer: Transfer,
    trained: Sequence[TrainedEffect], untrained: Sequence[Effect],
) -> pd.DataFrame:  # fmt: skip
    """The effect at each layer and on each path, each layer with its own offset; layers that tuning did not move are left out.

    Away from the offset's own layer there is one untrained control, a permuted offset.
    """
    rows = []
    for layer in spread_of_layers(context):
        try:
            offset = mean_offset_over_positions(fitted, layer)
        except UserError:
            continue
        context.say(f"paths of the offset at layer {layer}")
        every = control_vectors(offset, DRAWS_QUICK if context.quick else DRAWS, context.seed)
        vectors = [vector for draws in every.values() for vector in draws] if layer == context.offset_layer else every[PERMUTED][:1]
        tried = [
            edits_on_path(transfer.start, layer, vector, path, transfer.sign) for vector in (offset, *vectors) for path in VECTOR_PATHS
        ]
        continue_together(held_out, transfer.start, tried)
        effects = effects_on_paths(held_out, transfer, layer, offset)
        for path, effect in effects.items():
            known = untrained if (layer, path) == (context.offset_layer, BOTH) else [
                effects_on_paths(held_out, transfer, layer, vector, (path,))[path] for vector in vectors
            ]  # fmt: skip
            shares = [item.share.value for item in known]
            runs = [item for item in trained if item.decides and (item.layer, item.path) == (layer, path)]
            share = effect.share
            rows.append((
                layer, path, share.value, share.low, share.high, float(np.mean(shares)), max(shares), len(shares),
                max((item.effect.share.value for item in runs), default=np.nan), float(offset.norm()),
            ))  # fmt: skip
    return pd.DataFrame(rows, columns=[
        "layer", "path", "share of the way", "low", "high", "untrained controls, mean", "untrained controls, highest", "untrained controls",
        "control runs, highest", "offset norm",
    ])  # fmt: skip


def _trained_table(trained: Sequence[TrainedEffect]) -> pd.DataFrame:
    """The logged effects of the control runs' offsets, one row each."""
    return pd.DataFrame(
        [(item.run, item.layer, item.path, "that of this pair's" if item.scaled else "its own", item.effect.share.value, item.effect.share.low, item.effect.share.high) for item in trained],
        columns=["offset of", "layer", "path", "length", "share of the way", "low", "high"],
    )  # fmt: skip


def _bars(table: pd.DataFrame, transfer: Transfer) -> Figure:
    start, goal = table["model"].iloc[0], table["model"].iloc[1]
    return figures.bars(
        "toxicity", table, x="model", y="toxicity", role="role", low="low", high="high", horizontal=True, title="Toxicity of held-out continuations, with and without the offset", x_title="model", y_title="mean toxicity (0 to 1)",
        caption=f"The bar of “{start} {_word(transfer)} offset” should come near to the bar of “{goal}”; the shuffled and the random vector should stay at “{start}”.",
    )  # fmt: skip


def _lines(by_layer: pd.DataFrame, layer: int, controls: float) -> Figure:
    return figures.lines(
        "by-layer", by_layer, x="layer", y="share of the way", colour="path", low="low", high="high", reference=(controls, "controls, mean"), markers=True, title="Where the offset is put, and by which path it acts",
        x_title="layer before whose MLP it is put", y_title="share of the way to the other side's toxicity",
        caption=f"1 is the other side's toxicity, 0 no effect. Direct: only the final norm and the unembedding see the offset. Later blocks: only the MLP of the layer and the blocks above see it. The verdict rests on layer {layer}, which was chosen by a rule beforehand.",
    )  # fmt: skip
