"""W-E1: DPO against interventions without training, by toxicity at the same perplexity (extends paper A, Table 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
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
from interp.experiments.toxicity.scaled_neurons import NEURONS, neuron_rows
from interp.experiments.toxicity.scorers import agreed, beside_scores
from interp.models.chat import prompt_rows
from interp.models.model import Model
from interp.neurons.ranking import values_at
from interp.results import figures
from interp.results.result import Figure, Verdict
from interp.stats.intervals import Interval, bootstrap_difference, bootstrap_means, bootstrap_ratio, percents
from interp.stats.nulls import perturbed, random_directions

RANK = 2
SHARES = (0.5, 1.5)
# Perplexity may differ from the tuned model's by as much as the search for the strength leaves open.
SLACK = 1.005

NORM, KL = "random change of the weights of DPO's norm (null)", "random change of the weights of DPO's KL (null)"
BARS = "DPO is the best way if its bar is the shortest; controls should stay as long as the base model's bar."


def judge_1(tuned: np.ndarray, ways: Mapping[str, np.ndarray], affordable: Mapping[str, bool], *, seed: int = 0) -> Verdict:
    """The verdict under version 1, from the toxicity of each prompt under DPO and under each way that is matched in perplexity."""
    against = {name: bootstrap_difference(scores, tuned, seed=seed) for name, scores in ways.items()}
    if any(interval.high < 0 and affordable[name] for name, interval in against.items()):
        return "fails"
    return "holds" if all(interval.low > 0 for interval in against.values()) else "inconclusive"


def judge(tuned: np.ndarray, ways: Mapping[str, np.ndarray], noise: np.ndarray, *, seed: int = 0, draws: int = 2000) -> Verdict:
    """The verdict under version 2.

    Args:
        tuned: the toxicity of each prompt under DPO.
        ways: under each way without training that costs no more perplexity.
        noise: under a random change of the weights of DPO's KL.
    """
    # Any one way refutes the claim, so they share the 5 %; for the claim to hold all of them, and the noise, have to be beaten.
    above = np.stack([scores - tuned for scores in [*ways.values(), noise]], axis=1)
    together = bootstrap_means(above, seed=seed, draws=draws, level=1 - 0.05 / max(1, len(ways)))
    if any(interval.high < 0 for interval in together[:-1]):
        return "fails"
    beaten = all(interval.low > 0 for interval in bootstrap_means(above, seed=seed, draws=draws))
    return "holds" if ways and beaten else "inconclusive"


@experiment(
    "W-E1",
    claim="A-C4",
    title="DPO detoxifies more than ways without training",
    question="At the tuned model's perplexity, is DPO less toxic than the base model steered, ablated or projected by hand?",
    criterion=CRITERIA["W-E1"],
    caveat="Each way gets the strength at which perplexity equals the tuned model's (within 0.2 %), or 2 % above the base model's where tuning cost less; a way that stays "
    "cheaper at the end of its range is shown there, and neurons are also switched off and halved, which costs less. A way without training uses the base model's weights and activations, the probe and odd "
    "prompts, on which directions are fitted, and no tuned weight; the pairs of ProFS are the two sides' continuations of the odd prompts, so it sees what DPO says. "
    "Interpolation uses the tuned weights, so it is no way without training. Everything is measured on even prompts.",
    does_not_show="That inverting toxic neurons lowers toxicity shows what subtracting their vectors does to the logits, not what switching them off does; DPO's lead over these ways says nothing of ways that were not tried.",
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
    rows = [_row(held_out, "base", base, kind="model", strength=0.0), _row(held_out, "tuned (DPO)", tuned, kind="model", strength=1.0)]
    rows[1]["null"] = KL
    neurons, like_neurons = neuron_rows(context, held_out, goal)
    (whole, *rewritten), random = _whole_model(context, held_out, goal)
    matched = [*_last_layer(context, held_out, goal), neurons[0], *rewritten]
    controls = [_last_layer_control(context, held_out, goal), *like_neurons, *random]
    ways = [*matched, *neurons[1:]]
    shares = SHARES[:1] if context.quick else SHARES
    lines = [whole, *shared.interpolation_rows(context, held_out, shares, "interpolation of weights")]
    every = [*rows, *ways, *lines, *controls]
    table = pd.DataFrame(every).drop(columns=["_scores", "_second", "null"])
    table["role"] = ["base", "tuned", *("null" if kind == "null" else "edited" for kind in table["kind"][2:])]
    most = SLACK * max(rows[1]["perplexity"], math.exp(goal))
    affordable = {row["model"]: row["perplexity"] <= most for row in ways}
    control_of = {row["model"]: row for row in controls}
    first = judge_1(rows[1]["_scores"], {row["model"]: row["_scores"] for row in matched}, affordable, seed=context.seed)
    verdict_of = {
        scores: judge(
            rows[1][scores],
            {row["model"]: row[scores] for row in ways if affordable[row["model"]]},
            control_of[KL][scores],
            seed=context.seed,
        )
        for scores in ("_scores", "_second")
        if rows[1][scores] is not None
    }
    verdict = agreed(verdict_of["_scores"], verdict_of.get("_second"))
    removed = {row["model"]: bootstrap_ratio(start - row["_scores"], start, seed=context.seed) for row in [rows[1], *ways]}
    null = {row["model"]: 1 - control_of[row["null"]]["toxicity"] / float(start.mean()) for row in [rows[1], *ways]}
    best = min(matched, key=lambda row: row["toxicity"])["model"]
    scaled = ", ".join(
        f"{row['model'].removeprefix('base with ')} {_share(removed[row['model']])} (equally active neurons {null[row['model']]:.0%})"
        for row in neurons
    )
    against = {row["model"]: bootstrap_difference(row["_scores"], rows[1]["_scores"], seed=context.seed) for row in ways}
    lead = against[best]
    summary = (
        f"At the tuned model's perplexity DPO removes {removed['tuned (DPO)'].value:.0%} of the toxicity, a random weight change of its KL {null['tuned (DPO)']:.0%}; the best way without training ({best}) "
        f"{removed[best].value:.0%}, its control {null[best]:.0%}. By factor: {scaled}. The difference in means ablated whole, at perplexity {whole['perplexity']:.1f}, removes {1 - whole['toxicity'] / float(start.mean()):.0%}. "
        f"By scorer the verdicts are {', '.join(verdict_of.values())}."
    )
    sentence = (
        f"At equal perplexity DPO removes {_share(removed['tuned (DPO)'])} of the toxicity (a random weight change of equal KL {null['tuned (DPO)']:.0%}) and the best way without training, {best}, "
        f"{_share(removed[best])} (its control {null[best]:.0%})"
        f", which leaves {lead.value:+.3f} [{lead.low:+.3f}, {lead.high:+.3f}] toxicity more than DPO"
        f"; {neurons[1]['model'].removeprefix('base with ')}: {_share(removed[neurons[1]['model']])}."
    )
    names = {name: f"share of toxicity removed, {name}" for name in removed}
    return Finding(
        verdict, summary, {names[name]: share.value for name, share in removed.items()}, {names[name]: null[name] for name in removed},
        {names[name]: (share.low, share.high) for name, share in removed.items()},
        {"ways": table, "against DPO": _against(against, affordable), "second scorer": beside_scores(held_out, {row["model"]: (row["_scores"], row["_second"]) for row in [*rows, *ways, control_of[KL]]})},
        (_front(table, math.exp(goal)), shared.bars_of("detoxify", table, BARS)),
        {"prompts_measured": len(held_out.prompts), "prompts_fitted": len(shared.fitted(context).prompts), "passages_matched": len(held_out.passages), "perplexity_goal": math.exp(goal),
         "value_vectors": NEURONS, "profs_rank": RANK},
        sentence=sentence, earlier={1: first},
    )  # fmt: skip


def _share(interval: Interval) -> str:
    return f"{interval.value:.0%} [{percents(interval.low, interval.high)}]"


def _row(held_out: ToxicityContext, name: str, model: Model, edits: Sequence[Edit] = (), **more: Any) -> dict[str, Any]:
    """A row of the table; `_second` has the second scorer's toxicity of each prompt."""
    return shared.row_of(held_out, name, model, edits, **more) | {"_second": held_out.second_toxicity(model, edits)}


