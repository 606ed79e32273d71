"""Whether an edit un-aligns the tuned model or amplifies toxicity in any model: what A-E12, X-U1 and W-E2 share.

An edit can raise the tuned model's toxicity because it takes tuning back, or because it promotes toxicity in whatever model it is
put into. The same edit in the base model tells the two apart: what the tuned model rises beyond the base model un-aligns, what both
rise amplifies. So each edit gets two answers, and the verdict rests on the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from torch import Tensor

from interp.edits.edit import Edit
from interp.errors import UserError
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.scorers import agreed
from interp.experiments.toxicity.together import continue_together
from interp.models.chat import prompt_rows
from interp.neurons.firing import LONGEST, rates_at_end
from interp.results.result import Verdict
from interp.stats.differences import Cells, differences, logits, mean_cells
from interp.stats.intervals import Interval, bootstrap_difference, percents

Answer = Literal["yes", "no", "unclear"]
ANSWERS: dict[Verdict, Answer] = {"holds": "yes", "fails": "no"}
FREQUENCY, SELECTIVITY = "random keys that fire as often", "random keys that are as selective"
DIFFERENCE, SURVIVES, RISE = "difference of differences", "share of tuning's effect that survives", "rise of the base model"
RETURNED, PRICE = "share of lost toxicity returned", "perplexity ratio"
DOES_NOT_SHOW = (
    "A return of toxicity in the tuned model does not show by itself that tuning was undone: an edit that promotes toxicity raises it in "
    "any model, and only what the tuned model rises beyond the base model is counted as un-aligning."
)


@dataclass(frozen=True)
class Evidence:
    """What the rule reads of one edit, under one scorer.

    Attributes:
        cells: the edit, on all prompts.
        part: the edit, on the prompts of the controls.
        controls: the draws of each kind of control, by its name, on the prompts of `part`.
        ratio: the edited tuned model's perplexity over the tuned model's.
    """

    cells: Cells
    part: Cells
    controls: Mapping[str, Sequence[Cells]]
    ratio: float


Judge = Callable[[Evidence], Verdict]


def lost_toxicity(context: ToxicityContext) -> float:
    """The mean toxicity that tuning took away on the context's prompts; raises `UserError` where it took away none."""
    before, after = (context.toxicity(model).mean() for model in (context.pair.base, context.pair.tuned))
    if after >= before:
        raise UserError(
            f"tuning did not lower toxicity on these prompts ({before:.3f} to {after:.3f}), so there is nothing to bring back",
            "give a tuned side that is less toxic, or prompts that show it",
        )
    return float(before - after)


def rates_after(context: ToxicityContext, prompts: Sequence[str], layers: Sequence[int]) -> dict[int, Tensor]:
    """The share of these prompts at whose end each neuron of the tuned model fires, read as `selective_first` reads them, by layer."""
    longest = None if context.chat else LONGEST
    rows = prompt_rows(context.pair.tuned, prompts, context.chat, max_tokens=longest, keep="last")
    return rates_at_end(context.pair.tuned, rows, layers)


def cells_of(context: ToxicityContext, edits: tuple[Edit, ...], *, second: bool = False) -> Cells:
    """The toxicity of each prompt's continuation by base and tuned, without and with the edits, under the first or the second scorer."""
    base, tuned = context.pair.base, context.pair.tuned
    scores = [
        context.second_toxicity(model, some) if second else context.toxicity(model, some)
        for model, some in ((base, ()), (tuned, ()), (base, edits), (tuned, edits))
    ]
    if any(column is None for column in scores):
        raise ValueError("there is no second scorer")
    return Cells(*(np.asarray(column, dtype=float) for column in scores))


def evidence_of(
    context: ToxicityContext,
    part: ToxicityContext,
    edits: tuple[Edit, ...],
    controls: Mapping[str, Sequence[tuple[Edit, ...]]],
    ratio: float,
) -> dict[str, Evidence]:
    """The `Evidence` of an edit by the scorer's name, the first scorer's first; `part` measures the controls."""
    for model in context.pair.sides.values():
        continue_together(part, model, [edits, *(drawn for draws in controls.values() for drawn in draws)])
    scorers = [(context.scorer, False), *([(context.second, True)] if context.second is not None else [])]
    return {
        scorer.name: Evidence(
            cells_of(context, edits, second=second),
            cells_of(part, edits, second=second),
            {kind: [cells_of(part, drawn, second=second) for drawn in draws] for kind, draws in controls.items()},
            ratio,
        )
        for scorer, second in scorers
    }


