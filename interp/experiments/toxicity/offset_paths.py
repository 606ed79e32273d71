"""The share of the gap in toxicity between the two sides that an offset closes, by layer and by path to the logits, beside its controls.

X-C1, X-C2 and A-E10 measure the pair's own offset. Their strongest controls are the offsets of runs that trained on labels of a
coin, on reversed labels, or on the chosen sides alone; `training.studies.toxicity_controls` measures these while their weights are
at hand, with `run_effects`, and the experiments read them from the logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.diffing.offset_sources import pooled
from interp.edits.edit import Edit
from interp.errors import UserError
from interp.experiments.toxicity import shared
from interp.experiments.toxicity.context import ToxicityContext
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.patching.vector_paths import BOTH, LATER, VECTOR_PATHS, VectorPath, edits_on_path
from interp.results.result import number
from interp.runs.logs import controls_if_any
from interp.stats.intervals import Interval, bootstrap_ratio
from interp.stats.nulls import random_directions

Side = Literal["base", "tuned"]
SIDES: tuple[Side, ...] = ("base", "tuned")
PERMUTED, RANDOM = "coordinates permuted", "random direction"
LAYERS_AT_MOST = 6
# The field of a run in the table of control runs.
FIELD = "offset_effects"
NO_TRAINED = "No trained control's offset is logged, so the verdict is inconclusive at best."


@dataclass(frozen=True, eq=False)
class Transfer:
    """One direction of the causal test: `start` is edited by `sign` times the offset, `goal` is the side whose toxicity it should reach."""

    side: Side
    start: Model
    goal: Model
    sign: float


@dataclass(frozen=True)
class Effect:
    """The share of the gap that an edit closes, under both scorers; `second` is None for no second scorer, or no gap under it."""

    share: Interval
    second: Interval | None

    def under(self, second: bool) -> Interval | None:
        """The share under one of the scorers."""
        return self.second if second else self.share


@dataclass(frozen=True)
class TrainedEffect:
    """The logged effect of a trained control's offset: as long as it is, or scaled to the length of the pair's own offset.

    `decides` says whether a verdict rests on it. Scaled offsets of runs that saw which side is toxic are shown only: how far such a
    run moves in that direction is part of what it learned.
    """

    run: str
    side: Side
    layer: int
    path: VectorPath
    scaled: bool
    decides: bool
    effect: Effect


def transfer_of(pair: ModelPair, side: Side) -> Transfer:
    """The offset added to the base model, or taken off the tuned one."""
    return Transfer(side, pair.base, pair.tuned, 1.0) if side == "base" else Transfer(side, pair.tuned, pair.base, -1.0)


def mean_offset_over_positions(context: ToxicityContext, layer: int) -> Float[Tensor, " d_model"]:
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


def permuted(vector: Float[Tensor, " d"], seed: int) -> Float[Tensor, " d"]:
    """The vector with its coordinates permuted, which has its norm and distribution of coordinates but another direction."""
    return vector[torch.randperm(len(vector), generator=torch.Generator().manual_seed(seed))]


def control_vectors(offset: Float[Tensor, " d_model"], draws: int, seed: int) -> dict[str, list[Tensor]]:
    """Vectors of the offset's norm, by kind: its coordinates permuted, and random directions."""
    return {
        PERMUTED: [permuted(offset, seed + draw) for draw in range(draws)],
        RANDOM: list(random_directions(offset, draws, seed)),
    }


def gap_of(held_out: ToxicityContext, pair: ModelPair) -> float:
    """How far tuning lowers the mean toxicity of the held-out prompts; raises `UserError` where it does not."""
    base, tuned = (float(held_out.toxicity(model).mean()) for model in pair.sides.values())
    if base <= tuned:
        raise UserError(
            f"tuning did not lower toxicity on the held-out prompts ({base:.3f} to {tuned:.3f})",
            "give a tuned side that is less toxic, or prompts that show it",
        )
    return base - tuned


def share_of_way(before: np.ndarray, edited: np.ndarray, after: np.ndarray, seed: int) -> Interval:
    """The share of the gap between the two sides' toxicity that an edit closes; prompts are resampled for both, in pairs."""
    return bootstrap_ratio(before - edited, before - after, seed=seed)


def effect_of_edits(held_out: ToxicityContext, transfer: Transfer, edits: Sequence[Edit]) -> Effect:
    """The share of the way that edits of the starting side go on the held-out prompts, under both scorers."""
    seed, edits = held_out.seed, tuple(edits)
    share = share_of_way(
        held_out.toxicity(transfer.start), held_out.toxicity(transfer.start, edits), held_out.toxicity(transfer.goal), seed
    )
    before, edited, after = (
        held_out.second_toxicity(model, changes) for model, changes in ((transfer.start, ()), (transfer.start, edits), (transfer.goal, ()))
    )
    if before is None or edited is None or after is None or transfer.sign * float(before.mean() - after.mean()) <= 0:
        return Effect(share, None)
    return Effect(share, share_of_way(before, edited, after, seed))


def effects_on_paths(
    held_out: ToxicityContext,
    transfer: Transfer,
    layer: int,
    vector: Float[Tensor, " d_model"],
    paths: Sequence[VectorPath] = VECTOR_PATHS,
) -> dict[VectorPath, Effect]:
    """`effect_of_edits` a vector put before the MLP of a layer, by the path on which it reaches the logits."""
    return {path: effect_of_edits(held_out, transfer, edits_on_path(transfer.start, layer, vector, path, transfer.sign)) for path in paths}


