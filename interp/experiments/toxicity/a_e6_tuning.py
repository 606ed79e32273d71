"""A-E6: the fall of toxicity during tuning and its cost in perplexity, beside a run on shuffled labels (paper A, section 4.2 and Table 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from interp.errors import UserError
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.experiments.toxicity.scorers import agreed, beside
from interp.results.result import Figure, Verdict
from interp.runs.logs import controls_if_any, read_tuning_log
from interp.runs.telemetry import Telemetry
from interp.stats.intervals import Interval, bootstrap_ratio, percents

THRESHOLDS = CRITERIA["A-E6"][-1].thresholds
DRAWN = ("loss", "logp", "margin", "kl", "toxicity", "perplexity")
TENTH = 0.1
MEASURED: tuple[str, ...] = ("toxicity", "toxicity_share", "perplexity", "margin", "logp_chosen", "logp_rejected")


def judge(fall: Interval | None, beyond: tuple[float, float], cost: float) -> Verdict:
    """The verdict on a tuning run.

    Args:
        fall: how far toxicity on the report's prompts falls, over what it was; None where there is none to begin with.
        beyond: the 95 % interval of how much more it falls than in the control with shuffled labels; NaN where that was not logged.
        cost: perplexity after over before; NaN where it was not logged.
    """
    if cost > 1 + THRESHOLDS["cost"] or beyond[1] < THRESHOLDS["margin"] or (fall is not None and fall.high < THRESHOLDS["fall"]):
        return "fails"
    if fall is None or math.isnan(cost) or math.isnan(beyond[0]):
        return "inconclusive"
    return "holds" if fall.low >= THRESHOLDS["fall"] and beyond[0] > 0 else "inconclusive"


def judge_1(fall: float, control: float, cost: float) -> Verdict:
    """The verdict under version 1 of the criterion, from the log's development prompts, on which the run was stopped."""
    if fall < THRESHOLDS["fall"] or fall <= control or cost > 1 + THRESHOLDS["cost"]:
        return "fails"
    return "inconclusive" if math.isnan(control) or math.isnan(cost) else "holds"


def report_falls(context: ToxicityContext) -> list[Interval | None]:
    """The relative fall of toxicity on the report's prompts, under the first scorer and, if there is one, the second.

    None where the base model's continuations are not toxic at all.
    """
    base, tuned = context.pair.base, context.pair.tuned
    sides = [(context.toxicity(base), context.toxicity(tuned)), (context.second_toxicity(base), context.second_toxicity(tuned))]
    return [
        bootstrap_ratio(before - after, before, seed=context.seed) if before.any() else None
        for before, after in sides
        if before is not None and after is not None
    ]


def beyond_control(fall: Interval | None, table: dict[str, Any] | None) -> tuple[float, float, float]:
    """How much more toxicity falls than in the logged run of shuffled labels: the control's relative fall, and both ends of the difference.

    The control's scores of single prompts are not logged, so the two intervals are joined as of independent runs, which is too wide
    rather than too narrow. NaN where it was not logged.
    """
    row = next((row for row in (table or {}).get("runs", []) if row.get("labels") == "shuffled"), None)
    start = (table or {}).get("base_model", {}).get("toxicity")
    if fall is None or row is None or not start or row.get("toxicity") is None:
        return math.nan, math.nan, math.nan
    control = 1 - row["toxicity"] / start
    half = math.hypot((fall.high - fall.low) / 2, (row["toxicity_high"] - row["toxicity_low"]) / 2 / start)
    return control, fall.value - control - half, fall.value - control + half