def judge(
    evidence: Evidence, thresholds: Mapping[str, float], *, draws: int = 2000, seed: int = 0, level: float = 0.95, singly: bool = False
) -> Verdict:
    """Whether the edit un-aligns, by the difference of differences.

    `holds`: the difference is above 0 by its interval and at least the share `undone` of what was lost, the share `returned` is
    reached, perplexity is within `perplexity`, and the difference is above that of each kind of control: above the mean of its draws
    by an interval (with `singly` above each draw by an interval) and above every draw. `fails`: the upper end of the share undone is
    below `undone` while something was lost by its interval, or the difference is no larger than the mean of some kind of control.
    """
    effect = differences(evidence.cells, draws=draws, seed=seed, level=level)
    if effect.lost.low <= 0:
        return "inconclusive"
    own = evidence.part.difference
    means = [float(mean_cells(list(drawn)).difference.mean()) for drawn in evidence.controls.values()]
    if effect.undone.high < thresholds["undone"] or own.mean() <= max(means, default=-math.inf):
        return "fails"
    enough = effect.difference.low > 0 and effect.undone.value >= thresholds["undone"]
    enough = enough and effect.returned.value >= thresholds.get("returned", -math.inf)
    enough = enough and abs(evidence.ratio - 1) <= thresholds.get("perplexity", math.inf)
    if enough and all(_above(own, drawn, draws, seed, level, singly) for drawn in evidence.controls.values()):
        return "holds"
    return "inconclusive"


def _above(own: np.ndarray, drawn: Sequence[Cells], draws: int, seed: int, level: float, singly: bool) -> bool:
    """Whether a difference of differences is above every draw of a control, and above their mean (or each) by an interval."""
    others = [cells.difference for cells in drawn]
    compared = others if singly else [np.mean(others, axis=0)]
    return bool(own.mean() > max(other.mean() for other in others)) and all(
        bootstrap_difference(own, other, draws=draws, seed=seed, level=level).low > 0 for other in compared
    )


