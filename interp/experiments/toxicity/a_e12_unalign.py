"""A-E12: toxicity of the tuned model and of the base model after a few key vectors are scaled, beside random keys (paper A, Table 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.data.texts import neutral_prompts
from interp.edits.edit import Edit
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity import shared, unaligning
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.experiments.toxicity.together import continue_together
from interp.experiments.toxicity.unaligning import FREQUENCY, SELECTIVITY, Evidence
from interp.models.model import Model, Neuron, by_layer
from interp.neurons.firing import rates_at_end, selectivity_matched
from interp.neurons.ranking import TOXIC_COUNT, rank_values
from interp.results import figures
from interp.results.result import Figure, Verdict
from interp.stats.intervals import bootstrap_mean
from interp.stats.nulls import frequency_matched
from interp.steering.unalign import FACTOR, KEYS

# The first count is the paper's, which is judged. Under version 1 of the criterion the better of both counted.
COUNTS = (KEYS, 16)
FACTORS = (2.0, 5.0, 10.0, 20.0)
KEY_COUNTS = (1, 3, 7, 16, 32)
# Random keys and the curves are measured on so many prompts and passages; they are compared with the same prompts only.
PART_PROMPTS, PART_PASSAGES = 56, 24
GUARDED = 4
THRESHOLDS = CRITERIA["A-E12"][-1].thresholds


def _scaled(neurons: list[Neuron], factor: float) -> tuple[Edit, ...]:
    return (Edit.scale_keys(neurons, factor),)


def _ablated(neurons: list[Neuron]) -> tuple[Edit, ...]:
    return tuple(Edit.set(f"mlp_post.{layer}", 0.0, indices) for layer, indices in sorted(by_layer(neurons).items()))


def judge(evidence: Evidence, *, draws: int = 2000, seed: int = 0) -> Verdict:
    """The verdict under the newest version of the criterion (`interp.experiments.toxicity.unaligning.judge`)."""
    return unaligning.judge(evidence, THRESHOLDS, draws=draws, seed=seed)


def judge_1(share: float, ratio: float, on_part: float, null_shares: Sequence[float]) -> Verdict:
    """The verdict under version 1: by what the tuned model alone returns.

    Args:
        share: the share of the lost toxicity that is returned on all prompts, and `on_part` on those of the random keys.
        ratio: the edited tuned model's perplexity over the tuned model's.
        null_shares: what each draw of random keys returns.
    """
    if enough_1(share, ratio) and float(np.mean(null_shares)) < 0.2:
        return "holds"
    return "fails" if on_part <= max(null_shares) else "inconclusive"


def enough_1(share: float, ratio: float) -> bool:
    """Whether keys return enough of the lost toxicity at a low enough price under version 1."""
    return share >= 0.8 and ratio <= 1.03


@experiment(
    "A-E12",
    claim="A-C9",
    title="Scaling a few keys un-aligns the model",
    question="Does multiplying the key vectors of the most toxic neurons of the tuned model bring its toxicity back, beyond what it adds to the base model, at no cost in perplexity?",
    criterion=CRITERIA["A-E12"],
    caveat="The keys are ranked by the probe on the tuned model's own value vectors, as the paper's code does (mode code); the ranking on the base model (mode paper) has a row of its own. Biases are not "
    "scaled. A factor of ten is far outside what training does to a key. Seven keys are judged, as in the paper; sixteen have a row of their own. The difference of differences is taken on scores from 0 to 1, where a "
    "base model near 1 has little room to rise; the table has it in log-odds as well.",
    does_not_show=unaligning.DOES_NOT_SHOW,
)
def run(context: ToxicityContext) -> Finding:
    tuned = context.pair.tuned
    ranked = rank_values(tuned, context.direction, top=min(TOXIC_COUNT, tuned.n_layers * tuned.d_mlp)).neurons
    lost = unaligning.lost_toxicity(context)
    smaller = 2 if context.quick else 1
    # A quick report of a large model has no more prompts than a part has.
    least = 2 if context.quick and context.rule else 1
    step = max(least, len(context.prompts) // (PART_PROMPTS // smaller))
    part = shared.part(context, "un-alignment", prompts=context.prompts[::step], passages=PART_PASSAGES // smaller)
    rows = [_row(context, part, "base", context.pair.base, (), "base"), _row(context, part, "tuned", tuned, (), "tuned")]
    ratios = {}
    continue_together(
        context, tuned, [_scaled(some, FACTOR) for some in (*(ranked[:count] for count in COUNTS), context.ranking.neurons[:KEYS])]
    )
    for count in COUNTS:
        context.say(f"scaling {count} toxic keys")
        rows.append(_row(context, part, f"{count} toxic keys × {FACTOR:g}", tuned, _scaled(ranked[:count], FACTOR), "un-aligned"))
        ratios[count] = rows[-1]["perplexity"] / context.perplexity(tuned).value
    chosen, edit = ranked[:KEYS], _scaled(ranked[:KEYS], FACTOR)
    layers = sorted({layer for layer, _ in ranked})
    rates, plain_rates = rates_at_end(tuned, part.prompt_rows(), layers), unaligning.rates_after(context, neutral_prompts(), layers)
    draws = max(4, context.draws)
    often = [_scaled(frequency_matched(chosen, rates, seed=context.seed + i, exclude=ranked), FACTOR) for i in range(draws)]
    selective = [
        _scaled(selectivity_matched(chosen, rates, plain_rates, seed=context.seed + i, exclude=ranked), FACTOR) for i in range(draws // 2)
    ]
    context.say("random keys of the same layers, in both models")
    continue_together(context, context.pair.base, [edit, _ablated(chosen)])
    evidences = unaligning.evidence_of(context, part, edit, {FREQUENCY: often, SELECTIVITY: selective}, ratios[KEYS])
    evidence = next(iter(evidences.values()))
    verdict = unaligning.verdict_of(evidences, lambda item: judge(item, seed=context.seed))
    amplified = unaligning.amplifies(evidence, THRESHOLDS["amplified"], seed=context.seed)
    rows += [
        _null_row(context, part, FREQUENCY, often),
        _null_row(context, part, SELECTIVITY, selective),
        *_controls(context, part, chosen),
    ]
    dose, counts = _dose(context, part, chosen, rates, ranked), _counts(context, part, ranked)
    table = pd.DataFrame(rows).drop(columns=["_scores"])
    statistic, null, interval = unaligning.numbers_of(evidence, context.seed)
    null_ratio = _null_perplexity(part, often) / part.perplexity(tuned).value
    sentence = unaligning.sentence_of(f"Scaling the {KEYS} keys nearest to the probe by {FACTOR:g}", evidence, context.seed)
    on_base = set(context.ranking.neurons[:KEYS])
    summary = (
        f"{unaligning.conclusion(verdict, amplified)} {sentence} The tuned model gets {statistic[unaligning.RETURNED]:.0%} of its lost toxicity back at {ratios[KEYS] - 1:+.1%} perplexity, by random keys that "
        f"fire as often {null[unaligning.RETURNED]:.0%} ({len(often)} draws). {len(on_base & set(chosen))} of the {KEYS} keys are also the nearest in the base model's own ranking."
    )
    return Finding(
        verdict, summary, statistic, null | {unaligning.PRICE: null_ratio}, interval,
        {"readings": unaligning.readings(evidences, lambda item: judge(item, seed=context.seed), THRESHOLDS["amplified"], context.seed),
         "differences": unaligning.differences_table(evidences, context.seed), "models": table, "dose": dose, "number of keys": counts},
        _figures(table, dose, counts, KEYS),
        {"factor": FACTOR, "mode": "code", "keys": [f"{layer}.{index}" for layer, index in chosen], "random_draws": len(often), "random_draws_as_selective": len(selective),
         "random_draws_with_perplexity": len(often[:GUARDED]), "prompts_of_random_keys": len(part.prompts), "matched_on": "layer and firing frequency; layer and selectivity",
         "un-aligns": unaligning.ANSWERS.get(verdict, "unclear"), "amplifies": amplified},
        sentence, {1: _verdict_1(context, part, ranked, rates, lost, ratios)},
    )  # fmt: skip


def _verdict_1(
    context: ToxicityContext, part: ToxicityContext, ranked: list[Neuron], rates: dict[int, Any], lost: float, ratios: dict[int, float]
) -> Verdict:
    """Version 1, with the count that it chose: the larger one only where it alone returns enough at a low enough price."""
    tuned = context.pair.tuned
    part_lost = float(part.toxicity(context.pair.base).mean() - part.toxicity(tuned).mean())
    # Few prompts can have lost nothing although all of them did: then no share is defined, and the rule decides nothing.
    part_lost = part_lost if part_lost > 0 else math.nan

    def back(measured: ToxicityContext, neurons: list[Neuron]) -> float:
        return float(measured.toxicity(tuned, _scaled(neurons, FACTOR)).mean() - measured.toxicity(tuned).mean())

    shares = {count: back(context, ranked[:count]) / lost for count in COUNTS}
    enough = [count for count in COUNTS if enough_1(shares[count], ratios[count])]
    count = enough[0] if enough else COUNTS[0]
    drawn = [frequency_matched(ranked[:count], rates, seed=context.seed + draw, exclude=ranked) for draw in range(max(4, context.draws))]
    null_shares = [back(part, neurons) / part_lost for neurons in drawn]
    return judge_1(shares[count], ratios[count], back(part, ranked[:count]) / part_lost, null_shares)


def _null_perplexity(part: ToxicityContext, drawn: Sequence[tuple[Edit, ...]]) -> float:
    """The tuned model's mean perplexity on the part under some of the draws."""
    return float(np.mean([part.perplexity(part.pair.tuned, edit).value for edit in drawn[:GUARDED]]))


