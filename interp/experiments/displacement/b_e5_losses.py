"""B-E5: whether DPO lowers held-out chosen answers, and which losses of preference tuning do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.displacement.criteria import CRITERIA
from interp.experiments.displacement.pair_rules import B_E5, Cured, at_end, cured, verdict_of
from interp.experiments.registry import Finding, experiment
from interp.results import figures
from interp.results.result import Figure
from interp.stats.repeats import repeats_mean

FALL, CURE = "fall of held-out chosen answers under DPO, nats per token", "DPO with an SFT term minus DPO, nats per token"
NAMES = {"dpo": "DPO", "ipo": "IPO", "dpo+sft": "DPO with an SFT term", "dpop": "DPOP", "cal-dpo": "Cal-DPO", "dpo-shift": "DPO-Shift"}
SIDES = {"chosen": "chosen", "rejected": "rejected", "margin": "margin"}


@experiment(
    "B-E5",
    claim="B-C1",
    title="DPO lowers chosen answers, and an SFT term keeps them up",
    question="Are held-out chosen answers less probable after DPO than before, and which losses, at the same steps, leave them where they were?",
    criterion=CRITERIA["B-E5"],
    caveat="All losses have one rate, the largest under which DPO's own loss falls; RMSprop takes the scale of a loss away. The constants of the other losses are their authors' or stand in the middle of their range, and none was tuned. "
    "Runs are of eight steps on a small model.",
    does_not_show="Which loss makes the best model: a loss that keeps chosen answers up may also teach less, which the margin beside it shows.",
    reads="preference-pairs",
    about="base",
)
def run(context: DisplacementContext) -> Finding:
    record = context.preference_pairs("losses")
    rows = record["losses"]
    numbers = cured(rows)
    parts = {FALL: numbers.fall.mean, CURE: numbers.cure.mean}
    curves = curves_table(rows)
    return Finding(
        verdict_of(numbers.parts, rows, B_E5), _summary(numbers, rows), {name: part.value for name, part in parts.items()},
        dict.fromkeys(parts, 0.0), {name: (part.low, part.high) for name, part in parts.items()},
        {"losses": losses_table(rows, record["base_model"]), "by source": sources_table(rows), "curves": curves}, _figures(curves),
        {"study": record["settings"], "sources": record["sources"], "interval": "Student's over runs (a source of pairs and a draw of them), and over the means of the sources"},
        earlier={1: verdict_of(numbers.parts, rows, B_E5, version=1)},
        sentence=_sentence(numbers),
    )  # fmt: skip


def names_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The losses that every run has, with their names in words."""
    return {loss: shown for loss, shown in NAMES.items() if all(loss in {item["loss"] for item in row["losses"]} for row in rows)}


def losses_table(rows: Sequence[Mapping[str, Any]], base: Mapping[str, float]) -> pd.DataFrame:
    """By loss the mean changes on held-out pairs at the end, their difference from DPO with its interval over runs, and behaviour."""
    table = []
    for loss, shown in names_of(rows).items():
        if not rows:
            continue
        change, beside = (
            repeats_mean([at_end(row, loss) - (at_end(row, "dpo") if paired else 0) for row in rows]) for paired in (False, True)
        )
        nats = {f"{name}, nats": float(np.mean([at_end(row, loss, name) for row in rows])) for name in SIDES}
        items = [next(item for item in row["losses"] if item["loss"] == loss) for row in rows]
        table.append({
            "loss": shown, "chosen, nats per token": change.value, "low": change.low, "high": change.high, **nats,
            "minus DPO, per token": beside.value, "minus DPO, low": beside.low, "minus DPO, high": beside.high,
            "toxicity minus the base's": float(np.mean([item["toxicity"] - base["toxicity"] for item in items])),
            "KL to the base": float(np.mean([item["kl"] for item in items])), "runs": len(rows),
        })  # fmt: skip
    return pd.DataFrame(table)


def sources_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """By source and loss the mean change of held-out chosen answers at the end, in nats per token."""
    flat = [{"source": row["source"], "loss": shown, "value": at_end(row, loss)} for row in rows for loss, shown in names_of(rows).items()]
    frame = pd.DataFrame(flat, columns=["source", "loss", "value"])
    return frame.pivot_table(index="loss", columns="source", values="value", sort=False).reset_index().rename_axis(columns=None)


def curves_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """By loss, side and step the mean change on held-out pairs in nats, with its interval over runs; step 0 is the start."""
    flat = [
        {"loss": shown, "side": SIDES[side], "step": step, "value": value}
        for row in rows for loss, shown in names_of(rows).items() for side in SIDES
        for step, value in [(0, 0.0), *((point["step"], point[side]) for item in row["losses"] if item["loss"] == loss for point in item["course"])]
    ]  # fmt: skip
    means = []
    for key, some in pd.DataFrame(flat, columns=["loss", "side", "step", "value"]).groupby(["loss", "side", "step"], sort=False):
        mean = repeats_mean(some["value"].to_numpy())
        row = dict(zip(("loss", "side", "step"), key, strict=True))
        means.append(row | {"change, nats": mean.value, "low": mean.low, "high": mean.high, "runs": mean.n})
    return pd.DataFrame(means, columns=["loss", "side", "step", "change, nats", "low", "high", "runs"])


def _summary(numbers: Cured, rows: Sequence[Mapping[str, Any]]) -> str:
    ends = (
        "; ".join(f"{shown} {np.mean([at_end(row, loss) for row in rows]):+.4f}" for loss, shown in names_of(rows).items())
        if rows
        else "no runs"
    )
    by_source = ", ".join(f"{name} {-value:+.4f}" for name, value in numbers.fall.by_source.items())
    return (
        f"Held-out chosen answers fall by {numbers.fall.mean} nats per token under DPO over {numbers.fall.mean.n} runs (change by source: {by_source}); with an SFT term they end {numbers.cure.mean} higher. Mean changes at the end, in nats per token: "
        f"{ends}."
    )  # fmt: skip


def _sentence(numbers: Cured) -> str:
    fall, cure = numbers.fall.mean, numbers.cure.mean
    moved = "fell" if fall.low > 0 else "rose" if fall.high < 0 else "neither clearly fell nor rose"
    return (
        f"Under DPO held-out chosen answers {moved} (change {-fall.value:.4g} [{-fall.high:.4g}, {-fall.low:.4g}] nats per token; none is 0); with an SFT term they ended higher by {cure} at equal steps."
    )  # fmt: skip


def _figures(curves: pd.DataFrame) -> tuple[Figure, ...]:
    drawn = []
    for side in ("chosen", "rejected"):
        part = curves[curves["side"] == side]
        if not part.empty:
            drawn.append(figures.lines(
                f"course {side}", part, x="step", y="change, nats", colour="loss", title=f"Held-out {side} answers under each loss", x_title="step",
                y_title=f"change of log π({side}), nats", reference=(0.0, "before training"), caption="Means over runs.",
            ))  # fmt: skip
    return tuple(drawn)
