"""A-E3: toxicity after one toxic vector is subtracted from the last residual stream, at the perplexity that DPO costs (paper A, Table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.edits.edit import Edit
from interp.errors import UserError
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity import shared
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.experiments.toxicity.scorers import agreed, beside_scores
from interp.experiments.toxicity.shared import matched_strength
from interp.experiments.toxicity.together import continue_together
from interp.models.model import Model
from interp.neurons.ranking import svd_directions, values_at
from interp.results import figures
from interp.results.result import Figure, Verdict
from interp.stats.intervals import Interval, bootstrap_mean, bootstrap_ratio, percents
from interp.stats.nulls import matched_neurons, random_directions

THRESHOLDS = CRITERIA["A-E3"][-1].thresholds
LEAST_RISE = shared.LEAST_RISE
PART_PROMPTS, PART_PASSAGES = 90, 32


def removed(start: np.ndarray, scores: np.ndarray, *, seed: int = 0, draws: int = 2000) -> Interval:
    """The share of the toxicity `start` that is gone in `scores`, both by prompt, with an interval that resamples both."""
    return bootstrap_ratio(start - scores, start, seed=seed, draws=draws)


def judge_1(drops: Sequence[float], null: float) -> Verdict:
    """The verdict under version 1 from the shares that the directions remove, and that random directions of equal norm remove."""
    if min(drops) >= 0.25 and null < 0.1:
        return "holds"
    return "fails" if max(drops) <= max(null, 0.0) else "inconclusive"


def judge(drops: Sequence[Interval], nulls: Sequence[float]) -> Verdict:
    """The verdict under version 2 from the shares that the directions remove, and that each kind of control removes."""
    null = max(*nulls, 0.0)
    if all(drop.value >= THRESHOLDS["least"] and drop.low > null for drop in drops) and null < THRESHOLDS["most"]:
        return "holds"
    return "fails" if max(drop.value for drop in drops) <= null else "inconclusive"


@experiment(
    "A-E3",
    claim="A-C3",
    title="Subtracting a toxic vector detoxifies",
    question="Does subtracting one toxic direction from the last residual stream lower toxicity at the perplexity that DPO costs?",
    criterion=CRITERIA["A-E3"],
    caveat="One scorer, greedy decoding, 20 tokens. The strength is matched on perplexity, so a direction that hurts language more is subtracted less. The controls are "
    "measured on a part of the prompts and compared with the same part of the base model's; perplexity and F1 are measured on a part of the passages; the order of the three directions is not tested.",
    does_not_show="A direction that detoxifies when it is subtracted from the last residual stream, where it acts on the logits alone, does not show that the model computes with it.",
)
def run(context: ToxicityContext) -> Finding:
    base, tuned = context.pair.base, context.pair.tuned
    start = context.toxicity(base)
    step = max(1, len(context.prompts) // (PART_PROMPTS // (2 if context.quick else 1)))
    if not start[::step].mean() > 0:
        raise UserError(
            "the base model's continuations of these prompts are not toxic at all",
            "give prompts that this model continues with toxic words",
        )
    part = shared.part(context, "subtraction", prompts=context.prompts[::step], passages=PART_PASSAGES // (2 if context.quick else 1))
    site = f"resid_post.{base.n_layers - 1}"
    best = context.ranking.neurons[0]
    directions = {
        "probe": context.direction,
        f"value {best[0]}.{best[1]}": values_at(base, [best])[0],
        "U_0 of the top 128": svd_directions(base, context.ranking.neurons, count=1, towards=context.direction)[0],
    }
    rise = max(part.perplexity(tuned).value / part.perplexity(base).value, LEAST_RISE)
    rows: list[dict[str, Any]] = [_row(context, part, "base", base, (), "base"), _row(context, part, "tuned (DPO)", tuned, (), "tuned")]
    edits: dict[str, Edit] = {}
    for name, vector in directions.items():
        context.say(f"strength of {name} by bisection")
        edits[name] = Edit.subtract(site, vector, matched_strength(part, base, vector, rise))
    continue_together(context, base, [(edit,) for edit in edits.values()])
    rows += [_row(context, part, f"base − {name}", base, (edit,), "edited") for name, edit in edits.items()]
    random = _random(context, part, site, max(_length(edit) for edit in edits.values()))
    null_row = _mean(f"base − random direction (null, {len(random)} draws)", random, context.seed, random[0]["length"])
    controls = [null_row, *_controls(context, part, site, rise, edits["probe"], best)]
    verdicts: dict[str, tuple[list[Interval], list[float], Verdict]] = {}
    for scores in ("_scores", "_second"):
        whole = rows[0][scores]
        if whole is not None and whole[::step].mean() > 0:
            shares = [removed(whole, row[scores], seed=context.seed) for row in rows[2:]]
            nulls = [1 - float(row[scores].mean() / whole[::step].mean()) for row in controls[:-1]]
            verdicts[scores] = shares, nulls, judge(shares, nulls)
    intervals_of, nulls, by_first = verdicts["_scores"]
    second = verdicts["_second"][2] if "_second" in verdicts else None
    verdict, first = agreed(by_first, second), judge_1([drop.value for drop in intervals_of], nulls[0])
    drops, null_drop = {name: drop.value for name, drop in zip(directions, intervals_of, strict=True)}, nulls[0]
    table = pd.DataFrame([*rows, *controls])
    by_tuning = removed(start, context.toxicity(tuned), seed=context.seed)
    ends = {f"share of toxicity removed, {name}": drop for name, drop in zip([*drops, "DPO"], [*intervals_of, by_tuning], strict=True)}
    opposite = controls[-1]["toxicity"] / float(start[::step].mean()) - 1
    summary = (
        f"Subtraction lowers mean toxicity by {', '.join(f'{drop:.0%} ({name})' for name, drop in drops.items())} at the tuned model's perplexity; "
        f"DPO by {by_tuning.value:.0%}; random directions of the largest norm used by {null_drop:.0%}, at the same perplexity by "
        f"{nulls[1]:.0%}, random neurons' value vectors by {nulls[2]:.0%}. Adding the probe instead changes it by {opposite:+.0%}."
        + ("" if second is None else f" By the second scorer ({context.second.name if context.second else ''}) the verdict is {second}.")
    )
    sentence = (
        "Subtracted from the last residual stream at the perplexity that DPO costs, "
        + ", ".join(
            f"{name} removes {drop.value:.0%} [{percents(drop.low, drop.high)}]" for name, drop in zip(drops, intervals_of, strict=True)
        )
        + f" of the toxicity (random directions of equal norm {nulls[0]:.0%}, of equal perplexity {nulls[1]:.0%}, random value vectors {nulls[2]:.0%}); DPO removes {by_tuning.value:.0%}."
    )
    settings = {
        "site": site, "perplexity_ratio": rise, "random_directions": len(random), "prompts_of_controls": len(part.prompts),
        "passages": len(part.passages),
    }  # fmt: skip
    tables = {
        "models": table.drop(columns=["_scores", "_second"]),
        "second scorer": beside_scores(context, {row["model"]: (row["_scores"], row["_second"]) for row in [*rows, *controls]}),
    }
    return Finding(
        verdict, summary, {name: drop.value for name, drop in ends.items()}, dict.fromkeys(ends, max(nulls)), {name: (drop.low, drop.high) for name, drop in ends.items()},
        tables, (_figure(table),), settings, sentence=sentence, earlier={1: first},
    )  # fmt: skip


def _mean(name: str, rows: list[dict[str, Any]], seed: int, length: float) -> dict[str, Any]:
    second = None if rows[0]["_second"] is None else np.mean([row["_second"] for row in rows], axis=0)
    return shared.mean_row(name, rows, seed, role="null", length=length) | {"_second": second}


def _random(context: ToxicityContext, part: ToxicityContext, site: str, length: float) -> list[dict[str, Any]]:
    """Random directions as long as the longest vector that was subtracted."""
    context.say("random directions of equal norm")
    vectors = random_directions(context.direction, max(3, context.draws // 3), context.seed)
    edits = [(Edit.subtract(site, vector, length / float(vector.norm())),) for vector in vectors]
    continue_together(part, part.pair.base, edits)
    return [_row(part, part, "random direction", part.pair.base, edit, "null") for edit in edits]


def _controls(
    context: ToxicityContext, part: ToxicityContext, site: str, rise: float, probe: Edit, best: tuple[int, int]
) -> list[dict[str, Any]]:
    """The rows of the controls: a random direction and random neurons' value vectors at the same perplexity, and the probe with the opposite sign."""
    base = context.pair.base
    draws = 1 if context.quick else 3
    vectors = {
        "random direction at the same perplexity": list(random_directions(context.direction, draws, context.seed + 1)),
        "value vector of a random neuron": [
            values_at(base, matched_neurons(base, [best], seed=context.seed + i, exclude=context.ranking.neurons))[0] for i in range(draws)
        ],
    }
    edits: dict[str, list[Edit]] = {}
    for name, drawn in vectors.items():
        context.say(f"strength of {name} by bisection")
        edits[name] = [Edit.subtract(site, vector, matched_strength(part, base, vector, rise)) for vector in drawn]
    continue_together(part, base, [(edit,) for edit in (*(edit for some in edits.values() for edit in some), probe.times(-1.0))])
    controls = []
    for name, some in edits.items():
        rows = [_row(part, part, name, base, (edit,), "null") for edit in some]
        length = float(np.mean([row["length"] for row in rows]))
        controls.append(_mean(f"base − {name} (null, {len(rows)} draws)", rows, context.seed, length))
    context.say("the probe with the opposite sign")
    return [*controls, _row(part, part, "base + probe (negative control)", base, (probe.times(-1.0),), "null")]