@experiment(
    "A-E6",
    claim="A-C4",
    title="Preference tuning lowers toxicity at little cost",
    question="Does toxicity fall with tuning, on prompts that did not stop the run, at little cost in perplexity, and by more than under shuffled labels?",
    criterion=CRITERIA["A-E6"],
    caveat="The course is read from the log of the run that made this pair. The run was stopped by a rule on its development prompts, so how far toxicity falls there is by construction, and the verdict rests on the report's prompts. "
    "One scorer made the pairs, stopped the run and measures; a second one stands beside it. One run is one seed: the seeds stand in A-E14. "
    "Log-probabilities are means over the training batches, which differ from step to step; those of the first and the last tenth of the steps are compared.",
    does_not_show="A fall on development prompts shows nothing, since it stopped the run, and one run is no evidence on other seeds.",
    reads="logs",
)
def run(context: ToxicityContext) -> Finding:
    records = read_tuning_log(context.logs, context.pair)
    toxic = next((field for field in ("toxicity", "toxicity_share") if len(_values(records, field)) > 1), None)
    if toxic is None:
        raise UserError(
            "the log of the tuning holds no toxicity at two steps", "run the stage dpo again, with evaluate_every in its recipe"
        )
    fall = _fall(_values(records, toxic))
    fluency = list(_values(records, "perplexity").values())
    cost = fluency[-1] / fluency[0] if len(fluency) > 1 else math.nan
    table = controls_if_any(context.logs, context.pair)
    control = next((_control_fall(row, toxic) for row in (table or {}).get("runs", []) if row.get("labels") == "shuffled"), math.nan)
    falls = report_falls(context)
    control_here, *ends = beyond_control(falls[0], table)
    by_scorer = [judge(measured, (ends[0], ends[1]), cost) for measured in falls]
    verdict = agreed(by_scorer[0], by_scorer[1] if len(by_scorer) > 1 else None)
    sides = _sides(records)
    controlled = (
        "no control run with shuffled labels was logged" if math.isnan(control) else f"under shuffled labels it falls by {control:.0%}"
    )
    price = "perplexity was not logged" if math.isnan(cost) else f"perplexity changes by {cost - 1:+.1%}"
    summary = f"Over {records[-1]['step']} steps toxicity on development prompts falls by {fall:.0%} of what it was ({controlled}), and {price}. {_displacement(sides)}"
    frame = pd.DataFrame(sides, columns=["quantity", "first steps", "last steps", "change", "standard error"])
    here = falls[0]
    on_report = (
        "On the report's prompts nothing is toxic to begin with."
        if here is None
        else f"On the report's prompts, which did not stop the run, toxicity falls by {_with_ends(here)} of what it was, "
        + (
            "with no control logged"
            if math.isnan(control_here)
            else f"under shuffled labels by {control_here:.0%} (difference {here.value - control_here:.0%} [{ends[0]:.0%}, {ends[1]:.0%}])"
        )
        + ("" if len(falls) < 2 or falls[1] is None else f"; by the second scorer it falls by {_with_ends(falls[1])}")
        + "."
    )
    summary += f" {on_report} By scorer the verdicts are {', '.join(by_scorer)}."
    sentence = f"{on_report[:-1]}, and {price}."
    statistic = {
        "relative fall on the report's prompts": here.value if here else math.nan,
        "relative fall of toxicity": fall,
        "ratio of perplexities": cost,
    } | {f"change of {row['quantity']}": row["change"] for row in sides}
    return Finding(
        verdict, summary, statistic, {"relative fall on the report's prompts": control_here, "relative fall of toxicity": control, "ratio of perplexities": 1.0},
        {"relative fall on the report's prompts": (here.low, here.high)} if here else {}, {"second scorer": beside(context, {"base": (context.pair.base, ()), "tuned": (context.pair.tuned, ())}), "sides": frame, "measurements": _measurements(records)},
        _figures(records, context.logs), {"toxicity_measured_as": toxic, "steps": records[-1]["step"], "control": "shuffled labels of equal steps"},
        sentence=sentence, earlier={1: judge_1(fall, control, cost)},
    )  # fmt: skip


def _values(records: list[dict[str, Any]], field: str) -> dict[int, float]:
    """The values of a field by step, where it was measured."""
    return {record["step"]: float(record[field]) for record in records if record.get(field) is not None}


def _fall(values: Mapping[int, float]) -> float:
    first, *_, last = values.values()
    return (first - last) / first if first > 0 else 0.0


def _control_fall(row: dict[str, Any], toxic: str) -> float:
    before, after = row.get(f"development_{toxic}_before"), row.get(f"development_{toxic}_after")
    return math.nan if not before or after is None else (before - after) / before


def _with_ends(fall: Interval) -> str:
    """A fall with its interval in percent; so few prompts may be toxic that draws have none, and the interval has no end."""
    if not (math.isfinite(fall.low) and math.isfinite(fall.high)):
        return f"{fall.value:.0%} (too few toxic prompts for an interval)"
    return f"{fall.value:.0%} [{percents(fall.low, fall.high)}]"


def _sides(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Log-probability of each side and margin, as means over the first and the last tenth of the steps that logged them."""
    rows = []
    for field, name in (
        ("logp_chosen", "log-probability of chosen"),
        ("logp_rejected", "log-probability of rejected"),
        ("margin", "margin"),
    ):
        values = pd.Series(list(_values(records, field).values()), dtype=float)
        if len(values) < 2:
            continue
        many = max(1, round(TENTH * len(values)))
        ends = values.head(many), values.tail(many)
        first, last = (float(end.mean()) for end in ends)
        error = math.sqrt(sum(float(end.var()) for end in ends) / many) if many > 1 else math.nan
        rows.append({"quantity": name, "first steps": first, "last steps": last, "change": last - first, "standard error": error})
    return rows


def _displacement(sides: list[dict[str, Any]]) -> str:
    by_quantity = {row["quantity"]: row for row in sides}
    chosen, rejected = (by_quantity.get(f"log-probability of {side}") for side in ("chosen", "rejected"))
    if chosen is None or rejected is None:
        return "Log-probabilities of the two sides were not logged."
    # Batches of other pairs differ in log-probability by themselves, without any training.
    if not abs(chosen["change"]) > 2 * chosen["standard error"]:
        word = "changes by no more than batches differ, so the log does not tell whether likelihood was displaced"
    else:
        word = "falls too, which is likelihood displacement" if chosen["change"] < 0 else "does not fall, so likelihood is not displaced"
    return f"The chosen side's log-probability {word} ({chosen['change']:+.1f} ± {chosen['standard error']:.1f} nats; rejected {rejected['change']:+.1f} ± {rejected['standard error']:.1f})."


def _measurements(records: list[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for record in records:
        measured = {field: record[field] for field in MEASURED if field in record}
        if "kl" in record:
            measured["mean KL"] = sum(record["kl"]) / len(record["kl"])
        if "toxicity" in record or "toxicity_share" in record:
            rows.append({"step": record["step"], **measured})
    return pd.DataFrame(rows)


def _figures(records: list[dict[str, Any]], source: Path) -> tuple[Figure, ...]:
    log = Telemetry(tuple({"stage": "dpo", **record} for record in records), source)
    return tuple(log.figure(measure) for measure in DRAWN if measure in log.measures)