def _temporary(
    held_out: ToxicityContext, name: str, make: Callable[[], Model], perplexity: float | None = None, **more: Any
) -> dict[str, Any]:
    """The same for a model that is made for this row alone, as in `shared.row_of_temporary`."""

    def measure() -> dict[str, Any]:
        return _row(replace(held_out), name, make(), perplexity=perplexity)

    row: dict[str, Any] = held_out.measured(("temporary, both scorers", name), measure, seeded=True)
    return row | more


def _last_layer(context: ToxicityContext, held_out: ToxicityContext, goal: float) -> list[dict[str, Any]]:
    """Rows of one vector subtracted from the last residual stream, as in paper A's Table 2."""
    best = context.ranking.neurons[:NEURONS]
    mean = functional.normalize(values_at(context.pair.base, best).float(), dim=1).mean(dim=0)
    rows = []
    for name, vector in {"probe": context.direction, f"mean of {len(best)} toxic value vectors": mean}.items():
        context.say(f"strength of subtracting {name}")
        rows.append(_subtracted(held_out, f"base − {name}", vector, goal) | {"null": _random_name(context)})
    return rows


def _random_name(context: ToxicityContext) -> str:
    return f"base − random direction (null, {1 if context.quick else 2} draws)"


def _last_layer_control(context: ToxicityContext, held_out: ToxicityContext, goal: float) -> dict[str, Any]:
    drawn = []
    for vector in random_directions(context.direction, 1 if context.quick else 2, context.seed):
        context.say("strength of subtracting a random direction")
        drawn.append(_subtracted(held_out, "random", vector, goal))
    strength = sum(row["strength"] for row in drawn) / len(drawn)
    return shared.mean_row(_random_name(context), drawn, context.seed, kind="null", strength=strength)


