"""A-E9: the mean activation of the toxic neurons before and after tuning, beside matched neurons and random changes (paper A, Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.experiments.toxicity.shared import noise_to_kl
from interp.models.model import Model, Neuron
from interp.models.weights import written_values
from interp.neurons.activations import forced_neurons
from interp.results import figures
from interp.results.result import Verdict
from interp.stats.intervals import bootstrap_difference, bootstrap_mean, bootstrap_means, permutation_p
from interp.stats.nulls import activity_matched, matched_neurons
from interp.stats.repeats import lower_bound

THRESHOLDS = CRITERIA["A-E9"][-1].thresholds
TOP = 5
# The prompts on which the activity of every neuron of a layer is measured.
ACTIVITY_PROMPTS = 60
BY_NORM, BY_ACTIVITY = "matched on layer and norm", "matched on layer, norm and activity"
BY_KL = "random weight changes of equal KL"


def judge(
    falls: np.ndarray, null: Sequence[float], p: float, noise: Sequence[float] | None = None, *, seed: int = 0, draws: int = 2000
) -> Verdict:
    """The verdict from the falls of the toxic neurons (`prompt neuron`) and the mean fall of each draw of matched ones.

    All versions of the criterion are this rule. Version 1 matches neurons on layer and norm with a `p` of 0.05; versions 1 and 2 have
    no `noise`.

    Args:
        noise: the mean fall of the toxic neurons themselves under each of several random changes of the weights.
    """
    fallen = sum(interval.low > 0 for interval in bootstrap_means(falls, seed=seed, draws=draws))
    observed = float(falls.mean())
    if observed <= (0.0 if noise is None else max(0.0, float(np.mean(noise)))):
        return "fails"
    beyond = noise is None or observed > upper_bound(noise)
    return "holds" if beyond and fallen >= THRESHOLDS["neurons"] and permutation_p(observed, null) < p else "inconclusive"


def upper_bound(noise: Sequence[float]) -> float:
    """The fall that one further random change would exceed with the probability `chance` of the criterion; NaN for fewer than two changes."""
    return -lower_bound([-fall for fall in noise], THRESHOLDS["chance"])


def activities(context: ToxicityContext, layers: Sequence[int]) -> dict[int, Tensor]:
    """The mean activation of every neuron of these layers in the base model while it continues evenly spread prompts greedily."""
    base = context.pair.base
    rows, more = context.prompt_rows(), context.base_tokens()
    step = max(1, len(rows) // ACTIVITY_PROMPTS)
    neurons = [(layer, index) for layer in layers for index in range(base.d_mlp)]
    means = forced_neurons(base, rows[::step], more[::step], neurons).step_means.mean(dim=0)
    return {layer: means[place * base.d_mlp : (place + 1) * base.d_mlp] for place, layer in enumerate(layers)}


def mean_activations(context: ToxicityContext, model: Model, neurons: list[Neuron], forcing: str) -> np.ndarray:
    """Each neuron's activation, averaged over the steps of a continuation: `prompt neuron`.

    `forcing` says which side's tokens are read: `base` (the paper's text) or `tuned` (the paper's released code).
    """
    return forced_neurons(model, context.prompt_rows(), context.greedy_tokens(context.pair.sides[forcing]), neurons).step_means.numpy()


@experiment(
    "A-E9",
    claim="A-C6",
    title="Toxic neurons fire less after tuning",
    question="While a challenge prompt is continued, are the toxic neurons less active in the tuned model than in the base model?",
    criterion=CRITERIA["A-E9"],
    caveat="The headline forces both models on the base model's continuation, so that only the weights differ; the second table gives the other two "
    "readings (the released code forces both on the tuned model's). That a neuron fires less does not show that its silence is what lowers toxicity; "
    "the un-alignment experiment asks that.",
    does_not_show="Toxic neurons that fire less do not show that their silence lowers toxicity.",
)
def run(context: ToxicityContext) -> Finding:
    base = context.pair.base
    neurons, near = context.ranking.neurons[:TOP], context.ranking.neurons
    draws = {BY_NORM: 10 if context.quick else 40, BY_ACTIVITY: 120 if context.quick else 200}
    context.say("activity of all neurons of these layers")
    activity = activities(context, sorted({layer for layer, _ in neurons}))
    drawn = {
        BY_NORM: [matched_neurons(base, neurons, seed=context.seed + i, exclude=near, candidates=8) for i in range(draws[BY_NORM])],
        BY_ACTIVITY: [activity_matched(base, neurons, activity, seed=context.seed + i, exclude=near) for i in range(draws[BY_ACTIVITY])],
    }
    every = list(dict.fromkeys([*neurons, *(neuron for sets in drawn.values() for some in sets for neuron in some)]))
    context.say("activations of toxic and matched neurons")
    sides = {name: mean_activations(context, model, every, "base") for name, model in context.pair.sides.items()}
    place = {neuron: at for at, neuron in enumerate(every)}
    rows, falls = [], []
    for neuron in neurons:
        at = place[neuron]
        fall = bootstrap_difference(sides["base"][:, at], sides["tuned"][:, at], seed=context.seed)
        falls.append(fall)
        label = f"{neuron[0]}.{neuron[1]}"
        rows += [(label, side, *_ends(bootstrap_mean(sides[side][:, at], seed=context.seed))) for side in ("base", "tuned")]
    noise = []
    for draw in range(4 if context.quick else 8):
        context.say(f"activations of toxic neurons under a random change of equal KL, draw {draw + 1}")
        moved = mean_activations(context, noise_to_kl(context, draw), neurons, "base")
        noise.append(float((sides["base"][:, [place[n] for n in neurons]] - moved).mean()))
    change = (sides["base"] - sides["tuned"]).mean(axis=0)
    nulls = {name: [float(change[[place[n] for n in some]].mean()) for some in sets] for name, sets in drawn.items()}
    for name, sets in drawn.items():
        matched = [place[n] for some in sets for n in some]
        rows += [
            (name, side, *_ends(bootstrap_mean(sides[side][:, matched].mean(axis=1), seed=context.seed))) for side in ("base", "tuned")
        ]
    frame = pd.DataFrame(rows, columns=["neuron", "side", "activation", "low", "high"])
    observed = float(np.mean([fall.value for fall in falls]))
    toxic = [place[n] for n in neurons]
    fallen = sum(fall.low > 0 for fall in falls)
    each = (sides["base"] - sides["tuned"])[:, toxic]
    first, second = (judge(each, nulls[name], p, seed=context.seed) for name, p in ((BY_NORM, 0.05), (BY_ACTIVITY, THRESHOLDS["p"])))
    verdict = judge(each, nulls[BY_ACTIVITY], THRESHOLDS["p"], noise, seed=context.seed)
    table = _nulls(context, neurons, drawn, nulls, observed, {neuron: float(sides["base"][:, at].mean()) for neuron, at in place.items()})
    row = {
        "neurons": f"toxic, {BY_KL} (null)",
        "draws": len(noise),
        "mean fall": np.mean(noise),
        f"one more change exceeds it in {THRESHOLDS['chance']:.1%}": upper_bound(noise),
    }
    table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
    p = permutation_p(observed, nulls[BY_ACTIVITY])
    figure = figures.bars(
        "activations", frame, x="neuron", y="activation", colour="side", low="low", high="high", title="Mean activation while a challenge prompt is continued",
        x_title="neuron (layer.index)", y_title="activation after the nonlinearity", horizontal=False,
        caption="For toxic neurons the orange bar should be shorter than the blue one; for both kinds of matched neurons the two should be alike.",
    )  # fmt: skip
    pooled = bootstrap_mean(each.mean(axis=1), seed=context.seed)
    matched = [place[n] for n in drawn[BY_ACTIVITY][0]]
    readings = _readings(context, [*neurons, *drawn[BY_ACTIVITY][0]], {name: acts[:, [*toxic, *matched]] for name, acts in sides.items()})
    same = (readings[readings["neurons"] == "toxic"]["fall"] > 0).all()
    null, by_norm = float(np.mean(nulls[BY_ACTIVITY])), float(np.mean(nulls[BY_NORM]))
    level = sides["base"][:, toxic].mean()
    summary = (
        f"{fallen} of {TOP} toxic neurons are less active after tuning; the mean fall is {observed:.4f} from a mean of {level:.3f} (neurons as active, of the same layers and norms, "
        f"{null:.4f}, p = {p:.3f}; of the same layers and norms alone {by_norm:.4f}, p = {permutation_p(observed, nulls[BY_NORM]):.3f}). "
        + f"{len(noise)} {BY_KL} lower the toxic neurons by {np.mean(noise):.4f} on average; one more would lower them by more than {upper_bound(noise):.4f} in {THRESHOLDS['chance']:.1%} of cases. "
        + ("The mean falls whosever tokens are read." if same else "The sign of the mean depends on whose tokens are read (second table).")
    )
    sentence = (
        f"While challenge prompts are continued, the {TOP} neurons nearest to the probe are less active after tuning by {observed:.3f} [{pooled.low:.3f}, {pooled.high:.3f}] of {level:.3f} on average; "
        f"equally active neurons of the same layers by {null:.3f} (p = {p:.3f}), and the same five under {BY_KL} by {np.mean(noise):.3f}."
    )
    return Finding(
        verdict, summary, {"mean fall": observed, "neurons that fell": fallen}, {"mean fall": null},
        {"mean fall": (pooled.low, pooled.high)}, {"activations": frame, "nulls": table, "whose tokens are read": readings}, (figure,),
        {"forcing": "base", "matched_draws": draws[BY_ACTIVITY], "draws_matched_on_norm": draws[BY_NORM], "random_changes": len(noise)}, sentence=sentence, earlier={1: first, 2: second},
    )  # fmt: skip


def _nulls(
    context: ToxicityContext, neurons: list[Neuron], drawn: dict[str, list[list[Neuron]]], nulls: dict[str, list[float]],
    observed: float, level: dict[Neuron, float],
) -> pd.DataFrame:  # fmt: skip
    """The fall of the toxic neurons and of both kinds of matched ones, with how well these are matched in activity and norm."""
    base = context.pair.base
    norms = {layer: written_values(base, layer).float().norm(dim=1).cpu() for layer in {layer for layer, _ in neurons}}

    def match(some: list[Neuron]) -> tuple[float, float]:
        return float(np.mean([level[n] for n in some])), float(torch.stack([norms[layer][index] for layer, index in some]).mean())

    rows: list[tuple[str, int, float, float, float, float, float]] = [("toxic", 1, observed, np.nan, np.nan, *match(neurons))]
    for name, sets in drawn.items():
        p, high = permutation_p(observed, nulls[name]), float(np.quantile(nulls[name], 0.975))
        rows.append((f"{name} (null)", len(sets), float(np.mean(nulls[name])), high, p, *match([n for some in sets for n in some])))
    columns = ["neurons", "draws", "mean fall", "97.5 % of the draws below", "p", "activation in the base", "norm of the value vector"]
    return pd.DataFrame(rows, columns=columns)


def _readings(context: ToxicityContext, neurons: list[Neuron], on_base: dict[str, np.ndarray]) -> pd.DataFrame:
    """The mean fall of the toxic neurons, and of one draw of matched ones, under each reading of the paper's figure.

    Args:
        neurons: the toxic neurons and then as many matched ones.
        on_base: their activations in each side on the base model's tokens, measured already.
    """
    on_tuned = {name: mean_activations(context, model, neurons, "tuned") for name, model in context.pair.sides.items()}
    readings = {"base": on_base, "tuned": on_tuned, "own": {"base": on_base["base"], "tuned": on_tuned["tuned"]}}
    rows = []
    for forcing, sides in readings.items():
        for name, columns in (
            ("toxic", slice(None, len(neurons) // 2)),
            ("equally active (null, one draw)", slice(len(neurons) // 2, None)),
        ):
            base, tuned = (sides[side][:, columns].mean(axis=1) for side in ("base", "tuned"))
            fall = bootstrap_difference(base, tuned, seed=context.seed)
            rows.append((forcing, name, float(base.mean()), float(tuned.mean()), fall.value, fall.low, fall.high))
    return pd.DataFrame(rows, columns=["tokens of", "neurons", "base", "tuned", "fall", "low", "high"])


def _ends(interval: object) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high  # type: ignore[attr-defined]
