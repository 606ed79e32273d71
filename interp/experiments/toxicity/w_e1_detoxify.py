"""W-E1: DPO against interventions without training, by toxicity at the same perplexity (extends paper A, Table 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import Tensor
from torch.nn import functional

from interp.directions.contrast import ablation, difference_in_means, random_subspaces, toxic_subspaces
from interp.edits.edit import Edit
from interp.edits.weights import orthogonalised, values_projected
from interp.errors import UserError
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity import shared
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.models.chat import prompt_rows
from interp.models.model import Model
from interp.neurons.ranking import values_at
from interp.results import figures
from interp.results.result import Figure, Verdict
from interp.stats.intervals import Interval, bootstrap_difference
from interp.stats.nulls import perturbed, random_directions, random_neurons
from interp.steering.strength import Matched

NEURONS = 16
RANK = 2
SHARES = (0.5, 1.5)
# Perplexity may differ from the tuned model's by as much as the search for the strength leaves open.
SLACK = 1.005

BARS = "DPO is the best way if its bar is the shortest; controls should stay as long as the base model's bar."


@experiment(
    "W-E1",
    claim="A-C4",
    title="DPO detoxifies more than ways without training",
    question="At the tuned model's perplexity, is DPO less toxic than the base model steered, ablated or projected by hand?",
    criterion=CRITERIA["W-E1"],
    caveat="Each way gets the strength at which perplexity equals the tuned model's (within 0.2 %), or 2 % above the base model's where tuning cost less; a way that stays "
    "cheaper at the end of its range is shown there. Directions are fitted on odd prompts and measured on even ones; the pairs of ProFS are the two sides' continuations of the odd prompts, so it sees "
    "what DPO says, though not its weights. Interpolation uses the tuned weights, so it is no way "
    "without training. Five ways are compared with DPO, for which the intervals do not account.",
)
def run(context: ToxicityContext) -> Finding:
    base, tuned = context.pair.base, context.pair.tuned
    held_out = shared.held_out(context)
    start = held_out.toxicity(base)
    if not start.mean() > 0:
        raise UserError(
            "the base model's continuations of these prompts are not toxic at all",
            "give prompts that this model continues with toxic words",
        )
    goal = shared.goal_loss(held_out)
    rows = [
        shared.row_of(held_out, "base", base, kind="model", strength=0.0),
        shared.row_of(held_out, "tuned (DPO)", tuned, kind="model", strength=1.0),
    ]
    last_layer, controls = _last_layer(context, held_out, goal), _last_layer_controls(context, held_out, goal)
    whole_model, random = _whole_model(context, held_out, goal)
    whole, ways = whole_model[0], [*last_layer, *whole_model[1:]]
    shares = SHARES[:1] if context.quick else SHARES
    lines = [whole, *shared.interpolation_rows(context, held_out, shares, "interpolation of weights")]
    every = [*rows, *ways, *lines, *controls, *random]
    table = pd.DataFrame(every).drop(columns=["_scores"])
    table["role"] = ["base", "tuned", *("null" if kind == "null" else "edited" for kind in table["kind"][2:])]
    price = rows[1]["perplexity"]
    against = {row["model"]: bootstrap_difference(row["_scores"], rows[1]["_scores"], seed=context.seed) for row in ways}
    beaten = [
        name
        for row in ways
        for name in [row["model"]]
        if against[name].high < 0 and row["perplexity"] <= SLACK * max(price, math.exp(goal))
    ]
    better = all(interval.low > 0 for interval in against.values())
    verdict: Verdict = "fails" if beaten else "holds" if better else "inconclusive"
    drops = {row["model"]: 1 - row["toxicity"] / float(start.mean()) for row in [rows[1], *ways]}
    null = {row["model"]: 1 - row["toxicity"] / float(start.mean()) for row in [*controls, *random]}
    best = min(ways, key=lambda row: row["toxicity"])
    summary = (
        f"At the tuned model's perplexity DPO removes {drops['tuned (DPO)']:.0%} of the toxicity, the best way without training ({best['model']}) {drops[best['model']]:.0%}; "
        f"random controls at the same perplexity remove {min(null.values()):.0%} to {max(null.values()):.0%}. "
        + (f"Less toxic than DPO: {', '.join(beaten)}." if beaten else "No way without training is reliably less toxic than DPO.")
        + f" The difference in means ablated whole, at perplexity {whole['perplexity']:.1f}, removes {1 - whole['toxicity'] / float(start.mean()):.0%}."
    )
    names = {name: f"share of toxicity removed, {name}" for name in drops}
    intervals = {
        names[row["model"]]: _share(bootstrap_difference(start, row["_scores"], seed=context.seed), float(start.mean()))
        for row in [rows[1], *ways]
    }
    return Finding(
        verdict, summary, {names[name]: value for name, value in drops.items()}, {label: sum(null.values()) / len(null) for label in names.values()}, intervals,
        {"ways": table, "against DPO": _against(against)}, (_front(table, math.exp(goal)), shared.bars_of("detoxify", table, BARS)),
        {"prompts_measured": len(held_out.prompts), "prompts_fitted": len(shared.fitted(context).prompts), "passages_matched": len(held_out.passages), "perplexity_goal": math.exp(goal),
         "value_vectors": NEURONS, "profs_rank": RANK},
    )  # fmt: skip


def _last_layer(context: ToxicityContext, held_out: ToxicityContext, goal: float) -> list[dict[str, Any]]:
    """Rows of one vector subtracted from the last residual stream, as in paper A's Table 2, and of the toxic neurons' activations scaled down."""
    base = context.pair.base
    best = context.ranking.neurons[:NEURONS]
    vectors = {
        "probe": context.direction,
        f"mean of {len(best)} toxic value vectors": functional.normalize(values_at(base, best).float(), dim=1).mean(dim=0),
    }
    rows = []
    for name, vector in vectors.items():
        context.say(f"strength of subtracting {name}")
        rows.append(_subtracted(held_out, f"base − {name}", vector, goal))
    context.say("strength of shrinking toxic neurons")
    match = _shrink(held_out, best, goal)
    rows.append(
        shared.row_of(
            held_out,
            f"base with {len(best)} toxic neurons turned down",
            base,
            _turned_down(best, match.strength),
            kind="way",
            strength=match.strength,
        )
    )
    return rows


def _last_layer_controls(context: ToxicityContext, held_out: ToxicityContext, goal: float) -> list[dict[str, Any]]:
    base = context.pair.base
    drawn = []
    for vector in random_directions(context.direction, 1 if context.quick else 2, context.seed):
        context.say("strength of subtracting a random direction")
        drawn.append(_subtracted(held_out, "random", vector, goal))
    strength = sum(row["strength"] for row in drawn) / len(drawn)
    best = context.ranking.neurons[:NEURONS]
    others = random_neurons(base, best, seed=context.seed, exclude=context.ranking.neurons)
    match = _shrink(held_out, others, goal)
    return [
        shared.mean_row(f"base − random direction (null, {len(drawn)} draws)", drawn, context.seed, kind="null", strength=strength),
        shared.row_of(
            held_out,
            "base with random neurons turned down (null)",
            base,
            _turned_down(others, match.strength),
            kind="null",
            strength=match.strength,
        ),
    ]


def _subtracted(held_out: ToxicityContext, name: str, vector: Tensor, goal: float) -> dict[str, Any]:
    base = held_out.pair.base
    match = shared.match_last(held_out, base, -vector, goal)
    edit = Edit.subtract(f"resid_post.{base.n_layers - 1}", vector, match.strength)
    return shared.row_of(held_out, name, base, (edit,), kind="way", strength=match.strength)


def _turned_down(neurons: Sequence[tuple[int, int]], strength: float) -> tuple[Edit, ...]:
    layers = sorted({layer for layer, _ in neurons})
    return tuple(Edit.scale(f"mlp_post.{layer}", 1 - strength, [index for at, index in neurons if at == layer]) for layer in layers)


def _shrink(held_out: ToxicityContext, neurons: Sequence[tuple[int, int]], goal: float) -> Matched:
    return shared.match_edits(held_out, held_out.pair.base, lambda strength: _turned_down(neurons, strength), goal, most=4.0, first=1.0)


def _whole_model(context: ToxicityContext, held_out: ToxicityContext, goal: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of directional ablation, weight orthogonalisation and ProFS, and of their controls with a random direction or subspace."""
    base, fit = context.pair.base, shared.fitted(context)
    toxic = fit.prompt_rows()
    starts = [passage.prompt for passage in context.passages]
    harmless = prompt_rows(base, starts, context.chat, max_tokens=base.context, keep="last")
    context.say("difference in means")
    difference = difference_in_means(base, toxic, harmless)
    site = f"layer {difference.layer}"
    whole = shared.row_of(
        held_out, f"base with the difference in means ({site}) ablated whole", base, ablation(base, difference.direction), kind="way, not matched", strength=1.0
    )  # fmt: skip
    sequences = [[[*row, *more] for row, more in zip(toxic, fit.greedy_tokens(side), strict=True)] for side in context.pair.sides.values()]
    layers = range(base.n_layers // 2, base.n_layers)
    spaces = toxic_subspaces(base, *sequences, layers=layers, rank=min(RANK, base.d_model - 1, len(toxic)))
    (direction,) = random_directions(difference.direction, 1, context.seed + 1)
    ways = [
        whole,
        _rewritten(context, held_out, "base with weights orthogonal to the difference in means", goal, difference.direction, None),
        _rewritten(context, held_out, f"base with toxic subspace projected out (ProFS, rank {RANK})", goal, None, spaces),
    ]
    controls = [
        _rewritten(context, held_out, "base with weights orthogonal to a random direction (null)", goal, direction, None),
        _rewritten(context, held_out, "base with random subspace projected out (null)", goal, None, random_subspaces(spaces, context.seed)),
    ]
    for row in controls:
        row["kind"] = "null"
    controls.append(
        shared.row_of_temporary(
            held_out,
            "random change of the weights of DPO's norm (null)",
            lambda: perturbed(context.pair, context.seed),
            kind="null",
            strength=1.0,
        )
    )
    return ways, controls


def _rewritten(
    context: ToxicityContext, held_out: ToxicityContext, name: str, goal: float, direction: Tensor | None, spaces: dict[int, Tensor] | None
) -> dict[str, Any]:
    base = context.pair.base

    def make(strength: float) -> Model:
        return orthogonalised(base, direction, strength) if direction is not None else values_projected(base, spaces or {}, strength)

    context.say(f"strength of {name}")
    match = shared.match_weights(held_out, base, make, goal, most=2.0, first=0.5)
    return shared.row_of_temporary(held_out, name, lambda: make(match.strength), kind="way", strength=match.strength)


def _share(interval: Interval, start: float) -> tuple[float, float]:
    return interval.low / start, interval.high / start


def _against(intervals: dict[str, Interval]) -> pd.DataFrame:
    rows = [{"way": name, "toxicity above DPO's": i.value, "low": i.low, "high": i.high} for name, i in intervals.items()]
    return pd.DataFrame(rows)


def _front(table: pd.DataFrame, price: float) -> Figure:
    return figures.scatter(
        "detoxify-front", table, x="perplexity", y="toxicity", low="low", high="high", colour="kind", text="model", front=("min", "min"), title="Ways to lower toxicity, and their price",
        x_title="perplexity on harmless passages", y_title="mean toxicity of challenge continuations (0 to 1)", hover=("strength", "F1", "distinct-2"),
        caption=f"Lower and further left is better; the line joins the ways that no other beats in both. Strengths are set so that perplexity is {price:.1f}, so the points of ways and "
        "controls should stand above one another.",
    )  # fmt: skip
