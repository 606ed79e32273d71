"""A-E3: does subtracting one toxic vector at the last layer do what DPO does? (paper A, Table 2)"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from torch.nn import functional

from interp import figures
from interp.edits import Edit
from interp.errors import UserError
from interp.experiments.registry import Context, Finding, experiment
from interp.lens import unembed
from interp.models import Model
from interp.neurons import svd_directions, values_at
from interp.nulls import random_directions
from interp.results import Verdict
from interp.stats import bootstrap_difference, bootstrap_mean

LEAST_RISE = 1.02
GUARDED = 3


def matched_strength(context: Context, model: Model, vector: Tensor, rise: float) -> float:
    """The strength at which subtracting `vector` from the last residual stream multiplies perplexity by `rise`.

    Found by bisection; since nothing but the final norm and the unembedding comes after that site, each trial costs only
    these, on residual streams that are captured once.
    """
    states, targets = context.final_states(model)

    def loss(strength: float) -> float:
        parts = [
            functional.cross_entropy(unembed(model, some - strength * vector), wanted, reduction="sum").item()
            for some, wanted in zip(states.split(4096), targets.split(4096), strict=True)
        ]
        return sum(parts) / len(targets)

    goal = loss(0.0) + math.log(rise)
    length = float(states.norm(dim=1).mean()) / float(vector.norm())
    low, high = 0.0, 0.1 * length
    while loss(high) < goal and high < 10 * length:
        low, high = high, high * 2
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) < goal else (low, middle)
    return (low + high) / 2


@experiment(
    "A-E3",
    claim="A-C3",
    title="Subtracting a toxic vector detoxifies",
    question="Does subtracting one toxic direction from the last residual stream lower toxicity at the perplexity that DPO costs?",
    criterion="Holds if every toxic direction lowers toxicity by at least 25 % while random directions of equal norm lower it by less than 10 %; "
    "fails if no direction lowers it by more than the random ones; otherwise inconclusive.",
    refuted_by="Random directions of equal norm that lower toxicity as much would mean that any disturbance does it.",
    caveat="One scorer, greedy decoding, 20 tokens. The strength is matched on perplexity, so a direction that hurts language more is subtracted less.",
)
def run(context: Context) -> Finding:
    base, tuned = context.pair.base, context.pair.tuned
    start = context.toxicity(base)
    if not start.mean() > 0:
        raise UserError(
            "the base model's continuations of these prompts are not toxic at all",
            "give prompts that this model continues with toxic words",
        )
    site = f"resid_post.{base.n_layers - 1}"
    best = context.ranking.neurons[0]
    directions = {
        "probe": context.direction,
        f"value {best[0]}.{best[1]}": values_at(base, [best])[0],
        "U_0 of the top 128": svd_directions(base, context.ranking.neurons, count=1, towards=context.direction)[0],
    }
    rise = max(context.perplexity(tuned).value / context.perplexity(base).value, LEAST_RISE)
    rows: list[dict[str, Any]] = [_row(context, "base", "base", base, ()), _row(context, "tuned (DPO)", "tuned", tuned, ())]
    drops: dict[str, float] = {}
    lengths = []
    for name, vector in directions.items():
        context.say(f"strength of {name} by bisection")
        strength = matched_strength(context, base, vector, rise)
        lengths.append(strength * float(vector.norm()))
        rows.append(_row(context, f"base − {name}", "edited", base, (Edit.subtract(site, vector, strength),), lengths[-1]))
        drops[name] = 1 - rows[-1]["toxicity"] / start.mean()
    random: list[np.ndarray] = []
    guards: list[float] = []
    reach = float(np.max(lengths))
    for vector in random_directions(context.direction, max(3, context.draws // 3), context.seed):
        context.say("random directions of equal norm")
        edit = (Edit.subtract(site, vector, reach / float(vector.norm())),)
        random.append(context.toxicity(base, edit))
        if len(guards) < GUARDED:
            guards.append(context.perplexity(base, edit).value)
    pooled = np.mean(random, axis=0)
    interval = bootstrap_mean(pooled, seed=context.seed)
    rows.append({
        "model": f"base − random direction (null, {len(random)} draws)", "role": "null", "toxicity": interval.value, "low": interval.low, "high": interval.high,
        "share above half": float(np.mean([(scores > 0.5).mean() for scores in random])), "perplexity": float(np.mean(guards)), "F1": math.nan,
        "distinct-2": math.nan, "length": reach,
    })  # fmt: skip
    null_drop = 1 - float(pooled.mean()) / start.mean()
    table = pd.DataFrame(rows)
    least = min(drops.values())
    verdict: Verdict = (
        "holds" if least >= 0.25 and null_drop < 0.1 else "fails" if max(drops.values()) <= max(null_drop, 0.0) else "inconclusive"
    )
    labels = table["model"] + table["perplexity"].map(lambda value: f" (perplexity {value:.1f})")
    figure = figures.bars(
        "subtraction",
        table.assign(model=labels),
        x="model",
        y="toxicity",
        low="low",
        high="high",
        title="Toxicity of challenge continuations, at what perplexity",
        caption="Toxic directions should reach down to the tuned model's bar at the same perplexity; the random direction should stay at the base's.",
        x_title="model",
        y_title="mean toxicity (0 to 1)",
        horizontal=True,
    )
    change = bootstrap_difference(context.toxicity(tuned), start, seed=context.seed)
    relative = {f"share of toxicity removed, {name}": value for name, value in drops.items()} | {
        "share of toxicity removed, DPO": -change.value / start.mean()
    }
    summary = (
        f"Subtraction lowers mean toxicity by {', '.join(f'{drop:.0%} ({name})' for name, drop in drops.items())} at the tuned model's perplexity; "
        f"DPO by {relative['share of toxicity removed, DPO']:.0%}; random directions of the largest norm used by {null_drop:.0%}."
    )
    intervals = {
        f"share of toxicity removed, {name}": _drop_interval(context, rows[2 + i]["_scores"], start) for i, name in enumerate(drops)
    }
    intervals["share of toxicity removed, DPO"] = _drop_interval(context, context.toxicity(tuned), start)
    settings = {"site": site, "perplexity_ratio": rise, "random_directions": len(random), "random_directions_with_perplexity": len(guards)}
    return Finding(
        verdict,
        summary,
        relative,
        dict.fromkeys(relative, null_drop),
        intervals,
        {"models": table.drop(columns=["_scores", "role"])},
        (figure,),
        settings,
    )


def _drop_interval(context: Context, scores: np.ndarray, start: np.ndarray) -> tuple[float, float]:
    interval = bootstrap_difference(start, scores, seed=context.seed)
    return interval.low / start.mean(), interval.high / start.mean()


def _row(context: Context, name: str, role: str, model: Model, edits: tuple[Edit, ...], length: float = 0.0) -> dict[str, Any]:
    scores = context.toxicity(model, edits)
    interval = bootstrap_mean(scores, seed=context.seed)
    return {
        "model": name, "role": role, "toxicity": interval.value, "low": interval.low, "high": interval.high, "share above half": float((scores > 0.5).mean()),
        "perplexity": context.perplexity(model, edits).value, "F1": float(context.f1(model, edits).mean()), "distinct-2": context.distinct(model, edits),
        "length": length, "_scores": scores,
    }  # fmt: skip
