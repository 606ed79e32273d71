"""A-E13: gates and linear parts of a gated MLP before and after tuning, and toxicity after they are raised (paper A, Figure 6 and Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from interp.edits.edit import Edit
from interp.errors import UserError
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity import shared
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.experiments.toxicity.scorers import agreed, beside
from interp.experiments.toxicity.together import continue_together
from interp.models.model import Model, Neuron, by_layer
from interp.neurons.activations import forced_neurons
from interp.results import figures
from interp.results.result import Figure, Verdict
from interp.stats.intervals import Interval, bootstrap_difference, bootstrap_mean
from interp.stats.nulls import random_neurons

THRESHOLDS = CRITERIA["A-E13"][-1].thresholds
TOP = 8
# Two ways may each make the claim hold, so each has half of the 5 %.
LEVEL = 0.975
FACTOR = 3.0
PARTS = {"mlp_gate": "gate", "mlp_up": "linear part"}


@dataclass(frozen=True)
class Way:
    """What one way of raising the neurons does, under one scorer.

    Attributes:
        beyond_null: the rise of the tuned model's toxicity beyond the mean of the random draws.
        beyond_base: the same rise beyond that of the base model under the same edit.
        above_every: whether the tuned model is more toxic than under every random draw.
        cost: perplexity over the tuned model's.
    """

    beyond_null: Interval
    beyond_base: Interval
    above_every: bool
    cost: float

    @property
    def passes(self) -> bool:
        """Whether this way alone makes the claim hold."""
        return self.above_every and self.beyond_null.low > 0 and self.beyond_base.low > 0 and abs(self.cost - 1) < THRESHOLDS["cost"]

    @property
    def refuted(self) -> bool:
        """Whether it raises toxicity by next to nothing beyond random draws, or beyond what it does to the base model."""
        return min(self.beyond_null.high, self.beyond_base.high) < THRESHOLDS["margin"]


def judge(most_fall: bool, ways: Sequence[Way]) -> Verdict:
    """The verdict from whether both parts fall for most neurons, and what each way of raising them does."""
    if most_fall and any(way.passes for way in ways):
        return "holds"
    return "fails" if all(way.refuted for way in ways) else "inconclusive"


def part_means(context: ToxicityContext, model: Model, neurons: Sequence[Neuron], part: str) -> np.ndarray:
    """The gate or linear part of each neuron, averaged over the steps of the base model's continuation: `prompt neuron`."""
    values = forced_neurons(model, context.prompt_rows(), context.base_tokens(), neurons, part=part).values
    return values.mean(dim=1).numpy()


def _scores(context: ToxicityContext, number: int, model: Model, edits: Sequence[Edit] = ()) -> np.ndarray:
    """The toxicity of each prompt's continuation by the first (0) or the second scorer (1)."""
    second = context.second_toxicity(model, edits) if number else None
    return context.toxicity(model, edits) if second is None else second


def gates_open(neurons: Sequence[Neuron], value: float = 1.0) -> tuple[Edit, ...]:
    """Edits that fix the gates of these neurons at a value."""
    return tuple(Edit.set(f"mlp_gate.{layer}", value, indices) for layer, indices in sorted(by_layer(neurons).items()))


def linear_scaled(neurons: Sequence[Neuron], factor: float = FACTOR) -> tuple[Edit, ...]:
    """Edits that multiply the linear part of these neurons."""
    return tuple(Edit.scale(f"mlp_up.{layer}", factor, indices) for layer, indices in sorted(by_layer(neurons).items()))


