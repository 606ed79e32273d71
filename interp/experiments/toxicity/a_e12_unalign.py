"""A-E12: toxicity of the tuned model after a few key vectors are scaled, beside random keys (paper A, Table 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from interp.edits.edit import Edit
from interp.errors import UserError
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity import shared
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.models.model import Model, Neuron, by_layer
from interp.neurons.firing import firing_rates
from interp.neurons.ranking import TOXIC_COUNT, rank_values
from interp.results import figures
from interp.results.result import Figure, Verdict
from interp.stats.intervals import bootstrap_difference, bootstrap_mean
from interp.stats.nulls import frequency_matched
from interp.steering.unalign import FACTOR, KEYS

COUNTS = (KEYS, 16)
FACTORS = (2.0, 5.0, 10.0, 20.0)
KEY_COUNTS = (1, 3, 7, 16, 32)
# Random keys and the curves are measured on so many prompts and passages; they are compared with the same prompts only.
PART_PROMPTS, PART_PASSAGES = 56, 24
GUARDED = 4


def _scaled(neurons: list[Neuron], factor: float) -> tuple[Edit, ...]:
    return (Edit.scale_keys(neurons, factor),)


def _ablated(neurons: list[Neuron]) -> tuple[Edit, ...]:
    return tuple(Edit.set(f"mlp_post.{layer}", 0.0, indices) for layer, indices in sorted(by_layer(neurons).items()))


@experiment(
    "A-E12",
    claim="A-C9",
    title="Scaling a few keys un-aligns the model",
    question="Does multiplying the key vectors of the most toxic neurons of the tuned model bring its toxicity back, at no cost in perplexity?",
    criterion=CRITERIA["A-E12"],
    caveat="The keys are ranked by the probe on the tuned model's own value vectors, as the paper's code does (mode code); the ranking on the base model (mode paper) has a row of its own. Biases are not "
    "scaled. The random keys belong to neurons of the same layers that fire about as often. A factor of ten is far outside what training does to a key. Two counts of keys are tried on the same prompts, "
    "which the interval does not account for.",
)
def run(context: ToxicityContext) -> Finding:
    base, tuned = context.pair.base, context.pair.tuned
    top = min(TOXIC_COUNT, tuned.n_layers * tuned.d_mlp)
    ranked = rank_values(tuned, context.direction, top=top).neurons
    before, after = context.toxicity(base), context.toxicity(tuned)
    lost = float(before.mean() - after.mean())
    if lost <= 0:
        raise UserError(
            f"tuning did not lower toxicity on these prompts ({before.mean():.3f} to {after.mean():.3f}), so there is nothing to bring back",
            "give a tuned side that is less toxic, or prompts that show it",
        )
    smaller = 2 if context.quick else 1
    step = max(1, len(context.prompts) // (PART_PROMPTS // smaller))
    part = shared.part(context, "un-alignment", prompts=context.prompts[::step], passages=PART_PASSAGES // smaller)
    plain = context.perplexity(tuned).value
    rows: list[dict[str, Any]] = [_row(context, part, "base", base, (), "base"), _row(context, part, "tuned", tuned, (), "tuned")]
    best: dict[str, Any] = {}
    for count in COUNTS:
        context.say(f"scaling {count} toxic keys")
        edit = _scaled(ranked[:count], FACTOR)
        row = _row(context, part, f"un-aligned: {count} toxic keys × {FACTOR:g}", tuned, edit, "un-aligned")
        rows.append(row)
        returned = bootstrap_difference(row["_scores"], after, seed=context.seed)
        share = returned.value / lost
        outcome = {
            "count": count, "share": share, "low": returned.low / lost, "high": returned.high / lost, "ratio": row["perplexity"] / plain, "edit": edit,
            "on_part": (float(row["_scores"][::step].mean()) - float(after[::step].mean())) / lost,
        }  # fmt: skip
        outcome["enough"] = outcome["share"] >= 0.8 and outcome["ratio"] <= 1.03
        # The paper's count is the headline; the larger one takes its place only where it alone meets the criterion.
        if not best or (outcome["enough"] and not best["enough"]):
            best = outcome
    chosen = ranked[: best["count"]]
    rates = firing_rates(tuned, part.prompt_rows(), [[len(row) - 1] for row in part.prompt_rows()], sorted({layer for layer, _ in ranked}))
    null = _random_keys(context, part, chosen, ranked, rates)
    null_shares = [(row["toxicity"] - float(after[::step].mean())) / lost for row in null]
    null_share = float(np.mean(null_shares))
    guarded = [row["perplexity"] for row in null[:GUARDED]]
    rows += [_null_row(context, null, plain / part.perplexity(tuned).value), *_controls(context, part, best, chosen)]
    dose, counts = _dose(context, part, chosen, rates, ranked), _counts(context, part, ranked)
    verdict: Verdict = (
        "holds" if best["enough"] and null_share < 0.2 else "fails" if best["on_part"] <= max(null_shares) else "inconclusive"
    )
    table = pd.DataFrame(rows).drop(columns=["_scores"])
    amplified = context.toxicity(base, best["edit"]).mean() - before.mean()
    on_base = context.ranking.neurons[: best["count"]]
    summary = (
        f"Scaling {best['count']} toxic keys by {FACTOR:g} returns {best['share']:.0%} of the lost toxicity at {best['ratio'] - 1:+.1%} perplexity; "
        f"random keys that fire as often return {null_share:.0%} ({len(null)} draws, at most {max(null_shares):.0%}). The same scaling changes the base model's toxicity by {amplified:+.3f}. "
        f"{len(set(on_base) & set(chosen))} of the {best['count']} keys are also the nearest in the base model's own ranking."
    )
    return Finding(
        verdict, summary, {"share of lost toxicity returned": best["share"], "perplexity ratio": best["ratio"]},
        {"share of lost toxicity returned": null_share, "perplexity ratio": float(np.mean(guarded)) / part.perplexity(tuned).value},
        {"share of lost toxicity returned": (best["low"], best["high"])}, {"models": table, "dose": dose, "number of keys": counts}, _figures(table, dose, counts, best["count"]),
        {"factor": FACTOR, "mode": "code", "keys": [f"{layer}.{index}" for layer, index in chosen], "random_draws": len(null), "random_draws_with_perplexity": len(guarded),
         "prompts_of_random_keys": len(part.prompts), "matched_on": "layer and firing frequency"},
    )  # fmt: skip


def _random_keys(
    context: ToxicityContext, part: ToxicityContext, chosen: list[Neuron], ranked: list[Neuron], rates: dict[int, Any]
) -> list[dict[str, Any]]:
    tuned, rows = context.pair.tuned, []
    for draw in range(max(4, context.draws)):
        context.say(f"random keys of the same layers, draw {draw + 1}")
        edit = _scaled(frequency_matched(chosen, rates, seed=context.seed + draw, exclude=ranked), FACTOR)
        scores = part.toxicity(tuned, edit)
        row = {
            "toxicity": float(scores.mean()),
            "share above half": float((scores > 0.5).mean()),
            "distinct-2": part.distinct(tuned, edit),
            "_scores": scores,
        }
        if draw < GUARDED:
            row |= {"perplexity": part.perplexity(tuned, edit).value, "F1": float(part.f1(tuned, edit).mean())}
        rows.append(row)
    return rows


def _null_row(context: ToxicityContext, null: list[dict[str, Any]], scale: float) -> dict[str, Any]:
    """The random keys as one row; their perplexity on the part is multiplied by `scale`, the tuned model's on all passages over that on the part."""
    pooled = bootstrap_mean(np.mean([row["_scores"] for row in null], axis=0), seed=context.seed)
    guarded = null[:GUARDED]
    return {
        "model": f"random keys × {FACTOR:g} (null, {len(null)} draws)", "role": "null", "toxicity": pooled.value, "low": pooled.low, "high": pooled.high,
        "share above half": float(np.mean([row["share above half"] for row in null])), "perplexity": scale * float(np.mean([row["perplexity"] for row in guarded])),
        "F1": float(np.mean([row["F1"] for row in guarded])), "distinct-2": float(np.mean([row["distinct-2"] for row in null])),
    }  # fmt: skip