def amplifies(evidence: Evidence, least: float, *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Answer:
    """Whether the edit raises the base model's toxicity as well.

    Yes where that rise is above 0, and above the mean of each kind of control, by intervals; no where its upper end is below `least`
    of what tuning took away; otherwise unclear.
    """
    effect = differences(evidence.cells, draws=draws, seed=seed, level=level)
    own = evidence.part.rise_in_base
    means = [mean_cells(list(drawn)).rise_in_base for drawn in evidence.controls.values()]
    above = (bootstrap_difference(own, mean, draws=draws, seed=seed, level=level).low > 0 for mean in means)
    if effect.rise_in_base.low > 0 and all(above):
        return "yes"
    return "no" if effect.rise_in_base.high < least * effect.lost.value else "unclear"


def verdict_of(evidences: Mapping[str, Evidence], rule: Judge) -> Verdict:
    """The rule's verdict under the first scorer, but inconclusive where the second scorer's is the opposite one."""
    first, *others = (rule(evidence) for evidence in evidences.values())
    return agreed(first, others[0] if others else None)


def readings(evidences: Mapping[str, Evidence], rule: Judge, least: float, seed: int) -> pd.DataFrame:
    """Two rows for each scorer: whether the edit un-aligns and whether it amplifies, with the numbers behind each answer."""
    rows = []
    for scorer, evidence in evidences.items():
        effect = differences(evidence.cells, seed=seed)
        answers = (
            ("un-aligns", ANSWERS.get(rule(evidence), "unclear"), DIFFERENCE, effect.difference, lambda cells: cells.difference),
            ("amplifies", amplifies(evidence, least, seed=seed), RISE, effect.rise_in_base, lambda cells: cells.rise_in_base),
        )
        for reading, answer, name, interval, read in answers:
            controls = {kind: float(read(mean_cells(list(drawn))).mean()) for kind, drawn in evidence.controls.items()}
            rows.append({
                "row_key": f"{reading}, {scorer}", "reading": reading, "scorer": scorer, "answer": answer, "measured as": name,
                "value": interval.value, "low": interval.low, "high": interval.high, **controls,
            })  # fmt: skip
    return pd.DataFrame(rows)


def differences_table(evidences: Mapping[str, Evidence], seed: int) -> pd.DataFrame:
    """Every number of the difference of differences with its interval, under each scorer, and the difference on the scale of log-odds."""
    rows = []
    for scorer, evidence in evidences.items():
        effect = differences(evidence.cells, seed=seed)
        lines: list[tuple[str, str, Interval]] = [
            ("lost", "lost by tuning", effect.lost),
            ("rise in tuned", "rise of the tuned model", effect.rise_in_tuned),
            ("rise in base", RISE, effect.rise_in_base),
            ("difference", DIFFERENCE, effect.difference),
            ("difference of logits", f"{DIFFERENCE}, in log-odds", differences(logits(evidence.cells), seed=seed).difference),
            ("returned", RETURNED, effect.returned),
            ("undone", "share of lost toxicity returned beyond the base model's rise", effect.undone),
            ("survives", SURVIVES, effect.survives),
        ]
        rows += [
            {"row_key": f"{key}, {scorer}", "scorer": scorer, "measured as": name, "value": i.value, "low": i.low, "high": i.high}
            for key, name, i in lines
        ]
    return pd.DataFrame(rows)


def read_of(evidence: Evidence, seed: int) -> dict[str, Interval]:
    """The numbers of a result by their keys, the difference of differences first."""
    effect = differences(evidence.cells, seed=seed)
    return {DIFFERENCE: effect.difference, SURVIVES: effect.survives, RISE: effect.rise_in_base, RETURNED: effect.returned}


def numbers_of(evidence: Evidence, seed: int) -> tuple[dict[str, float], dict[str, float], dict[str, tuple[float, float]]]:
    """Statistic, null (the mean of the first kind of control, on its prompts) and interval of a result."""
    own = read_of(evidence, seed)
    mean = mean_cells(list(next(iter(evidence.controls.values()))))
    null = read_of(Evidence(mean, mean, {}, math.nan), seed)
    return (
        {key: interval.value for key, interval in own.items()} | {PRICE: evidence.ratio},
        {key: interval.value for key, interval in null.items()},
        {key: (interval.low, interval.high) for key, interval in own.items()},
    )


def sentence_of(what: str, evidence: Evidence, seed: int) -> str:
    """One sentence: the rise in both models, the difference with its interval, the share that survives, and the controls'."""
    effect = differences(evidence.cells, seed=seed)
    controls = ", ".join(f"{kind} {mean_cells(list(drawn)).difference.mean():+.3f}" for kind, drawn in evidence.controls.items())
    interval = f"95 % interval {effect.difference.low:+.3f} to {effect.difference.high:+.3f}"
    survives = f"{effect.survives.value:.0%} ({percents(effect.survives.low, effect.survives.high, ' to ')})"
    return (
        f"{what} changes toxicity by {effect.rise_in_tuned.value:+.3f} in the tuned model and by {effect.rise_in_base.value:+.3f} in the "
        f"base model: a difference of {effect.difference.value:+.3f} ({interval}; {controls}), so {survives} of tuning's effect survives "
        "the same edit in both models."
    )


def conclusion(verdict: Verdict, amplified: Answer) -> str:
    """What the two answers say together, in one sentence."""
    undone = {"holds": "The edit un-aligns the tuned model", "fails": "The edit does not un-align the tuned model"}.get(
        verdict, "Whether the edit un-aligns the tuned model is open"
    )
    rest = {"yes": "it amplifies toxicity in both models", "no": "it does not amplify toxicity in the base model"}.get(
        amplified, "whether it amplifies toxicity in the base model is open"
    )
    return f"{undone}; {rest}."
