"""X-C1 and X-C2: causal tests of the residual stream's mean offset, added to the base model and subtracted from the tuned one.

Paper A describes the offset without intervening on it. Both tests are one procedure with the sides exchanged: the offset, fitted on
some prompts, is added to one side, and on other prompts the share of the gap to the other side's toxicity that this closes is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.diffing.offset_sources import pooled
from interp.edits.edit import Edit
from interp.errors import UserError
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity import shared
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.models.model import Model
from interp.results import figures
from interp.results.result import Figure, Verdict
from interp.stats.intervals import Interval, bootstrap_mean, bootstrap_ratio
from interp.stats.nulls import random_directions

ENOUGH, DEARER = 0.5, 1.05
DOUBLE = 2.0
LAYERS_AT_MOST = 4
PERMUTED, RANDOM = "coordinates permuted", "random direction"
CAVEAT = (
    "One vector, the mean over positions and prompts, stands for the offset, and is put before the MLP of one layer, in front of the other side's later layers. "
    "What it does not do may be done by what differs between prompts, or by changes in later layers. One scorer, greedy decoding, 20 tokens."
)


@dataclass(frozen=True, eq=False)
class Transfer:
    """One direction of the test: `start` is edited by `sign` times the offset, `goal` is the side whose toxicity it should reach."""

    start: Model
    goal: Model
    sign: float
    word: str


def mean_offset_over_positions(context: ToxicityContext, layer: int) -> Tensor:
    """The mean of tuned minus base at `resid_mid.layer`, over all positions of the context's prompts.

    X-C1 and X-C2 move by this vector; W-E2 by the mean at the last token (`interp.diffing.offsets.mean_offset_at_last`).
    Raises `UserError` where it is zero.
    """
    site = f"resid_mid.{layer}"
    base, tuned = (context.mean_states(model)[site].double() for model in context.pair.sides.values())
    offset = pooled(tuned - base, torch.tensor([len(row) for row in context.prompt_rows()]))
    if not bool(offset.any()):
        raise UserError(f"tuning moved nothing at {site}", "give a tuned side that differs below that layer")
    return offset.float()


def permuted(vector: Tensor, seed: int) -> Tensor:
    """The vector with its coordinates permuted, which has its norm and distribution of coordinates but another direction."""
    return vector[torch.randperm(len(vector), generator=torch.Generator().manual_seed(seed))]


@experiment(
    "X-C1",
    claim="A-C7",
    title="The offset alone detoxifies the base model",
    question="Does adding the mean offset to the base model, fitted on other prompts, make it as little toxic as tuning does?",
    criterion=CRITERIA["X-C1"],
    caveat=CAVEAT,
)
def sufficiency(context: ToxicityContext) -> Finding:
    return _run(context, Transfer(context.pair.base, context.pair.tuned, 1.0, "+"))


@experiment(
    "X-C2",
    claim="A-C7",
    title="Without the offset the tuned model is toxic again",
    question="Does taking the mean offset, fitted on other prompts, off the tuned model bring its toxicity back?",
    criterion=CRITERIA["X-C2"],
    caveat=CAVEAT,
)
def necessity(context: ToxicityContext) -> Finding:
    return _run(context, Transfer(context.pair.tuned, context.pair.base, -1.0, "−"))


def _run(context: ToxicityContext, transfer: Transfer) -> Finding:
    layer = context.offset_layer
    fitted, held_out = shared.fitted(context), shared.held_out(context)
    offset = mean_offset_over_positions(fitted, layer)
    before, after = held_out.toxicity(transfer.start), held_out.toxicity(transfer.goal)
    gap = transfer.sign * float(before.mean() - after.mean())
    if gap <= 0:
        raise UserError(
            f"tuning did not lower toxicity on the held-out prompts ({held_out.toxicity(context.pair.base).mean():.3f} to {held_out.toxicity(context.pair.tuned).mean():.3f})",
            "give a tuned side that is less toxic, or prompts that show it",
        )

    def edit(vector: Tensor, strength: float = 1.0, at: int = layer, positions: str = "all") -> tuple[Edit, ...]:
        return (Edit.add(f"resid_mid.{at}", vector, transfer.sign * strength, positions),)

    start, goal = ("base", "tuned") if transfer.sign > 0 else ("tuned", "base")
    edited = f"{start} {transfer.word} offset at layer {layer}"
    rows = [_row(context, held_out, transfer, start, (), start), _row(context, held_out, transfer, goal, (), goal, model=transfer.goal)]
    context.say(f"offset at layer {layer}")
    main = _row(context, held_out, transfer, edited, edit(offset), "edited")
    rows.append(main)
    share = _share(before, main["_scores"], after, context.seed)
    if not context.quick:
        context.say(f"offset × {DOUBLE:g}")
        rows.append(_row(context, held_out, transfer, f"{edited} × {DOUBLE:g}", edit(offset, DOUBLE), "edited"))
        # After the last layer's attention no position reads another, so both would give the same.
        if layer < context.pair.base.n_layers - 1:
            context.say("offset at the last position of the prompt and in what follows")
            rows.append(
                _row(
                    context,
                    held_out,
                    transfer,
                    f"{edited}, from the prompt's last position",
                    edit(offset, positions="from_last"),
                    "edited",
                    guard=False,
                )
            )
    controls = _controls(context, held_out, transfer, offset, edit, before, after)
    rows += [
        {"model": f"{start} {transfer.word} {kind} (null, {len(draws)} draws)", "role": "null", **_pooled(context, draws)}
        for kind, draws in controls.items()
    ]
    shares = [row["share of the way"] for draws in controls.values() for row in draws]
    guard = main["perplexity"] / held_out.perplexity(transfer.goal).value
    verdict: Verdict = (
        "fails"
        if share.value <= max(shares)
        else "holds"
        if share.value >= ENOUGH and share.low > max(shares) and guard <= DEARER
        else "inconclusive"
    )
    table = pd.DataFrame(rows).drop(columns=["_scores"])
    by_layer = _layers(context, fitted, held_out, transfer, edit, before, after)
    doing = "Adding the offset to the base model brings" if transfer.sign > 0 else "Taking the offset off the tuned model returns"
    of = "of the fall in toxicity that tuning brings" if transfer.sign > 0 else "of the toxicity that tuning took"
    summary = (
        f"{doing} {share.value:.0%} {of} on {len(before)} held-out prompts (controls {np.mean(shares):.0%}, at most {max(shares):.0%}), at {guard - 1:+.1%} of the other side's perplexity; "
        f"{main['share of equal continuations']:.0%} of the continuations become the other side's word for word. The best layer is {int(by_layer.loc[by_layer['share of the way'].idxmax(), 'layer'])} "
        f"({by_layer['share of the way'].max():.0%})."
    )
    return Finding(
        verdict, summary, {"share of the way": share.value, "perplexity ratio to the other side": guard},
        {"share of the way": float(np.mean(shares)), "perplexity ratio to the other side": _guards(controls) / held_out.perplexity(transfer.goal).value},
        {"share of the way": (share.low, share.high)}, {"models": table, "by layer": by_layer}, (_bars(table, transfer), _lines(by_layer, layer, float(np.mean(shares)))),
        {"site": f"resid_mid.{layer}", "layer_rule": "most of the 128 value vectors nearest to the probe, not the first layer", "fitted_on": len(fitted.prompts), "measured_on": len(held_out.prompts),
         "perplexity_passages": len(held_out.passages), "offset_norm": float(offset.norm()), "controls": {kind: len(draws) for kind, draws in controls.items()}, "positions": "all"},
    )  # fmt: skip


def _controls(
    context: ToxicityContext,
    held_out: ToxicityContext,
    transfer: Transfer,
    offset: Tensor,
    edit: Any,
    before: np.ndarray,
    after: np.ndarray,
) -> dict[str, list[dict[str, Any]]]:
    draws = 2 if context.quick else 3
    vectors = {
        PERMUTED: [permuted(offset, context.seed + draw) for draw in range(draws)],
        RANDOM: list(random_directions(offset, draws, context.seed)),
    }
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for kind, drawn in vectors.items():
        for number, vector in enumerate(drawn):
            context.say(f"{kind}, draw {number + 1} of {draws}")
            row = _row(context, held_out, transfer, kind, edit(vector), "null", guard=number == 0)
            row["share of the way"] = _share(before, row["_scores"], after, context.seed).value
            by_kind.setdefault(kind, []).append(row)
    return by_kind


def _guards(controls: dict[str, list[dict[str, Any]]]) -> float:
    return float(np.nanmean([row["perplexity"] for draws in controls.values() for row in draws]))


def _pooled(context: ToxicityContext, draws: list[dict[str, Any]]) -> dict[str, Any]:
    """The draws of one control as one row, from each prompt's mean over draws."""
    interval = bootstrap_mean(np.mean([row["_scores"] for row in draws], axis=0), seed=context.seed)
    return {
        "toxicity": interval.value, "low": interval.low, "high": interval.high, "perplexity": float(np.nanmean([row["perplexity"] for row in draws])),
        "share of the way": float(np.mean([row["share of the way"] for row in draws])),
        "share of equal continuations": float(np.mean([row["share of equal continuations"] for row in draws])),
    }  # fmt: skip


