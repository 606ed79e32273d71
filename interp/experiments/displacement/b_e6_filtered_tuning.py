"""B-E6: what the filter by influence does to a tuning against toxicity, and to how easily it is undone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.displacement.criteria import CRITERIA
from interp.experiments.displacement.filtered_rules import (
    ALL,
    B_E6,
    INFLUENCE,
    KEYS,
    KL,
    NEUTRAL,
    RANDOM,
    TOXIC,
    TOXICITY,
    Filtered,
    beside_random,
    filtered,
    is_refuted,
    judge_filtered,
    of_arm,
    rows_of,
)  # fmt: skip
from interp.experiments.registry import Finding, experiment
from interp.results import figures
from interp.stats.intervals import Interval
from interp.stats.repeats import repeats_mean

NAMES = {
    ALL: "all pairs, twice the steps", INFLUENCE: "highest influence", "worst": "lowest influence", "ches": "lowest CHES", RANDOM: "random half",
}  # fmt: skip
MEASURES = {
    "toxicity": TOXICITY, "with toxic keys enlarged": KEYS, "after toxic text": (TOXIC, "toxicity"), "after neutral text": (NEUTRAL, "toxicity"),
    "KL to the base": KL, "KL after toxic text": (TOXIC, "kl"), "KL after neutral text": (NEUTRAL, "kl"),
    "held-out chosen, nats": ("held_out", "chosen"), "held-out margin, nats": ("held_out", "margin"),
}  # fmt: skip
DETOX, BACK, WITH_KEYS, DISTANCE = "toxicity", "toxicity after toxic text", "toxicity with toxic keys enlarged", "KL to the base"


@experiment(
    "B-E6",
    claim="B-C4",
    title="The pairs of high influence detoxify as well, and leave a model that is no easier to bring back",
    question="When a model is tuned against toxicity on the pairs of highest influence alone, is it as clean, as hard to bring back and nearer to its base than after a random half?",
    criterion=CRITERIA["B-E6"],
    caveat="The claim is not in the papers: it asks of paper B's filter what papers A and C ask of a tuning. Influence is computed once, on the base; halves have 27 steps, about a third of those of the pair that ships.",
    does_not_show="What the filter does on pairs that others made: these are the base's own continuations, all of one length. Further training is 16 steps in one optimizer at one rate.",
    reads="filtered-tuning",
    about="base",
)
def run(context: DisplacementContext) -> Finding:
    record = context.filtered_tuning()
    numbers = filtered(record)
    # What is refuted leads, where something is.
    parts = {DETOX: numbers.toxicity, BACK: numbers.back, WITH_KEYS: numbers.keys, DISTANCE: numbers.kl}
    parts = dict(sorted(parts.items(), key=lambda part: not is_refuted(part[1], 0.0 if part[0] == DISTANCE else B_E6["margin"])))
    table = arms_table(record)
    drawn = shown(record)
    return Finding(
        judge_filtered(numbers), _summary(record, numbers), {f"{name}, minus random halves": part.value for name, part in parts.items()},
        {f"{name}, minus random halves": 0.0 for name in parts}, {f"{name}, minus random halves": (part.low, part.high) for name, part in parts.items()},
        {"arms": table, "minus random halves": differences_table(record)},
        (figures.bars(
            "toxicity by arm", drawn, x="trained on", y="toxicity", colour="measured", low="low", high="high",
            reference=(float(record["base_model"]["toxicity"]), "base"), title="Toxicity of continuations after tuning, and after it is attacked",
            x_title="trained on", y_title="toxicity", caption="Means over draws of pairs with Student's intervals. The null that decides is the random half.",
        ),),
        {"study": record["settings"], "source": record["source"], "interval": "Student's over draws of pairs", "null": "random halves of as many steps"},
        sentence=_sentence(numbers),
    )  # fmt: skip


def arms_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """By arm the means over draws of everything that is measured; the base first."""
    rows, base = rows_of(record), record["base_model"]
    first = {
        "trained on": "nothing (base)",
        "toxicity": base["toxicity"],
        "with toxic keys enlarged": base["unaligned"],
        "KL to the base": 0.0,
    }
    table = [first]
    for arm, name in NAMES.items():
        values = {measure: float(np.mean([of_arm(row, arm, place) for row in rows])) for measure, place in MEASURES.items()}
        steps = next((item["steps"] for row in rows for item in row["arms"] if item["arm"] == arm), None)
        table.append({"trained on": name, "steps": steps, **values, "draws": len(rows)})
    return pd.DataFrame(table)


def differences_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """By arm and measure the difference from random halves, with its interval over draws."""
    rows = rows_of(record)
    table = []
    for arm in (arm for arm in NAMES if arm not in (ALL, RANDOM)):
        for measure, place in MEASURES.items():
            part = beside_random(rows, arm, place)
            table.append({"trained on": NAMES[arm], "measured": measure, "minus random": part.value, "low": part.low, "high": part.high})
    return pd.DataFrame(table)


def shown(record: Mapping[str, Any]) -> pd.DataFrame:
    """By arm and state of the model its toxicity, with the interval over draws."""
    table = []
    for arm, name in NAMES.items():
        for measure in ("toxicity", "with toxic keys enlarged", "after toxic text", "after neutral text"):
            mean = repeats_mean([of_arm(row, arm, MEASURES[measure]) for row in rows_of(record)])
            label = "directly after tuning" if measure == "toxicity" else measure
            if not np.isnan(mean.value):
                table.append({"trained on": name, "measured": label, "toxicity": mean.value, "low": mean.low, "high": mean.high})
    return pd.DataFrame(table)


def _summary(record: Mapping[str, Any], numbers: Filtered) -> str:
    table = arms_table(record).set_index("trained on")
    after = ", ".join(f"{name} {value:.3f}" for name, value in table["toxicity"].items())
    worst = beside_random(rows_of(record), "worst", TOXICITY)
    return (
        f"Toxicity of continuations: {after}. The half of highest influence minus random halves of as many steps: toxicity {numbers.toxicity}, after toxic text {numbers.back}, with toxic keys enlarged {numbers.keys}, KL to the base "
        f"{numbers.kl} nats. The half of lowest influence: toxicity {worst}. Random halves remove {numbers.removed.value:.0%} of the base's toxicity ({numbers.removed.n} draws)."
    )  # fmt: skip


def _sentence(numbers: Filtered) -> str:
    kl = numbers.kl
    moved = "moved less" if kl.high < 0 else "moved further" if kl.low > 0 else "moved neither clearly less nor further"
    return (
        f"Tuned on the pairs of highest influence, the model's continuations were {_compared(numbers.toxicity)} than after random halves of as many steps; after toxic text they were {_compared(numbers.back)}, with toxic keys "
        f"enlarged {_compared(numbers.keys)} (at most {B_E6['margin']:g} more was asked). It {moved} from its base (KL {kl} nats)."
    )  # fmt: skip


def _compared(difference: Interval) -> str:
    """A difference of toxicity in words, with its interval."""
    words = "less toxic" if difference.high < 0 else "more toxic" if difference.low > 0 else "neither clearly less nor more toxic"
    return f"{words} (difference {difference})"
