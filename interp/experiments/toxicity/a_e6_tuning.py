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
from interp.results.result import Figure, Verdict
from interp.runs.logs import controls_if_any, read_tuning_log
from interp.runs.telemetry import Telemetry

FALL, COST = 0.3, 1.10
DRAWN = ("loss", "logp", "margin", "kl", "toxicity", "perplexity")
TENTH = 0.1
MEASURED: tuple[str, ...] = ("toxicity", "toxicity_share", "perplexity", "margin", "logp_chosen", "logp_rejected")


@experiment(
    "A-E6",
    claim="A-C4",
    title="Preference tuning lowers toxicity at little cost",
    question="Does toxicity on development prompts fall during tuning, at little cost in perplexity, and by more than under shuffled labels?",
    criterion=CRITERIA["A-E6"],
    caveat="Read from the log of the run that made this pair; it was stopped by a rule on the same development prompts, so how far toxicity falls is set in part by that rule. One run is one seed: the seeds stand in A-E14. "
    "Log-probabilities are means over the training batches, which differ from step to step; those of the first and the last tenth of the steps are compared.",
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
    verdict: Verdict = (
        "fails" if fall < FALL or fall <= control or cost > COST
        else "inconclusive" if math.isnan(control) or math.isnan(cost)
        else "holds"
    )  # fmt: skip
    sides = _sides(records)
    beside = "no control run with shuffled labels was logged" if math.isnan(control) else f"under shuffled labels it falls by {control:.0%}"
    price = "perplexity was not logged" if math.isnan(cost) else f"perplexity changes by {cost - 1:+.1%}"
    summary = f"Over {records[-1]['step']} steps toxicity on development prompts falls by {fall:.0%} of what it was ({beside}), and {price}. {_displacement(sides)}"
    frame = pd.DataFrame(sides, columns=["quantity", "first steps", "last steps", "change", "standard error"])
    statistic = {"relative fall of toxicity": fall, "ratio of perplexities": cost} | {
        f"change of {row['quantity']}": row["change"] for row in sides
    }
    return Finding(
        verdict, summary, statistic, {"relative fall of toxicity": control, "ratio of perplexities": 1.0}, {}, {"sides": frame, "measurements": _measurements(records)},
        _figures(records, context.logs), {"toxicity_measured_as": toxic, "steps": records[-1]["step"], "control": "shuffled labels of equal steps"},
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
