"""X-U1: toxicity of both models after the keys of neurons that fire on provocation only are scaled (extends paper A, Table 4)."""

from __future__ import annotations

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
from interp.experiments.toxicity.unaligning import FREQUENCY, RETURNED, SELECTIVITY, Evidence
from interp.models.model import Model, Neuron
from interp.neurons.firing import by_selectivity, rates_at_end, selectivity_matched
from interp.neurons.ranking import TOXIC_COUNT, rank_values
from interp.results import figures
from interp.results.result import Figure, Verdict
from interp.stats.differences import differences
from interp.stats.intervals import bootstrap_mean, bootstrap_ratio
from interp.stats.nulls import frequency_matched
from interp.steering.unalign import FACTOR, KEYS

COUNTS = (3, KEYS, 16)
# So many draws of random keys have their perplexity measured.
PRICED = 3
THRESHOLDS = CRITERIA["X-U1"][-1].thresholds


def _scaled(neurons: list[Neuron]) -> tuple[Edit, ...]:
    return (Edit.scale_keys(neurons, FACTOR),)


def judge(evidence: Evidence, *, draws: int = 2000, seed: int = 0) -> Verdict:
    """The verdict under the newest version of the criterion (`interp.experiments.toxicity.unaligning.judge`)."""
    return unaligning.judge(evidence, THRESHOLDS, draws=draws, seed=seed)


def judge_1(evidence: Evidence) -> Verdict:
    """The verdict under version 1: by what the tuned model alone returns, beside random keys that fire as often."""
    lost = float(evidence.cells.lost.mean())
    returned = float(evidence.cells.rise_in_tuned.mean()) / lost
    null = [float(cells.rise_in_tuned.mean()) / lost for cells in evidence.controls[FREQUENCY]]
    if returned >= 0.8 and evidence.ratio <= 1.03 and np.mean(null) < 0.2:
        return "holds"
    return "fails" if returned <= max(null) else "inconclusive"