def spread_of_layers(context: ToxicityContext) -> list[int]:
    """The layers at which an offset is tried: all of a model of few layers, else evenly spread ones, and always the offset's own."""
    count = context.pair.base.n_layers
    spread = [] if context.quick else np.linspace(0, count - 1, min(count, LAYERS_AT_MOST)).round().astype(int).tolist()
    return sorted({*spread, context.offset_layer})


def run_effects(own: ToxicityContext, other: ToxicityContext, layers: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """What the offset of another run from the same base does on the sides of this pair: records for the table of control runs.

    The offset is fitted on one half of the prompts and its effect measured on the other, in the base model (added) and in the
    tuned one (taken off), at every layer and on every path; at the offset's layer also scaled to the length of this pair's own.
    Empty where this pair has no gap in toxicity to close.

    Args:
        own: the pair whose gap is closed.
        other: the same study with the other run as its tuned side.
        layers: those at which it is measured; None for `spread_of_layers`.
    """
    held_out = shared.held_out(own)
    try:
        gap_of(held_out, own.pair)
    except UserError:
        return []
    records = []
    for layer in spread_of_layers(own) if layers is None else layers:
        try:
            vector = mean_offset_over_positions(shared.fitted(other), layer)
        except UserError:
            continue  # the run moved nothing below this layer
        tried: list[tuple[bool, Tensor, tuple[VectorPath, ...]]] = [(False, vector, VECTOR_PATHS)]
        if layer == own.offset_layer:
            length = mean_offset_over_positions(shared.fitted(own), layer).norm()
            tried.append((True, vector * (length / vector.norm()), (LATER, BOTH)))
        for side in SIDES:
            transfer = transfer_of(own.pair, side)
            for scaled, put, paths in tried:
                for path, effect in effects_on_paths(held_out, transfer, layer, put, paths).items():
                    records.append(_record(side, layer, path, scaled, float(put.norm()), effect))
    return records


def _record(side: Side, layer: int, path: VectorPath, scaled: bool, norm: float, effect: Effect) -> dict[str, Any]:
    record = {"side": side, "layer": layer, "path": path, "scaled": scaled, "norm": norm, "n": effect.share.n}
    for prefix, share in (("", effect.share), ("second_", effect.second)):
        if share is not None:
            record |= {f"{prefix}share": share.value, f"{prefix}low": share.low, f"{prefix}high": share.high}
    return record


def is_null_run(run: Mapping[str, Any]) -> bool:
    """Whether a run of the table trained on something else than the preference: other labels, or the chosen sides alone."""
    return run.get("labels") != "true" or run.get("method") == "sft"


def name_of_run(run: Mapping[str, Any]) -> str:
    """What a null run was trained on, in words."""
    if run.get("method") == "sft":
        return "fine-tuning on the chosen side"
    return {"shuffled": "tuning on labels of a coin", "reversed": "tuning on reversed labels"}.get(
        str(run.get("labels")), str(run.get("run"))
    )


def null_runs(context: ToxicityContext) -> list[dict[str, Any]]:
    """The rows of the trained controls in the logs of this pair, measured at the offset's layer; empty where none are logged."""
    table = controls_if_any(context.logs, context.pair)
    if table is None or table.get("settings", {}).get("offset_layer") != context.offset_layer:
        return []
    return [run for run in table["runs"] if is_null_run(run)]


def trained_effects(context: ToxicityContext, side: Side) -> list[TrainedEffect]:
    """The logged effects of the trained controls' offsets on one side of this pair; empty where none are logged.

    Those that another scorer measured are left out. They may have been measured on other prompts than the context's.
    """
    table = controls_if_any(context.logs, context.pair) or {}
    settings = table.get("settings", {})
    if settings.get("scorer") != context.scorer.name:
        return []
    second = context.second is not None and settings.get("second_scorer") == context.second.name
    return [
        TrainedEffect(
            name_of_run(run), side, row["layer"], row["path"], row["scaled"],
            not row["scaled"] or run.get("labels") == "shuffled", _effect(row, second),
        )
        for run in null_runs(context)
        for row in run.get(FIELD, ())
        if row["side"] == side
    ]  # fmt: skip


def _effect(record: Mapping[str, Any], second: bool) -> Effect:
    first, other = (
        Interval(number(record[f"{prefix}share"]), number(record[f"{prefix}low"]), number(record[f"{prefix}high"]), record["n"])
        if f"{prefix}share" in record and (second or not prefix)
        else None
        for prefix in ("", "second_")
    )
    assert first is not None
    return Effect(first, other)


def control_shares(
    drawn: Sequence[Effect], trained: Sequence[TrainedEffect], layer: int, path: VectorPath = BOTH, *, second: bool = False
) -> tuple[list[float], bool]:
    """The shares of all controls at a layer and on a path, and whether a trained control is among them.

    Args:
        drawn: the effects of the drawn controls there.
        second: under the second scorer.
    """
    logged = [item.effect.under(second) for item in trained if item.decides and (item.layer, item.path) == (layer, path)]
    known = [effect.under(second) for effect in drawn]
    return [share.value for share in (*known, *logged) if share is not None], any(share is not None for share in logged)