def _row(
    context: ToxicityContext,
    held_out: ToxicityContext,
    transfer: Transfer,
    name: str,
    edits: tuple[Edit, ...],
    role: str,
    *,
    model: Model | None = None,
    guard: bool = True,
) -> dict[str, Any]:
    """One row of the table; `guard` says whether perplexity is measured too."""
    edited = transfer.start if model is None else model
    scores = held_out.toxicity(edited, edits)
    interval = bootstrap_mean(scores, seed=context.seed)
    same = [mine == other for mine, other in zip(held_out.continuations(edited, edits), held_out.continuations(transfer.goal), strict=True)]
    return {
        "model": name, "role": role, "toxicity": interval.value, "low": interval.low, "high": interval.high, "perplexity": held_out.perplexity(edited, edits).value if guard else float("nan"),
        "share of the way": _share(held_out.toxicity(transfer.start), scores, held_out.toxicity(transfer.goal), context.seed).value, "share of equal continuations": float(np.mean(same)), "_scores": scores,
    }  # fmt: skip


def _share(before: np.ndarray, edited: np.ndarray, after: np.ndarray, seed: int) -> Interval:
    """The share of the gap between the two sides' toxicity that an edit closes, paired over prompts."""
    return bootstrap_ratio(before - edited, before - after, seed=seed)