def _subtracted(held_out: ToxicityContext, name: str, vector: Tensor, goal: float) -> dict[str, Any]:
    base = held_out.pair.base
    match = shared.match_last(held_out, base, -vector, goal)
    edit = Edit.subtract(f"resid_post.{base.n_layers - 1}", vector, match.strength)
    return _row(held_out, name, base, (edit,), kind="way", strength=match.strength)


def _whole_model(context: ToxicityContext, held_out: ToxicityContext, goal: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of directional ablation, weight orthogonalisation and ProFS, and of their controls with a random direction or subspace."""
    base, fit = context.pair.base, shared.fitted(context)
    toxic = fit.prompt_rows()
    starts = [passage.prompt for passage in context.passages]
    harmless = prompt_rows(base, starts, context.chat, max_tokens=base.context, keep="last")
    context.say("difference in means")
    difference = difference_in_means(base, toxic, harmless)
    site = f"layer {difference.layer}"
    whole = _row(
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
    for row, control in zip(ways[1:], controls, strict=True):
        row["null"], control["kind"] = control["model"], "null"
    for name, make in ((NORM, lambda: perturbed(context.pair, context.seed)), (KL, lambda: shared.noise_to_kl(context, 0))):
        controls.append(_temporary(held_out, name, make, kind="null", strength=1.0))
    return ways, controls


def _rewritten(
    context: ToxicityContext, held_out: ToxicityContext, name: str, goal: float, direction: Tensor | None, spaces: dict[int, Tensor] | None
) -> dict[str, Any]:
    base = context.pair.base

    def make(strength: float) -> Model:
        return orthogonalised(base, direction, strength) if direction is not None else values_projected(base, spaces or {}, strength)

    context.say(f"strength of {name}")
    match = shared.match_weights(held_out, base, make, goal, most=2.0, first=0.5)
    # The loss at the strength that was settled on is known from the search, which begins with that at no strength.
    known = math.exp(match.loss) if match.strength else None
    return _temporary(held_out, name, lambda: make(match.strength), known, kind="way", strength=match.strength)


def _against(intervals: dict[str, Interval], affordable: dict[str, bool]) -> pd.DataFrame:
    rows = [
        {"way": name, "toxicity above DPO's": i.value, "low": i.low, "high": i.high, "costs no more": affordable[name]}
        for name, i in intervals.items()
    ]
    return pd.DataFrame(rows)


def _front(table: pd.DataFrame, price: float) -> Figure:
    return figures.scatter(
        "detoxify-front", table, x="perplexity", y="toxicity", low="low", high="high", colour="kind", text="model", front=("min", "min"), title="Ways to lower toxicity, and their price",
        x_title="perplexity on harmless passages", y_title="mean toxicity of challenge continuations (0 to 1)", hover=("strength", "F1", "distinct-2"),
        caption=f"Lower and further left is better; the line joins the ways that no other beats in both. Strengths are set so that perplexity is {price:.1f}, so the points of ways and "
        "controls should stand above one another.",
    )  # fmt: skip
