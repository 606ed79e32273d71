"""B-E7: whether the neurons that paper A names carry the fall of rejected answers that paper B speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.displacement.criteria import CRITERIA
from interp.experiments.displacement.filtered_rules import (
    B_E7,
    EVERY,
    MATCHED,
    NAMED,
    NONE,
    Carried,
    carried,
    carried_share,
    judge_carried,
    rows_of,
)  # fmt: skip
from interp.experiments.registry import Finding, experiment
from interp.results import figures
from interp.stats.repeats import repeats_mean

SHARE, LEAD, CHANGE = "share that toxic neurons carry", "minus that of equally active neurons", "change of rejected answers, nats"
GROUPS = {NAMED: "toxic neurons", MATCHED: "equally active neurons (null)", EVERY: "all MLP neurons"}


@experiment(
    "B-E7",
    claim="B-C2",
    title="The neurons that paper A names carry the fall of rejected answers",
    question="Does the fall of rejected answers go through the neurons nearest to the toxicity probe, or would it be the same without their change?",
    criterion=CRITERIA["B-E7"],
    caveat="The claim is not in the papers: it asks of the answers that paper B looks at what paper A says of neurons. A neuron that keeps its activation of the base model still writes into a tuned residual stream. The toxic neurons are ranked by the base's own value vectors; those of the null have the same layers and mean activations "
    "while the base continues challenge prompts.",
    does_not_show="Which weights were tuned: an activation changes also where only what the neuron reads has changed.",
    reads="filtered-tuning",
    about="base",
)
def run(context: DisplacementContext) -> Finding:
    record = context.filtered_tuning()
    numbers = carried(record)
    parts = {SHARE: numbers.share, LEAD: numbers.lead, CHANGE: numbers.change}
    table = groups_table(record)
    return Finding(
        judge_carried(numbers), _summary(table), {name: part.value for name, part in parts.items()}, {SHARE: numbers.matched.value, LEAD: 0.0, CHANGE: 0.0},
        {name: (part.low, part.high) for name, part in parts.items()}, {"groups": table},
        (figures.bars(
            "share carried", table[table["answers"] == "rejected"], x="neurons that keep the base's activations", y="share", low="low", high="high",
            reference=(0.0, "as tuned"), title="What of the fall of held-out rejected answers goes through neurons", x_title="", y_title="share of the fall that is gone",
            caption="Means over draws of pairs with Student's intervals. 1: nothing of the fall is left.",
        ),),
        {"study": record["settings"], "source": record["source"], "interval": "Student's over draws of pairs", "null": "equally active neurons of the same layers"},
        sentence=_sentence(numbers, int(record["settings"]["neurons"])),
    )  # fmt: skip


def groups_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """By side of the pairs and group of neurons: the change by tuning in nats, and the share that is gone without the group's change.

    There is no share of a change that is within chance.
    """
    rows = rows_of(record)
    table = []
    for side in ("rejected", "chosen"):
        change = repeats_mean([row["neurons"][NONE][side] for row in rows])
        for group, name in GROUPS.items():
            known = change.excludes(0)
            share = repeats_mean([carried_share(row, group, side) if known else np.nan for row in rows])
            table.append({
                "answers": side, "neurons that keep the base's activations": name, "change by tuning, nats": change.value, "change low": change.low,
                "change high": change.high, "share": share.value, "low": share.low, "high": share.high, "draws": share.n,
            })  # fmt: skip
    return pd.DataFrame(table)


def _summary(table: pd.DataFrame) -> str:
    def line(side: str) -> str:
        some = table[table["answers"] == side]
        change, low, high = some[["change by tuning, nats", "change low", "change high"]].iloc[0]
        moved = f"{side} answers change by {change:.2f} ({low:.2f} to {high:.2f}) nats"
        if some["share"].isna().any():
            return f"{moved}, which is within chance"
        shares = ", ".join(
            f"{name} {share:.0%} ({low:.0%} to {high:.0%})"
            for name, share, low, high in some[["neurons that keep the base's activations", "share", "low", "high"]].itertuples(index=False)
        )
        return f"{moved}, of which is gone without the change of {shares}"

    return f"Held out, {line('rejected')}; {line('chosen')}."


def _sentence(numbers: Carried, count: int) -> str:
    end = "more than" if numbers.lead.low > 0 else "less than" if numbers.lead.high < 0 else "not clearly more than"
    return (
        f"When the {count} neurons nearest to the probe keep the base's activations, {numbers.share.value:.0%} ({numbers.share.low:.0%} to {numbers.share.high:.0%}) of the fall of held-out rejected answers is gone ({B_E7['share']:.0%} was asked), {end} with equally "
        f"active neurons (difference {numbers.lead})."
    )  # fmt: skip