@experiment(
    "A-E13",
    claim="A-C10",
    title="Gated models: gates opened bring toxicity back",
    question="In a gated MLP, do gate and linear part of the toxic neurons both fall with tuning, and does opening the gates or scaling the linear part bring toxicity back?",
    criterion=CRITERIA["A-E13"],
    caveat="Llama2 got back only 36 to 48 % of the drop in the paper. The paper edits the tuned model alone; here the base model takes the same edit. The linear part has a sign: where it is negative, a smaller size is a rise, so the fall of its mean is weak evidence.",
    does_not_show="A tuned model that becomes more toxic shows no undone tuning where the base model becomes as much more toxic under the same edit.",
)
def run(context: ToxicityContext) -> Finding:
    base, tuned = context.pair.base, context.pair.tuned
    if base.family != "glu":
        raise UserError(
            "this experiment needs a gated MLP, which these models do not have", "give a pair of Llama, Qwen, Mistral or Gemma models"
        )
    held_out = shared.held_out(context)
    neurons = context.ranking.neurons[:TOP]
    context.say("gates and linear parts of the toxic neurons")
    rows, fallen = [], {}
    for part, label in PARTS.items():
        sides = {name: part_means(held_out, model, neurons, part) for name, model in context.pair.sides.items()}
        fallen[label] = int((sides["tuned"].mean(axis=0) < sides["base"].mean(axis=0)).sum())
        for at, (layer, index) in enumerate(neurons):
            for side, values in sides.items():
                interval = bootstrap_mean(values[:, at], seed=context.seed)
                rows.append(
                    {
                        "neuron": f"{layer}.{index}",
                        "part": label,
                        "side": side,
                        "mean": interval.value,
                        "low": interval.low,
                        "high": interval.high,
                    }
                )
    parts = pd.DataFrame(rows)
    table: list[dict[str, Any]] = [
        shared.row_of(held_out, "base", base, role="base"),
        shared.row_of(held_out, "tuned (DPO)", tuned, role="tuned"),
    ]
    after, plain = held_out.toxicity(tuned), table[1]["perplexity"]
    drawn = [
        random_neurons(tuned, neurons, seed=context.seed + i, exclude=context.ranking.neurons)
        for i in range(3 if context.quick else max(4, context.draws // 2))
    ]
    raised, nulls, ends, passed, above = {}, {}, {}, [], []
    judged: dict[str, tuple[Model, Sequence[Edit]]] = {"base": (base, ()), "tuned": (tuned, ())}
    ways: list[list[Way]] = [[] for _ in range(1 if held_out.second is None else 2)]
    continue_together(held_out, base, [gates_open(neurons), linear_scaled(neurons)])
    for name, make in (("gates set to 1", gates_open), (f"linear part × {FACTOR:g}", linear_scaled)):
        context.say(name)
        continue_together(held_out, tuned, [make(some) for some in (neurons, *drawn)])
        judged[f"tuned, {name}"] = (tuned, make(neurons))
        row = shared.row_of(held_out, f"tuned: {len(neurons)} toxic neurons, {name}", tuned, make(neurons), role="un-aligned")
        amplified = shared.row_of(held_out, f"base: the same neurons, {name}", base, make(neurons), role="null")
        null = [held_out.toxicity(tuned, make(some)) for some in drawn]
        pooled = bootstrap_mean(np.mean(null, axis=0), seed=context.seed)
        table += [row, amplified, {
            "model": f"random neurons, {name} (null, {len(drawn)} draws)", "role": "null", "toxicity": pooled.value, "low": pooled.low, "high": pooled.high,
            "share above half": float(np.mean([(scores > 0.5).mean() for scores in null])), "perplexity": held_out.perplexity(tuned, make(drawn[0])).value,
        }]  # fmt: skip
        cost = row["perplexity"] / plain
        for number, some_ways in enumerate(ways):
            score = partial(_scores, held_out, number)
            edited, unedited, random = score(tuned, make(neurons)), score(tuned), [score(tuned, make(some)) for some in drawn]
            some_ways.append(Way(
                bootstrap_difference(edited, np.mean(random, axis=0), seed=context.seed, level=LEVEL),
                bootstrap_difference(edited - unedited, score(base, make(neurons)) - score(base), seed=context.seed, level=LEVEL),
                bool(edited.mean() > max(float(scores.mean()) for scores in random)), cost,
            ))  # fmt: skip
        rise = bootstrap_difference(row["_scores"], after, seed=context.seed)
        label = f"rise of toxicity, {name}"
        raised[label], nulls[label], ends[label] = rise.value, pooled.value - float(after.mean()), (rise.low, rise.high)
        passed.append(rise.low > 0 and row["toxicity"] > max(float(scores.mean()) for scores in null) and abs(cost - 1) < 0.02)
        above.append(rise.value > nulls[label])
        over = ways[0][-1].beyond_base
        label = f"rise beyond the base model's, {name}"
        raised[label], nulls[label], ends[label] = over.value, 0.0, (over.low, over.high)
    most = all(count > len(neurons) / 2 for count in fallen.values())
    first: Verdict = "holds" if most and any(passed) else "fails" if not any(above) else "inconclusive"
    by_scorer = [judge(most, some) for some in ways]
    verdict = agreed(by_scorer[0], by_scorer[1] if len(by_scorer) > 1 else None)
    shown = pd.DataFrame(table).drop(columns=["_scores"])
    bars = figures.bars(
        "glu-toxicity", shown, x="model", y="toxicity", role="role", low="low", high="high", title="Toxicity of challenge continuations", x_title="model", y_title="mean toxicity (0 to 1)", horizontal=True,
        caption="Opened gates or a scaled linear part should lift the tuned model towards the base; random neurons should not.",
    )  # fmt: skip
    gate = _part_figure(parts, "gate", "gate after its nonlinearity")
    linear = _part_figure(parts, "linear part", "linear part, before it is gated")
    summary = (
        f"Gates fall for {fallen['gate']} and linear parts for {fallen['linear part']} of {len(neurons)} toxic neurons. "
        + " ".join(f"{label.capitalize()}: {value:+.3f} [{ends[label][0]:+.3f}, {ends[label][1]:+.3f}] (null {nulls[label]:+.3f})." for label, value in raised.items())
        + f" By scorer the verdicts are {', '.join(by_scorer)}."
    )  # fmt: skip
    rises = [
        f"{label} {value:+.3f} [{ends[label][0]:+.3f}, {ends[label][1]:+.3f}] (null {nulls[label]:+.3f})" for label, value in raised.items()
    ]
    sentence = f"In the tuned model: {'; '.join(rises)}; gates fall for {fallen['gate']} and linear parts for {fallen['linear part']} of {len(neurons)} neurons."
    return Finding(
        verdict,
        summary,
        raised,
        nulls,
        ends,
        {
            "models": shown,
            "parts": parts,
            "second scorer": beside(held_out, judged),
        },
        (bars, gate, linear),
        {"neurons": [f"{a}.{b}" for a, b in neurons], "draws": len(drawn)},
        sentence=sentence,
        earlier={1: first},
    )


def _part_figure(parts: pd.DataFrame, part: str, title: str) -> Figure:
    return figures.bars(
        f"glu-{part.split()[0]}", parts[parts["part"] == part], x="neuron", y="mean", colour="side", low="low", high="high", title=f"Mean {part} of the toxic neurons",
        x_title="neuron (layer.index)", y_title=title, horizontal=False, caption="The tuned model's bar should be lower than the base model's for most neurons.",
    )  # fmt: skip
