"""A-E5: toxicity, perplexity and length of the two sides of the preference pairs (paper A, section 4.1)."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.results import figures
from interp.results.result import Figure, Verdict
from interp.runs.logs import read_pairs_log

THRESHOLDS = CRITERIA["A-E5"][-1].thresholds
# The least difference in toxicity that holds under version 1 of the criterion, and the least that does not fail.
GAP, NO_GAP = 0.5, 0.1


def judge(apart: float, longer: float, second_gap: float = math.nan) -> Verdict:
    """The verdict on how far the two sides are apart.

    Args:
        apart, longer: the larger perplexity over the smaller one, and the same of mean lengths.
        second_gap: the difference in toxicity by a scorer that did not filter the pairs; NaN where it was not logged.
    """
    if apart > THRESHOLDS["far"] or longer > THRESHOLDS["far"] or second_gap < THRESHOLDS["no_gap"]:
        return "fails"
    alike = apart <= THRESHOLDS["close"] and longer <= THRESHOLDS["close"]
    return "holds" if alike and not second_gap < THRESHOLDS["gap"] else "inconclusive"


def judge_1(gap: float, apart: float, longer: float) -> Verdict:
    """The verdict under version 1 of the criterion; `gap` is the difference in toxicity by the scorer that filtered the pairs."""
    if gap < NO_GAP or apart > THRESHOLDS["far"] or longer > THRESHOLDS["far"]:
        return "fails"
    return "holds" if gap >= GAP and apart <= THRESHOLDS["close"] and longer <= THRESHOLDS["close"] else "inconclusive"


@experiment(
    "A-E5",
    claim="A-C4",
    about="base",
    title="The pairs do not differ in fluency or length",
    question="Are the two sides of the preference pairs, which are chosen to differ in toxicity, alike in how fluent and how long they are?",
    criterion=CRITERIA["A-E5"],
    caveat="Read from the manifest that the training chain wrote; nothing is measured again, and it holds means, so there is no interval. The pairs are filtered by their toxicity, so that the sides differ in it by "
    "construction under that scorer, which is usually the one that judges the tuned model. Where the generator used the probe, whatever the report then finds along the probe's direction is in part what was put there.",
    does_not_show="That the sides differ in toxicity is by construction: the pairs are filtered by the same scorer.",
    reads="logs",
)
def run(context: ToxicityContext) -> Finding:
    log = read_pairs_log(context.logs, context.pair)
    rows: list[dict[str, Any]] = [{"side": side, **{name: _number(log[side].get(name)) for name in ("toxicity", "share_above_half", "perplexity", "tokens", "distinct_2")}}
            for side in ("chosen", "rejected")]  # fmt: skip
    table = pd.DataFrame(rows)
    chosen, rejected = rows
    gap = rejected["toxicity"] - chosen["toxicity"]
    fluency, length = (rejected[name] / chosen[name] for name in ("perplexity", "tokens"))
    apart, longer = (max(ratio, 1 / ratio) for ratio in (fluency, length))
    second = log.get("second_scorer")
    second_gap = math.nan if second is None else float(log["rejected"]["second_toxicity"]) - float(log["chosen"]["second_toxicity"])
    verdict = judge(apart, longer, second_gap)
    options = {**log.get("settings", {}), **log.get("options", {})}
    filters = [f"chosen at most {options[name]}" if name == "chosen_at_most" else f"rejected at least {options[name]}"
               for name in ("chosen_at_most", "rejected_at_least") if name in options]  # fmt: skip
    constructed = (
        f"by construction, as the pairs are filtered by it ({', '.join(filters)})" if filters else "by the scorer that judged the pairs"
    )
    beside = "no second scorer was logged" if second is None else f"by {second} the difference is {second_gap:.2f}"
    generator, probed = str(log.get("generator", "best-worst")), bool(log.get("uses_probe", False))
    circular = (
        "it used the probe, so what the report finds along the probe's direction is in part circular"
        if probed
        else "it did not use the probe, so what the report finds along the probe's direction was not put there by the pairs"
    )
    summary = (
        f"{log['pairs']:,} pairs: the rejected side scores {rejected['toxicity']:.2f}, the chosen side {chosen['toxicity']:.2f}, {constructed}; {beside}. The rejected side's perplexity is {fluency:.2f} times and "
        f"its length {length:.2f} times the chosen side's. The generator was {generator}: {circular}."
    )
    statistic = {"ratio of perplexities": fluency, "ratio of lengths": length, "difference in toxicity": gap}
    null = {"ratio of perplexities": 1.0, "ratio of lengths": 1.0}
    if second is not None:
        statistic["difference in toxicity by the second scorer"], null["difference in toxicity by the second scorer"] = second_gap, 0.0
    sentence = (
        f"Over {log['pairs']:,} pairs the rejected side's perplexity is {fluency:.2f} times and its length {length:.2f} times the chosen side's (1 for sides that are alike; "
        f"means of the log, without an interval); its toxicity is {gap:.2f} higher {constructed}."
    )
    return Finding(
        verdict, summary, statistic, null, {}, _tables(table, log), (_figure(table),),
        {"generator": generator, "uses_probe": probed, "pair_scorer": str(log.get("scorer", "bundled")), "pairs": log["pairs"], "second_scorer": second or "not logged"},
        sentence=sentence, earlier={1: judge_1(gap, apart, longer)},
    )  # fmt: skip


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _tables(table: pd.DataFrame, log: dict[str, Any]) -> dict[str, pd.DataFrame]:
    tables = {"sides": table}
    lengths = [{"side": side, **dict(zip(("least", "quarter", "half", "three quarters", "most"), log[side]["tokens_quantiles"], strict=True))}
               for side in ("chosen", "rejected") if "tokens_quantiles" in log[side]]  # fmt: skip
    return tables | ({"lengths in tokens": pd.DataFrame(lengths)} if lengths else {})


def _figure(table: pd.DataFrame) -> Figure:
    return figures.bars(
        "sides", table, x="side", y="toxicity", title="Toxicity of the two sides of the pairs", x_title="side", y_title="mean toxicity (0 to 1)",
        caption="The rejected side should stand far above the chosen one; the table says whether it is also less fluent or longer.",
    )  # fmt: skip