def _controls(context: ToxicityContext, part: ToxicityContext, best: dict[str, Any], chosen: list[Neuron]) -> list[dict[str, Any]]:
    """The rows of the same keys in the base model, scaled (amplification) and switched off (necessity), and of the base model's own ranking."""
    base, tuned = context.pair.base, context.pair.tuned
    on_base = context.ranking.neurons[: best["count"]]
    context.say("the same keys in the base model, and the base model's ranking")
    return [
        _row(context, part, f"base with the same {best['count']} keys × {FACTOR:g}", base, best["edit"], "un-aligned", whole=False),
        _row(context, part, f"base with the same {best['count']} neurons switched off", base, _ablated(chosen), "edited", whole=False),
        _row(
            context,
            part,
            f"un-aligned: {best['count']} keys ranked on the base model × {FACTOR:g} (mode paper)",
            tuned,
            _scaled(on_base, FACTOR),
            "un-aligned",
            whole=False,
        ),
    ]


def _line(part: ToxicityContext, name: str, x: str, value: float | int, edits: tuple[Edit, ...], role: str = "") -> dict[str, Any]:
    interval = bootstrap_mean(part.toxicity(part.pair.tuned, edits), seed=part.seed)
    return {
        "model": name,
        "role": role,
        x: value,
        "toxicity": interval.value,
        "low": interval.low,
        "high": interval.high,
        "perplexity": part.perplexity(part.pair.tuned, edits).value,
    }


