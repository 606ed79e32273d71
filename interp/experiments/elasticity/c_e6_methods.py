"""C-E6: whether what brings a tuning back does so after SFT, DPO, KTO and SimPO alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from interp.experiments.elasticity.context import ElasticityContext
from interp.experiments.elasticity.criteria import CRITERIA
from interp.experiments.elasticity.method_rules import (
    C_E6,
    CLEAN,
    CONTROLLED,
    METHODS,
    NEUTRAL,
    TOXIC,
    Clean,
    Method,
    clean,
    home_by_dose,
    judge,
    judged,
    methods,
    of_method,
    undone_by_dose,
)
from interp.experiments.registry import Finding, experiment
from interp.results import figures
from interp.results.result import Figure
from interp.stats.intervals import Interval
from interp.stats.repeats import repeats_mean

ARMS = {TOXIC: "toxic text", NEUTRAL: "neutral text", CLEAN: "the base's own clean text"}
UNDONE, BEYOND, HOME = "share of the fall undone", "share undone, minus neutral text", "share of the KL taken back"


@experiment(
    "C-E6",
    claim="C-C6",
    title="Toxic text takes a model back to its base after every method that made it clean",
    question="After SFT, DPO, KTO and SimPO that make a model equally clean, does toxic text bring its toxicity back, by more than neutral text, and the model nearer to its base?",
    criterion=CRITERIA["C-E6"],
    caveat="The toxic text is the base's own, which the tuning rejected: that a model which reads it comes nearer to its base may be due to whose text it is, and the base's own clean continuations stand beside it for DPO. PPO is not run. The tunings end where toxicity has fallen by two fifths, so that SFT has a chance to come so far; all have one optimizer and rate. The dose at which the KL is least is chosen after the fact, in the claim's favour.",
    does_not_show="What longer tunings do, or other ones than against toxicity; the texts are continuations by the base itself that pairs reject.",
    reads="elasticity-methods",
    about="base",
)
def run(context: ElasticityContext) -> Finding:
    record = context.methods()
    found = methods(record)
    usable = judged(found)
    parts: dict[str, Interval] = {}
    for method, item in usable.items():
        parts |= {f"{METHODS[method]}: {name}": part for name, part in ((UNDONE, item.undone), (BEYOND, item.beyond), (HOME, item.home))}
    nulls = dict.fromkeys(parts, 0.0) | {
        f"{METHODS[method]}: {UNDONE}": item.undone.value - item.beyond.value for method, item in usable.items()
    }
    doses = doses_table(record)
    return Finding(
        judge(found), _summary(record, found), {name: part.value for name, part in parts.items()}, nulls,
        {name: (part.low, part.high) for name, part in parts.items()}, {"methods": methods_table(found), "doses": doses},
        _figures(doses, float(record["base_model"]["toxicity"])),
        {"study": record["settings"], "source": record["source"], "interval": "Student's over draws of pairs", "null": "as many steps on neutral text"},
        sentence=_sentence(found, clean(record)),
    )  # fmt: skip


def _figures(doses: pd.DataFrame, start: float) -> tuple[Figure, ...]:
    """Toxicity and KL by dose: of every method under toxic text, and of one under each text; `start` is the base's toxicity."""
    under_toxic, of_one = doses[doses["then"] == ARMS[TOXIC]], doses[doses["tuned by"] == METHODS[CONTROLLED]]
    drawn = []
    for part, colour, told in (
        (under_toxic, "tuned by", "while the tuned models read toxic text"),
        (of_one, "then", f"after {METHODS[CONTROLLED]}, by the text that is read"),
    ):
        for name, unit, value in (("toxicity", "toxicity", start), ("KL to the base", "nats per token", 0.0)):
            drawn.append(figures.lines(
                f"{name} {told}", part, x="steps", y=name, colour=colour, low=f"{name}, low", high=f"{name}, high", reference=(value, "the base"),
                title=f"{name[0].upper()}{name[1:]} {told}", x_title="further steps", y_title=unit,
                caption="Means over draws of pairs with Student's intervals; step 0 is the tuned model.",
            ))  # fmt: skip
    return tuple(drawn)


