"""A-E9: the mean activation of the toxic neurons before and after tuning, beside matched neurons (paper A, Figure 2)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.models.model import Model, Neuron
from interp.neurons.activations import forced_neurons
from interp.results import figures
from interp.results.result import Verdict
from interp.stats.intervals import bootstrap_difference, bootstrap_mean, permutation_p
from interp.stats.nulls import matched_neurons

TOP = 5


def mean_activations(context: ToxicityContext, model: Model, neurons: list[Neuron], forcing: str) -> np.ndarray:
    """Each neuron's activation, averaged over the steps of a continuation: `prompt neuron`.

    `forcing` says whose tokens are read: `base` (the paper's text), `tuned` (the paper's released code) or each model's `own`.
    """
    author = {"base": context.pair.base, "tuned": context.pair.tuned, "own": model}[forcing]
    return forced_neurons(model, context.prompt_rows(), context.greedy_tokens(author), neurons).step_means.numpy()


@experiment(
    "A-E9",
    claim="A-C6",
    title="Toxic neurons fire less after tuning",
    question="While a challenge prompt is continued, are the toxic neurons less active in the tuned model than in the base model?",
    criterion=CRITERIA["A-E9"],
    caveat="The headline forces both models on the base model's continuation, so that only the weights differ; the second table gives the other two "
    "readings (the released code forces both on the tuned model's). That a neuron fires less does not show that its silence is what lowers toxicity; "
    "the un-alignment experiment asks that.",
)
def run(context: ToxicityContext) -> Finding:
    neurons = context.ranking.neurons[:TOP]
    draws = 10 if context.quick else 40
    drawn = [
        matched_neurons(context.pair.base, neurons, seed=context.seed + i, exclude=context.ranking.neurons, candidates=8)
        for i in range(draws)
    ]
    every = list(dict.fromkeys([*neurons, *(neuron for some in drawn for neuron in some)]))
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
    null = [float(np.mean([(sides["base"] - sides["tuned"])[:, place[n]].mean() for n in some])) for some in drawn]
    matched = [place[n] for some in drawn for n in some]
    rows += [
        ("matched (mean)", side, *_ends(bootstrap_mean(sides[side][:, matched].mean(axis=1), seed=context.seed)))
        for side in ("base", "tuned")
    ]
    frame = pd.DataFrame(rows, columns=["neuron", "side", "activation", "low", "high"])
    observed = float(np.mean([fall.value for fall in falls]))
    p = permutation_p(observed, null)
    fallen = sum(fall.low > 0 for fall in falls)
    verdict: Verdict = "holds" if fallen >= 4 and p < 0.05 else "fails" if observed <= 0 else "inconclusive"
    figure = figures.bars(
        "activations", frame, x="neuron", y="activation", colour="side", low="low", high="high", title="Mean activation while a challenge prompt is continued",
        x_title="neuron (layer.index)", y_title="activation after the nonlinearity", horizontal=False,
        caption="For toxic neurons the orange bar should be shorter than the blue one; for matched neurons both should be alike.",
    )  # fmt: skip
    pooled = bootstrap_mean((sides["base"] - sides["tuned"])[:, [place[n] for n in neurons]].mean(axis=1), seed=context.seed)
    readings = _readings(context, neurons, drawn[0])
    same = (readings[readings["neurons"] == "toxic"]["fall"] > 0).all()
    summary = (
        f"{fallen} of {TOP} toxic neurons are less active after tuning; the mean fall is {observed:.4f} (matched neurons {np.mean(null):.4f}, p = {p:.3f}), "
        f"from a mean of {sides['base'][:, [place[n] for n in neurons]].mean():.3f}. "
        + ("The mean falls whosever tokens are read." if same else "The sign of the mean depends on whose tokens are read (second table).")
    )
    return Finding(
        verdict, summary, {"mean fall": observed, "neurons that fell": fallen}, {"mean fall": float(np.mean(null))},
        {"mean fall": (pooled.low, pooled.high)}, {"activations": frame, "whose tokens are read": readings}, (figure,), {"forcing": "base", "matched_draws": draws},
    )  # fmt: skip


def _readings(context: ToxicityContext, neurons: list[Neuron], matched: list[Neuron]) -> pd.DataFrame:
    """The mean fall of the toxic neurons, and of one draw of matched ones, under each reading of the paper's figure."""
    rows = []
    for forcing in ("base", "tuned", "own"):
        for name, some in (("toxic", neurons), ("matched (null, one draw)", matched)):
            base, tuned = (mean_activations(context, model, some, forcing).mean(axis=1) for model in context.pair.sides.values())
            fall = bootstrap_difference(base, tuned, seed=context.seed)
            rows.append((forcing, name, float(base.mean()), float(tuned.mean()), fall.value, fall.low, fall.high))
    return pd.DataFrame(rows, columns=["tokens of", "neurons", "base", "tuned", "fall", "low", "high"])


def _ends(interval: object) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high  # type: ignore[attr-defined]