def _layers(
    context: ToxicityContext,
    fitted: ToxicityContext,
    held_out: ToxicityContext,
    transfer: Transfer,
    edit: Any,
    before: np.ndarray,
    after: np.ndarray,
) -> pd.DataFrame:
    """The same edit at other layers, each with its own offset; layers that tuning did not move are left out."""
    count = context.pair.base.n_layers
    layers = (
        {context.offset_layer}
        if context.quick
        else {*np.linspace(0, count - 1, min(count, LAYERS_AT_MOST)).round().astype(int).tolist(), context.offset_layer}
    )
    rows = []
    for layer in sorted(layers):
        try:
            offset = mean_offset_over_positions(fitted, layer)
        except UserError:
            continue
        context.say(f"offset at layer {layer}")
        share = _share(before, held_out.toxicity(transfer.start, edit(offset, at=layer)), after, context.seed)
        rows.append((layer, share.value, share.low, share.high, float(offset.norm())))
    return pd.DataFrame(rows, columns=["layer", "share of the way", "low", "high", "offset norm"])


def _bars(table: pd.DataFrame, transfer: Transfer) -> Figure:
    start, goal = table["model"].iloc[0], table["model"].iloc[1]
    return figures.bars(
        "toxicity", table, x="model", y="toxicity", role="role", low="low", high="high", horizontal=True, title="Toxicity of held-out continuations, with and without the offset", x_title="model", y_title="mean toxicity (0 to 1)",
        caption=f"The bar of “{start} {transfer.word} offset” should come near to the bar of “{goal}”; the shuffled and the random vector should stay at “{start}”.",
    )  # fmt: skip


def _lines(by_layer: pd.DataFrame, layer: int, controls: float) -> Figure:
    return figures.lines(
        "by-layer", by_layer, x="layer", y="share of the way", low="low", high="high", reference=(controls, "controls, mean"), markers=True, title="Where the offset is put",
        x_title="layer before whose MLP it is put", y_title="share of the way to the other side's toxicity",
        caption=f"1 is the other side's toxicity, 0 no effect. The verdict rests on layer {layer}, which was chosen by a rule beforehand; other layers are shown without controls of their own.",
    )  # fmt: skip