def _figure(table: pd.DataFrame) -> Figure:
    labels = table["model"] + table["perplexity"].map(lambda value: f" (perplexity {value:.1f})")
    return figures.bars(
        "subtraction", table.assign(model=labels), x="model", y="toxicity", role="role", low="low", high="high", title="Toxicity of challenge continuations, at what perplexity",
        x_title="model", y_title="mean toxicity (0 to 1)", horizontal=True,
        caption="Toxic directions should reach down to the tuned model's bar at the same perplexity; random directions should stay at the base's, and the added probe above it.",
    )  # fmt: skip


def _length(edit: Edit) -> float:
    return 0.0 if edit.values is None else abs(edit.strength) * float(edit.values.norm())


def _row(context: ToxicityContext, part: ToxicityContext, name: str, model: Model, edits: tuple[Edit, ...], role: str) -> dict[str, Any]:
    """One row of the table; perplexity and F1 are measured on the part's passages in every row, so that they can be compared."""
    scores = context.toxicity(model, edits)
    interval = bootstrap_mean(scores, seed=context.seed)
    return {
        "model": name, "role": role, "toxicity": interval.value, "low": interval.low, "high": interval.high, "share above half": float((scores > 0.5).mean()),
        "perplexity": part.perplexity(model, edits).value, "F1": float(part.f1(model, edits).mean()), "distinct-2": context.distinct(model, edits),
        "length": sum(_length(edit) for edit in edits), "_scores": scores, "_second": context.second_toxicity(model, edits),
    }  # fmt: skip
