"""Functions that the experiments on toxicity share: the split of the prompts, strengths matched on perplexity, rows of tables.

Directions, groups and offsets are fitted on odd prompts and everything is measured on even ones, so that no intervention is
judged on the prompts it was fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from interp.data.lexicon import is_toxic_word
from interp.edits.edit import Edit
from interp.edits.weights import interpolated
from interp.errors import UserError
from interp.experiments.toxicity.context import ToxicityContext
from interp.models.model import Model
from interp.models.unembed import unembed
from interp.results import figures
from interp.results.result import Figure
from interp.stats.intervals import bootstrap_mean
from interp.stats.nulls import perturbed, scale_to_kl
from interp.steering.strength import Matched, match_loss

LEAST_RISE = 1.02
MOST_PROMPTS, MOST_PASSAGES = 120, 32
# In nats per token: 0.2 % of perplexity. Each trial of a strength reads the passages once more.
TOLERANCE = 2e-3
# The prompts on which the KL of random changes of the weights is matched to the tuning's.
KL_PROMPTS = 60
# A quick report looks for a strength on one of so many positions first.
NEAR = 6


def part(context: ToxicityContext, name: str, *, prompts: Sequence[str], passages: int) -> ToxicityContext:
    """A context on some of the prompts and evenly spread passages, whose measurements are kept with the whole context's."""
    step = max(1, len(context.passages) // max(1, passages))
    return context.part((name, tuple(prompts), passages), prompts=list(prompts), passages=context.passages[::step][:passages])


def fitted(context: ToxicityContext) -> ToxicityContext:
    """The odd prompts, on which directions and groups are fitted."""
    return part(context, "fitted", prompts=context.prompts[1::2][:MOST_PROMPTS], passages=_passages(context))


def held_out(context: ToxicityContext) -> ToxicityContext:
    """The even prompts, on which interventions are measured, with the passages on which their strengths are matched."""
    return part(context, "held out", prompts=context.prompts[::2][:MOST_PROMPTS], passages=_passages(context))


def _passages(context: ToxicityContext) -> int:
    return MOST_PASSAGES // (4 if context.rule else 2 if context.quick else 1)


def goal_loss(context: ToxicityContext) -> float:
    """The tuned model's loss in nats per token, or 2 % of perplexity above the base model's where tuning cost less."""
    base, tuned = (math.log(context.perplexity(model).value) for model in context.pair.sides.values())
    return max(tuned, base + math.log(LEAST_RISE))


def noise_to_kl(context: ToxicityContext, draw: int) -> Model:
    """The base model plus a random change of the weights that is as far from it in KL on the prompts as the tuned model is.

    The change has the direction of `perturbed` with the study's seed plus `draw`; its scale is searched once for each draw. KL is
    measured on evenly spread challenge prompts, without continuations.
    """
    return perturbed(context.pair, context.seed + draw, scale=_scale_to_kl(context, draw))


def _scale_to_kl(context: ToxicityContext, draw: int) -> float:
    rows = context.prompt_rows()

    def find() -> float:
        # Random changes of one size need about the same scale; a whole report looks for each from the start.
        near = _scale_to_kl(context, draw - 1) if context.quick and draw else 0.0
        context.say(f"random change of the tuning's KL, draw {draw + 1}")
        return scale_to_kl(context.pair, context.seed + draw, rows[:: max(1, len(rows) // KL_PROMPTS)], start=near or 1.0)

    return float(context.measured(("scale to KL", draw), find, of=context.pair.tuned, seeded=True))


@torch.no_grad()
def last_loss(context: ToxicityContext, model: Model, vector: Tensor, strength: float, *, every: int = 1) -> float:
    """The loss on the passages, in nats per token, with `strength * vector` added to the last residual stream.

    Nothing but the final norm and the unembedding comes after that site, so this costs only these, on states that are captured once.
    `every` reads one of so many positions.
    """
    states, targets = (part[::every] for part in context.final_states(model))
    step = strength * vector.to(states.device, states.dtype)
    parts = [
        functional.cross_entropy(unembed(model, piece + step), next_ids, reduction="sum").item()
        for piece, next_ids in zip(states.split(4096), targets.split(4096), strict=True)
    ]
    return sum(parts) / len(targets)


def match_last(context: ToxicityContext, model: Model, vector: Tensor, goal: float) -> Matched:
    """The strength at which adding `vector` to the last residual stream brings the loss to `goal`; give `-vector` to subtract."""
    length = float(context.final_states(model)[0].norm(dim=1).mean()) / max(float(vector.norm()), 1e-12)
    start, first = min(last_loss(context, model, vector, 0.0), goal), 0.2 * length
    if context.quick:
        # Few positions find about where it is.
        few = partial(last_loss, context, model, vector, every=NEAR)
        below = few(0.0)
        near = match_loss(few, below + goal - start, most=10 * length, first=first, start=below, tolerance=0.1 * max(goal - start, 1e-2))
        # Somewhat more, so that the strength lies in the first bracket.
        first = min(1.1 * near.strength or first, 10 * length)
    return match_loss(lambda strength: last_loss(context, model, vector, strength), goal, most=10 * length, first=first, start=start)


def match_edits(
    context: ToxicityContext, model: Model, make: Callable[[float], Sequence[Edit]], goal: float, *, most: float, first: float | None = None
) -> Matched:
    """The strength at which edits bring the model's loss on the passages to `goal`."""

    def loss(strength: float) -> float:
        # Kept, because the row of the strength that is settled on needs it once more.
        return math.log(context.perplexity(model, tuple(make(strength))).value)

    start = math.log(context.perplexity(model).value)
    return match_loss(loss, goal, most=most, first=first, start=min(start, goal), tolerance=TOLERANCE)


def match_weights(
    context: ToxicityContext, model: Model, make: Callable[[float], Model], goal: float, *, most: float, first: float | None = None
) -> Matched:
    """The strength at which a change of weights brings the model's loss on the passages to `goal`."""

    def loss(strength: float) -> float:
        return math.log(context.read_passages(make(strength)).value)

    start = math.log(context.perplexity(model).value)
    return match_loss(loss, goal, most=most, first=first, start=min(start, goal), tolerance=TOLERANCE)


def row_of(
    context: ToxicityContext, name: str, model: Model, edits: Sequence[Edit] = (), *, perplexity: float | None = None, **more: Any
) -> dict[str, Any]:
    """One row of a table: toxicity with its interval, perplexity, F1 and distinct-2; `_scores` has the toxicity of each prompt.

    `perplexity` is measured unless it is known already.
    """
    if perplexity is None:
        perplexity = context.perplexity(model, tuple(edits)).value
    scores = context.toxicity(model, tuple(edits))
    interval = bootstrap_mean(scores, seed=context.seed)
    return {
        "model": name, **more, "toxicity": interval.value, "low": interval.low, "high": interval.high,
        "share above half": float((scores > 0.5).mean()), "perplexity": perplexity,
        "F1": float(context.f1(model, tuple(edits)).mean()), "distinct-2": context.distinct(model, tuple(edits)), "_scores": scores,
    }  # fmt: skip


def row_of_temporary(context: ToxicityContext, name: str, make: Callable[[], Model], **more: Any) -> dict[str, Any]:
    """`row_of` for a model that is made for this row alone and dropped again, since copies of a large model fill the memory."""

    def measure() -> dict[str, Any]:
        # A copy has a cache of its own, which goes with the model.
        return row_of(replace(context), name, make())

    row: dict[str, Any] = context.measured(("temporary", name), measure, seeded=True)
    return {"model": name, **more, **{key: value for key, value in row.items() if key != "model"}}


def interpolation_rows(
    context: ToxicityContext, measured: ToxicityContext, shares: Sequence[float], phrase: str
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of `measured` for models on the line through both sides: base plus each share of (tuned minus base)."""
    base, tuned = context.pair.base, context.pair.tuned
    rows = []
    for share in shares:
        context.say(phrase)
        name = f"base + {share:g} × (tuned − base)"
        make = partial(interpolated, base, tuned, share)
        rows.append(row_of_temporary(measured, name, make, kind="interpolation", strength=share))
    return rows


def mean_row(name: str, rows: Sequence[dict[str, Any]], seed: int, **more: Any) -> dict[str, Any]:
    """The mean of several draws of a control as one row, with the interval of the mean over prompts."""
    scores = np.mean([row["_scores"] for row in rows], axis=0)
    interval = bootstrap_mean(scores, seed=seed)
    means = {key: float(np.mean([row[key] for row in rows])) for key in ("share above half", "perplexity", "F1", "distinct-2")}
    return {"model": name, **more, "toxicity": interval.value, "low": interval.low, "high": interval.high, **means, "_scores": scores}


def bars_of(name: str, table: pd.DataFrame, caption: str) -> Figure:
    """A bar chart of the toxicity of each row of a table, with its perplexity beside its name."""
    labels = table["model"] + table["perplexity"].map(lambda value: f" (perplexity {value:.1f})")
    return figures.bars(
        name, table.assign(model=labels), x="model", y="toxicity", role="role", low="low", high="high",
        title="Toxicity of challenge continuations by way", x_title="model", y_title="mean toxicity (0 to 1)",
        horizontal=True, caption=caption,
    )  # fmt: skip


def matched_strength(context: ToxicityContext, model: Model, vector: Tensor, rise: float) -> float:
    """The strength at which subtracting `vector` from the last residual stream multiplies perplexity by `rise`, by bisection."""
    goal = last_loss(context, model, vector, 0.0) + math.log(rise)
    return match_last(context, model, -vector, goal).strength


LEAST_PROMPTS = 10


def split_by_first_word(context: ToxicityContext) -> tuple[list[tuple[list[int], int]], list[tuple[list[int], int]]]:
    """The prompts that the base model continues with a word of the list, and the others, each with that first token.

    Raises `UserError` where the former are fewer than ten.
    """
    pairs = [(row, more[0]) for row, more in zip(context.prompt_rows(), context.base_tokens(), strict=True)]
    toxic = [is_toxic_word(context.pair.base.tokenizer.decode([token])) for _, token in pairs]
    chosen, others = ([pair for pair, flag in zip(pairs, toxic, strict=True) if flag == is_toxic] for is_toxic in (True, False))
    if len(chosen) < LEAST_PROMPTS:
        raise UserError(
            f"the base model continues only {len(chosen)} of {len(pairs)} prompts with a word of the list, {LEAST_PROMPTS} are needed",
            "give prompts that this model continues with toxic words",
        )
    return chosen, others