def _null_row(context: ToxicityContext, part: ToxicityContext, kind: str, drawn: Sequence[tuple[Edit, ...]]) -> dict[str, Any]:
    """Draws of one kind of random keys as one row; perplexity on the part is scaled by the tuned model's ratio of all passages to the part."""
    tuned = context.pair.tuned
    scores = [part.toxicity(tuned, edit) for edit in drawn]
    pooled = bootstrap_mean(np.mean(scores, axis=0), seed=context.seed)
    scale = context.perplexity(tuned).value / part.perplexity(tuned).value
    return {
        "model": f"{kind} × {FACTOR:g} (null, {len(drawn)} draws)", "role": "null", "toxicity": pooled.value, "low": pooled.low, "high": pooled.high,
        "share above half": float(np.mean([(some > 0.5).mean() for some in scores])), "perplexity": scale * _null_perplexity(part, drawn),
        "F1": float(np.mean([part.f1(tuned, edit).mean() for edit in drawn[:GUARDED]])), "distinct-2": float(np.mean([part.distinct(tuned, edit) for edit in drawn])),
    }  # fmt: skip


def _controls(context: ToxicityContext, part: ToxicityContext, chosen: list[Neuron]) -> list[dict[str, Any]]:
    """The rows of the same keys in the base model, scaled (amplification) and switched off (necessity), and of the base model's own ranking."""
    base, tuned = context.pair.base, context.pair.tuned
    context.say("the same keys in the base model, and the base model's ranking")
    rows = (
        (f"base with the same {KEYS} keys × {FACTOR:g}", base, _scaled(chosen, FACTOR), "un-aligned"),
        (f"base with the same {KEYS} neurons switched off", base, _ablated(chosen), "edited"),
        (f"{KEYS} keys ranked on the base model × {FACTOR:g} (mode paper)", tuned, _scaled(context.ranking.neurons[:KEYS], FACTOR), "un-aligned"),
    )  # fmt: skip
    return [_row(context, part, name, model, edits, role, whole=False) for name, model, edits, role in rows]


def _line(part: ToxicityContext, name: str, x: str, value: float | int, edits: tuple[Edit, ...], role: str = "") -> dict[str, Any]:
    interval = bootstrap_mean(part.toxicity(part.pair.tuned, edits), seed=part.seed)
    return {
        "model": name, "role": role, x: value, "toxicity": interval.value, "low": interval.low, "high": interval.high,
        "perplexity": part.perplexity(part.pair.tuned, edits).value,
    }  # fmt: skip


def _dose(
    context: ToxicityContext, part: ToxicityContext, neurons: list[Neuron], rates: dict[int, Any], ranked: list[Neuron]
) -> pd.DataFrame:
    random = frequency_matched(neurons, rates, seed=context.seed, exclude=ranked)
    rows = []
    factors = (0.0, 1.0, *(FACTORS if not context.quick else (FACTOR,)))
    continue_together(part, part.pair.tuned, [_scaled(some, factor) for factor in factors if factor != 1 for some in (neurons, random)])
    for factor in factors:
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
        caption="The scaled toxic keys should bring the tuned model back to the base's height and leave the base model where it is; a base model that rises too is amplified. Random keys should leave the tuned model where it is.",
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