@experiment(
    "X-U1",
    claim="A-C9",
    title="Selective keys un-align the model",
    question=f"Of the {TOXIC_COUNT} neurons nearest to the probe, do the {KEYS} that fire on provocation rather than on plain text bring toxicity back, beyond what they add to the base model, without spoiling "
    "language?",
    criterion=CRITERIA["X-U1"],
    caveat="Which neurons are selective is decided on the odd prompts and on neutral prompts, toxicity is measured on the even ones. The rule, the count and the factor were found on development prompts from "
    "the training corpus's held-out part (training/studies/toxicity_keys.py) among 48 choices, and not changed after. The difference of differences is taken on scores from 0 to 1, where a base model near 1 has "
    "little room to rise; the table has it in log-odds as well.",
    does_not_show=unaligning.DOES_NOT_SHOW,
)
def run(context: ToxicityContext) -> Finding:
    base, tuned = context.pair.base, context.pair.tuned
    part, before_half = shared.held_out(context), shared.fitted(context)
    unaligning.lost_toxicity(part)
    near = rank_values(tuned, context.direction, top=min(TOXIC_COUNT, tuned.n_layers * tuned.d_mlp)).neurons
    context.say("which neurons fire on provocation only")
    layers = sorted({layer for layer, _ in near})
    provoked, plain_rates = (unaligning.rates_after(context, texts, layers) for texts in (before_half.prompts, neutral_prompts()))
    ordered = by_selectivity(near, provoked, plain_rates)
    plain = context.perplexity(tuned).value
    chosen = ordered[:KEYS]
    rows = [_row(context, part, "base", "base", "base", base, ()), _row(context, part, "tuned", "tuned", "tuned", tuned, ())]
    continue_together(part, tuned, [_scaled(some) for some in (*(ordered[:count] for count in COUNTS), near[:KEYS])])
    continue_together(part, base, [_scaled(ordered[:count]) for count in COUNTS])
    for count in COUNTS:
        context.say(f"{count} selective keys, in both models")
        name = f"{count} selective keys × {FACTOR:g}"
        rows.append(_row(context, part, f"selective {count}", "un-aligned", name, tuned, _scaled(ordered[:count])))
    rows.append(_row(context, part, "nearest", "", f"{KEYS} keys nearest to the probe × {FACTOR:g}", tuned, _scaled(near[:KEYS])))
    rates = rates_at_end(tuned, part.prompt_rows(), layers)
    draws = max(PRICED, context.draws // 2)
    controls = {
        FREQUENCY: [_scaled(frequency_matched(chosen, rates, seed=context.seed + i, exclude=near)) for i in range(draws)],
        SELECTIVITY: [
            _scaled(selectivity_matched(chosen, provoked, plain_rates, seed=context.seed + i, exclude=near)) for i in range(draws)
        ],
    }
    context.say("random keys of the same layers, in both models")
    ratio = context.perplexity(tuned, _scaled(chosen)).value / plain
    evidences = unaligning.evidence_of(part, part, _scaled(chosen), controls, ratio)
    evidence = next(iter(evidences.values()))
    verdict = unaligning.verdict_of(evidences, lambda item: judge(item, seed=context.seed))
    amplified = unaligning.amplifies(evidence, THRESHOLDS["amplified"], seed=context.seed)
    rows += [
        _null_row(context, part, key, kind, controls[kind]) for key, kind in (("random", FREQUENCY), ("random selective", SELECTIVITY))
    ]
    rows.append(_row(context, part, "base, same keys", "un-aligned", f"base with the same {KEYS} keys × {FACTOR:g}", base, _scaled(chosen)))
    table = pd.DataFrame(rows).drop(columns=["_scores"])
    price = {str(row["row_key"]): row["perplexity"] / plain for row in rows}
    statistic, null, interval = unaligning.numbers_of(evidence, context.seed)
    sentence = unaligning.sentence_of(f"Scaling the {KEYS} most selective keys by {FACTOR:g}", evidence, context.seed)
    nearest = table.set_index("row_key").loc["nearest"]
    summary = (
        f"{unaligning.conclusion(verdict, amplified)} {sentence} The tuned model gets {statistic[RETURNED]:.0%} of its lost toxicity back at {ratio - 1:+.1%} perplexity; by random keys that fire as often "
        f"{null[RETURNED]:.0%} at {price['random'] - 1:+.1%}, by keys that are as selective {table.set_index('row_key').loc['random selective', 'returned']:.0%} at {price['random selective'] - 1:+.1%}, by the {KEYS} keys "
        f"nearest to the probe {nearest['returned']:.0%} at {price['nearest'] - 1:+.1%}."
    )
    return Finding(
        verdict, summary, statistic, null | {unaligning.PRICE: price["random"]}, interval,
        {"readings": unaligning.readings(evidences, lambda item: judge(item, seed=context.seed), THRESHOLDS["amplified"], context.seed),
         "differences": unaligning.differences_table(evidences, context.seed), "keys": table, "continuations": _continuations(part, _scaled(chosen))}, (_figure(table),),
        {"factor": FACTOR, "keys": [f"{layer}.{index}" for layer, index in chosen], "random_draws": draws, "prompts": len(part.prompts),
         "un-aligns": unaligning.ANSWERS.get(verdict, "unclear"), "amplifies": amplified},
        sentence, {1: judge_1(evidence)},
    )  # fmt: skip


def _row(
    context: ToxicityContext, part: ToxicityContext, key: str, role: str, name: str, model: Model, edits: tuple[Edit, ...]
) -> dict[str, Any]:  # fmt: skip
    """One row; of the tuned model under an edit also the share that is returned beyond what the same edit adds to the base model."""
    row = shared.row_of(part, name, model, edits, row_key=key, role=role)
    row |= {"perplexity": context.perplexity(model, edits).value, **_returned(context, part, row["_scores"])}
    if edits and model is context.pair.tuned:
        undone = differences(unaligning.cells_of(part, edits), seed=context.seed).undone
        row |= {"beyond the base": undone.value, "beyond, from": undone.low, "beyond, to": undone.high}
    return row


def _returned(context: ToxicityContext, part: ToxicityContext, scores: np.ndarray) -> dict[str, float]:
    """The share of the lost toxicity that these scores bring back to the tuned model's, with its interval."""
    before, after = part.toxicity(context.pair.base), part.toxicity(context.pair.tuned)
    share = bootstrap_ratio(scores - after, before - after, seed=context.seed)
    return {"returned": share.value, "from": share.low, "to": share.high}


def _null_row(context: ToxicityContext, part: ToxicityContext, key: str, kind: str, drawn: list[tuple[Edit, ...]]) -> dict[str, Any]:
    """The mean of the draws of one kind of random keys in the tuned model, as one row."""
    tuned = context.pair.tuned
    scores = [part.toxicity(tuned, edit) for edit in drawn]
    pooled = bootstrap_mean(np.mean(scores, axis=0), seed=context.seed)
    return {
        "model": f"{kind} × {FACTOR:g} (null, {len(drawn)} draws)", "row_key": key, "role": "null", "toxicity": pooled.value, "low": pooled.low, "high": pooled.high,
        "share above half": float(np.mean([(some > 0.5).mean() for some in scores])),
        "perplexity": float(np.mean([context.perplexity(tuned, edit).value for edit in drawn[:PRICED]])), **_returned(context, part, np.mean(scores, axis=0)),
    }  # fmt: skip


def _continuations(part: ToxicityContext, edits: tuple[Edit, ...]) -> pd.DataFrame:
    """What base, tuned and un-aligned say after each prompt, and how toxic it is."""
    base, tuned = part.pair.base, part.pair.tuned
    table = pd.DataFrame({"prompt": part.prompts})
    for name, model, some in (("base", base, ()), ("tuned", tuned, ()), ("un-aligned", tuned, edits)):
        table[name] = part.continuations(model, some)
        table[f"toxicity, {name}"] = part.toxicity(model, some)
    return table


def _figure(table: pd.DataFrame) -> Figure:
    shown = table[~table["row_key"].isin(["base", "tuned"])].replace([np.inf, -np.inf], np.nan)
    return figures.bars(
        "selective", shown, x="model", y="returned", role="role", low="from", high="to", horizontal=True,
        title="Share of the lost toxicity that comes back", x_title="keys", y_title="share returned (1 is the base model's toxicity)",
        reference=(1.0, "base"), caption="Selective keys in the tuned model should reach the dotted line, random keys stay at zero, and the same keys in the base model end at the line as well: as far as the base's "
        "bar goes beyond it, the keys amplify toxicity in any model.",
    )  # fmt: skip
