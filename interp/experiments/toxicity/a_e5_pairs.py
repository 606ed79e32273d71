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

GAP, NO_GAP = 0.5, 0.1
FLUENCY, BROKEN = 1.25, 2.0
LENGTH, OTHER_LENGTH = 1.25, 2.0


@experiment(
    "A-E5",
    claim="A-C4",
    about="base",
    title="The pairs differ in toxicity and not in fluency",
    question="Do the two sides of the preference pairs differ in how toxic they are, and not in how fluent or how long they are?",
    criterion=CRITERIA["A-E5"],
    caveat="Read from the manifest that the training chain wrote; nothing is measured again, and it holds means, so there is no interval. The scorer that judged the pairs is usually the one that judges the tuned "
    "model. Where the generator used the probe, whatever the report then finds along the probe's direction is in part what was put there.",
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
    verdict: Verdict = (
        "fails" if gap < NO_GAP or apart > BROKEN or longer > OTHER_LENGTH
        else "holds" if gap >= GAP and apart <= FLUENCY and longer <= LENGTH
        else "inconclusive"
    )  # fmt: skip
    generator, probed = str(log.get("generator", "best-worst")), bool(log.get("uses_probe", False))
    circular = (
        "it used the probe, so what the report finds along the probe's direction is in part circular"
        if probed
        else "it did not use the probe, so what the report finds along the probe's direction was not put there by the pairs"
    )
    summary = (
        f"{log['pairs']:,} pairs: the rejected side scores {rejected['toxicity']:.2f}, the chosen side {chosen['toxicity']:.2f}; the rejected side's perplexity is {fluency:.2f} times and "
        f"its length {length:.2f} times the chosen side's. The generator was {generator}: {circular}."
    )
    return Finding(
        verdict, summary, {"difference in toxicity": gap, "ratio of perplexities": fluency, "ratio of lengths": length},
        {"difference in toxicity": 0.0, "ratio of perplexities": 1.0, "ratio of lengths": 1.0}, {}, _tables(table, log), (_figure(table),),
        {"generator": generator, "uses_probe": probed, "pair_scorer": str(log.get("scorer", "bundled")), "pairs": log["pairs"]},
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