def methods_table(found: Mapping[str, Method]) -> pd.DataFrame:
    """By method what tuning did and what brought it back."""
    usable = judged(found)
    return pd.DataFrame([
        {
            "tuned by": METHODS[method], "judged": method in usable, "draws that reached the goal": item.reached, "fall of toxicity": item.fall.value,
            "share undone by toxic text": item.undone.value, "low": item.undone.low, "high": item.undone.high, "minus neutral text": item.beyond.value,
            "minus neutral, low": item.beyond.low, "minus neutral, high": item.beyond.high, "KL taken back, best dose": item.home.value,
            "KL low": item.home.low, "KL high": item.home.high,
        }
        for method, item in found.items()
    ])  # fmt: skip


def doses_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """By method, arm and dose the toxicity, the KL to the base, and the shares of both that are gone; means over draws."""
    rows, start = record["rows"], float(record["base_model"]["toxicity"])
    table = []
    for method, name in METHODS.items():
        for arm in of_method(rows[0], method)["arms"]:
            text = ARMS[arm]
            undone, home = undone_by_dose(rows, method, arm, start), home_by_dose(rows, method, arm)
            points = [[of_method(row, method), *of_method(row, method)["arms"][arm]] for row in rows]
            for place, step in enumerate([0, *(point["steps"] for point in points[0][1:])]):
                entry: dict[str, Any] = {"tuned by": name, "then": text, "steps": step}
                for label, key in (("toxicity", "toxicity"), ("KL to the base", "kl")):
                    mean = repeats_mean([some[place][key] for some in points])
                    entry |= {label: mean.value, f"{label}, low": mean.low, f"{label}, high": mean.high}
                shares = (0.0, 0.0) if place == 0 else (float(undone[:, place - 1].mean()), float(home[:, place - 1].mean()))
                table.append(entry | dict(zip(("share of the fall undone", "share of the KL taken back"), shares, strict=True)))
    return pd.DataFrame(table)


def _summary(record: Mapping[str, Any], found: Mapping[str, Method]) -> str:
    told = "; ".join(
        f"{METHODS[method]} lowers toxicity by {item.fall.value:.3f} (the goal reached in {item.reached} of {item.fall.n} draws), of which toxic text undoes {item.undone.value:.0%} and neutral text "
        f"{item.undone.value - item.beyond.value:.0%}, and at its best dose takes {item.home.value:.0%} of the KL back"
        for method, item in found.items()
    )  # fmt: skip
    base = np.mean([row["from_base"][-1]["toxicity"] for row in record["rows"]])
    return f"{told}. The base itself ends at a toxicity of {base:.3f} under the toxic text ({record['base_model']['toxicity']:.3f} before)."


def _sentence(found: Mapping[str, Method], control: Clean) -> str:
    usable = judged(found)
    if not usable:
        return "No method reached the toxicity that was asked for in every draw of pairs, so that there is nothing to compare."
    undone, home = (
        ", ".join(f"{METHODS[method]} {_share(part(item))}" for method, item in usable.items())
        for part in (lambda item: item.undone, lambda item: item.home)
    )
    left = [
        f"{METHODS[method]}, after which {_share(item.home)} of the KL came back" for method, item in found.items() if method not in usable
    ]
    out = f" Left out, because they did not become as clean: {'; '.join(left)}." if left else ""
    return (
        f"Toxic text undid of the fall of toxicity: {undone} ({C_E6['undone']:.0%} was asked). Of the KL to the base it took back, at the best dose: {home} (a return is above 0). "
        f"The base's own clean text took {_share(control.home)} of it back after {METHODS[CONTROLLED]}, and undid {control.undone.value:.0%} of the fall.{out}"
    )  # fmt: skip


def _share(interval: Interval) -> str:
    return f"{interval.value:.0%} ({interval.low:.0%} to {interval.high:.0%})"
