"""C-E8: whether the law of paper C's theory is so in models that are trained as its experiments train, and where it is so by identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.elasticity.mixture import mixture_rates, rate_slopes
from interp.experiments.elasticity.context import ElasticityContext
from interp.experiments.elasticity.criteria import CRITERIA
from interp.experiments.elasticity.theory_rules import ALIGNMENT, C_E8, PRETRAINING, Law, judge_law, law_of
from interp.experiments.registry import Finding, experiment
from interp.results import figures
from interp.results.result import Figure, number
from interp.stats.repeats import repeats_mean

MORE, SHORTER = "slope on log k, by more pre-training", "slope on log k, by shorter alignment"
JOINT = "slope on log k at the joint optimum"
DATA = ("like P", "like A", "third")
REGIMES = {"joint": "joint optimum", "sequential": "P, then A", "reversed": "A, then P"}
# Amounts of further data at which the ideal mixture is computed, beside 1 of A; 0 stands for the derivative.
AMOUNTS = (0.0, 0.01, 0.1, 0.3)
# Outcomes of each source of the ideal mixture, and the power of their masses.
OUTCOMES, POWER = {"like P": 20, "like A": 15, "third": 10}, 1.5
# Numbers of the study have five significant digits.
STORED = 1e-4


@experiment(
    "C-E8",
    claim="C-C1",
    title="The rate of the small set moves k times as fast",
    question="After a model is trained on a large set P and then on a small set A, does the loss on A move k times as far as that on P, k being the ratio of their sizes?",
    criterion=CRITERIA["C-E8"],
    caveat="The models are bigram models of eight outcomes. That the ratio falls with the number of alignment steps was seen on one such model in preparation (-17 after 1 step, -3.1 after 5, -0.09 after 50), and was known when the criterion was fixed; "
    "slopes on k were not.",
    does_not_show="What a large model does: it shows which of the paper's premises the law needs, and that training on one set after the other is not among them.",
    reads="elasticity-theory",
    about="base",
)
def run(context: ElasticityContext) -> Finding:
    record = context.theory()
    rows = record["rows"]
    law = law_of(rows)
    parts = {MORE: law.pretraining, SHORTER: law.alignment, JOINT: law.joint}
    ratios = ratios_table(rows)
    return Finding(
        judge_law(law), _summary(law, rows), {name: part.value for name, part in parts.items()}, {MORE: 0.0, SHORTER: 0.0, JOINT: 1.0},
        {name: (part.low, part.high) for name, part in parts.items()},
        {"ratios": ratios, "radius": radius_table(rows), "ideal mixture": mixture_table(record["settings"]["k"]), "retrained": retrained_table(rows),
         "contexts of their own": separate_table(rows)}, _figures(ratios),
        {"study": record["settings"], "interval": "Student's over seeds", "null": "a ratio that has nothing to do with k: slope 0"},
        sentence=_sentence(law),
    )  # fmt: skip


def ratios_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """By regime, way of varying k, k and further data: the median of dγ_A/dγ_P over seeds, with the lowest and the highest, and the residual."""
    table = []
    for regime, shown in REGIMES.items():
        cells = [cell for row in rows for cell in row[regime]]
        for varied, k in dict.fromkeys((cell.get("varied", ""), cell["k"]) for cell in cells):
            some = [cell for cell in cells if (cell.get("varied", ""), cell["k"]) == (varied, k)]
            for name in (*DATA, "random"):
                values = np.array([np.median([number(one) for one in _list(cell["ratios"][name])]) for cell in some])
                table.append({
                    "regime": shown, "k grows by": varied or "sizes", "k": k, "steps": " + ".join(map(str, some[0].get("steps", []))) or "to the optimum",
                    "further data": name, "ratio": float(np.median(values)), "low": float(values.min()), "high": float(values.max()),
                    "residual": float(np.median([number(cell["residual"]) for cell in some])), "seeds": len(some),
                })  # fmt: skip
    return pd.DataFrame(table)


def radius_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """By k the size of a random move of the parameters up to which the ratio at the joint optimum is -k to within a tenth."""
    table = []
    for place, k in enumerate(cell["k"] for cell in rows[0]["joint"]) if rows else ():
        values = np.array([number(row["joint"][place]["radius"]) for row in rows])
        middle = float(np.median(values))
        table.append({"k": k, "radius": middle, "low": float(values.min()), "high": float(values.max()), "radius times k": middle * k})
    return pd.DataFrame(table)


def mixture_table(ks: Sequence[int]) -> pd.DataFrame:
    """The ratio under the ideal mixture of disjoint sources by k, kind and amount of further data."""
    places = np.cumsum([0, *OUTCOMES.values()])
    parts: dict[str, np.ndarray] = {}
    for (name, count), place in zip(OUTCOMES.items(), places, strict=False):
        masses = np.zeros(places[-1])
        masses[place : place + count] = 1 / np.arange(1, count + 1) ** POWER
        parts[name] = masses / masses.sum()
    large, small = parts["like P"], parts["like A"]
    table = []
    for k in ks:
        for name, further in parts.items():
            before = mixture_rates(large, small, further, k, 0)
            entry: dict[str, Any] = {"k": k, "further data": name}
            for amount in AMOUNTS:
                after = mixture_rates(large, small, further, k, amount)
                finite = (
                    (after.small - before.small) / (after.large - before.large) if amount else rate_slopes(large, small, further, k).ratio
                )
                entry[f"ratio at {amount:g}" if amount else "ratio at once"] = float(finite)
            table.append(entry)
    return pd.DataFrame(table)


def retrained_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """By k and further data the median over seeds of the ratio of the changes where the joint model is fitted again."""
    cells = [cell for row in rows for cell in row["joint"]]
    return pd.DataFrame([
        {"k": k, "further data": name, "ratio": float(np.median([number(cell["retrained"][name]) for cell in cells if cell["k"] == k]))}
        for k in dict.fromkeys(cell["k"] for cell in cells) for name in DATA
    ])  # fmt: skip


def separate_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """By k the gradients at the optimum beside those at the start, and the ratio of finite changes, where contexts are not shared."""
    cells = [cell for row in rows for cell in row["separate"]]
    return pd.DataFrame([
        {"k": k, "gradients, share of the start's": float(np.median([number(cell["gradients"]) for cell in cells if cell["k"] == k])),
         "ratio of a move of 0.1": float(np.median([number(cell["ratio"]) for cell in cells if cell["k"] == k]))}
        for k in dict.fromkeys(cell["k"] for cell in cells)
    ])  # fmt: skip


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _at(rows: Sequence[Mapping[str, Any]], varied: str, k: int) -> str:
    values = [number(cell["ratios"]["like P"]) for row in rows for cell in row["sequential"] if (cell["varied"], cell["k"]) == (varied, k)]
    return f"{np.median(values):.3g}" if values else "unknown"


def _summary(law: Law, rows: Sequence[Mapping[str, Any]]) -> str:
    ks = [cell["k"] for cell in rows[0]["joint"]] if rows else []
    levels = "; ".join(f"by {varied} " + ", ".join(f"{_at(rows, varied, k)} (k {k})" for k in ks) for varied in (PRETRAINING, ALIGNMENT))
    backwards = repeats_mean([np.median([number(cell["residual"]) for cell in row["sequential"]]) for row in rows])
    return (
        f"At the joint optimum the slope is {law.joint.value:.3f}, in every seed within {max(law.joint_apart, STORED):.1g} of 1, by identity (residual at most {law.residual:.1g}). After training on P and then on A it is {law.pretraining} where k grows by more pre-training, and "
        f"{law.alignment} where it grows by shorter alignment (residual {backwards.value:.2g}). dγ_A/dγ_P under data like P, median over seeds: {levels}."
    )  # fmt: skip


def _sentence(law: Law) -> str:
    low, high = 1 - C_E8["slope"], 1 + C_E8["slope"]
    return (
        f"At the joint optimum |dγ_A/dγ_P| grows as k to the power {law.joint.value:.2f}, which is an identity; after training on one set and then on the other, as paper C trains, as k to the power {law.pretraining} by more pre-training and {law.alignment} by shorter "
        f"alignment over {law.pretraining.n} seeds ({low:g} to {high:g} would be the law; no relation is 0)."
    )  # fmt: skip


def _figures(ratios: pd.DataFrame) -> tuple[Figure, ...]:
    frame = ratios[ratios["further data"] == "like P"].assign(
        size=lambda part: part["ratio"].abs(), regime=lambda part: part["regime"] + ", by " + part["k grows by"]
    )
    if frame.empty:
        return ()
    law = pd.DataFrame({"regime": "the law: k", "k": sorted(frame["k"].unique()), "size": sorted(frame["k"].unique())})
    drawn = pd.concat([frame[["regime", "k", "size"]], law], ignore_index=True)
    return (figures.lines(
        "ratio by k", drawn, x="k", y="size", colour="regime", title="How much more the loss on A moves than that on P", x_title="k: size of P by that of A", y_title="|dγ_A/dγ_P|", log_x=True, log_y=True,
        caption="Under data like P; medians over seeds. Where the law holds a line runs along the diagonal.",
    ),)  # fmt: skip