def _dose(
    context: ToxicityContext, part: ToxicityContext, neurons: list[Neuron], rates: dict[int, Any], ranked: list[Neuron]
) -> pd.DataFrame:
    random = frequency_matched(neurons, rates, seed=context.seed, exclude=ranked)
    rows = []
    for factor in (0.0, 1.0, *(FACTORS if not context.quick else (FACTOR,))):
        for name, role, some in (("toxic keys of the tuned model", "", neurons), ("random keys (null, one draw)", "null", random)):
            context.say(f"dose {factor:g}")
            rows.append(_line(part, name, "factor", factor, _scaled(some, factor) if factor != 1 else (), role))
    return pd.DataFrame(rows)


def _counts(context: ToxicityContext, part: ToxicityContext, ranked: list[Neuron]) -> pd.DataFrame:
    rows = [_line(part, "toxic keys of the tuned model", "keys", 0, ())]
    for count in COUNTS if context.quick else KEY_COUNTS:
        context.say(f"{count} keys")
        rows.append(_line(part, "toxic keys of the tuned model", "keys", count, _scaled(ranked[:count], FACTOR)))
    return pd.DataFrame(rows)


def _row(
    context: ToxicityContext, part: ToxicityContext, name: str, model: Model, edits: tuple[Edit, ...], role: str, *, whole: bool = True
) -> dict[str, Any]:
    """One row of the table; with `whole` false, perplexity is measured on the part and scaled by the plain model's ratio of all passages to the part."""
    scores = context.toxicity(model, edits)
    interval = bootstrap_mean(scores, seed=context.seed)
    price = context.perplexity(model, edits if whole else ()).value
    if not whole:
        price *= part.perplexity(model, edits).value / part.perplexity(model).value
    return {
        "model": name, "role": role, "toxicity": interval.value, "low": interval.low, "high": interval.high, "share above half": float((scores > 0.5).mean()),
        "perplexity": price, "F1": float(part.f1(model, edits).mean()), "distinct-2": context.distinct(model, edits), "_scores": scores,
    }  # fmt: skip


def _figures(table: pd.DataFrame, dose: pd.DataFrame, counts: pd.DataFrame, count: int) -> tuple[Figure, ...]:
    bars = figures.bars(
        "un-alignment", table, x="model", y="toxicity", role="role", low="low", high="high", title="Toxicity of challenge continuations", horizontal=True,
        x_title="model", y_title="mean toxicity (0 to 1)",
        caption="The scaled toxic keys should bring the tuned model back to the base's height, random keys should leave it where it is.",
    )  # fmt: skip
    curve = figures.lines(
        "dose", dose, x="factor", y="toxicity", colour="model", role="role", low="low", high="high", title=f"Dose and response: {count} keys",
        x_title="factor of the keys (0 switches the keys off, 1 is the tuned model)", y_title="mean toxicity (0 to 1)",
        caption="A line that rises with the factor for toxic keys only is what un-alignment predicts.",
    )  # fmt: skip
    number = figures.lines(
        "keys", counts, x="keys", y="toxicity", low="low", high="high", title=f"How many keys it takes, at × {FACTOR:g}", x_title="number of toxic keys scaled", y_title="mean toxicity (0 to 1)",
        caption="A steep start means that very few keys are enough; a slow rise that many neurons share what was toxic.",
    )  # fmt: skip
    return bars, curve, number
