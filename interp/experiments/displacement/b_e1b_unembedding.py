"""B-E1b: whether the unembeddings of a pair of one-token answers say which tokens gain when a model is tuned on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from interp.experiments.displacement.b_e1_single_token import pair_tokens
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.displacement.criteria import CRITERIA
from interp.experiments.displacement.single_token_rules import B_E1B, Ordered, judge_ordered, ordered
from interp.experiments.registry import Finding, experiment
from interp.preferences.unembedding import difference_of
from interp.results import figures
from interp.results.result import Figure
from interp.stats.repeats import repeats_mean

ORDER, BEYOND, LEAD = (
    "rank correlation with ⟨W_z, W+ − W−⟩",
    "the same beyond random pairs",
    "share of top gains, Theorem 5 minus squeezing",
)
COLUMNS = {
    "order": "rank correlation with ⟨W_z, W+ − W−⟩", "order_orthogonal": "with its orthogonal part", "order_squeezing": "with log-probability before",
    "order_random": "quantile of random pairs", "share": "top gains among Theorem 5's", "share_squeezing": "top gains among the most probable",
    "share_chance": "by chance", "argmax_first": "the argmax gains most", "entanglement": "entanglement",
}  # fmt: skip


@experiment(
    "B-E1b",
    claim="B-C2",
    title="The unembeddings of the two answers say where the probability goes",
    question="Do tokens gain in the order of their product with the difference of the two answers' unembeddings, and more so than the tokens that were most probable before?",
    criterion=CRITERIA["B-E1b"],
    caveat="Theorem 5 is about gradient flow with free hidden states and a free unembedding; here all weights are trained, the unembedding is tied to the embedding where the model ties them, and one step of SGD stands for the first moment. "
    "The paper's own test, that the part of W+ − W− orthogonal to W+ is longer than the part along it, follows for vectors of equal norm from a positive cosine, so it is shown and decides nothing. It was known that the rank correlation on another "
    "model is .14 to .18 when the criterion was fixed.",
    does_not_show="Where probability goes after the first step, nor which tokens gain with other optimizers.",
    reads="single-token",
    about="base",
)
def run(context: DisplacementContext) -> Finding:
    record = context.single_token()
    pairs = {pair["role"]: f"{pair['preferred']} over {pair['dispreferred']}" for pair in record["answers"]}
    steps = record["first_steps"]
    numbers = ordered(steps)
    geometry = geometry_table(context, record)
    table = first_steps_table(steps, pairs)
    parts = {ORDER: numbers.order, BEYOND: numbers.beyond, LEAD: numbers.lead}
    by_chance = float(pd.DataFrame(steps, columns=["order_random"])["order_random"].mean())
    return Finding(
        judge_ordered(numbers), _summary(numbers, table, geometry, by_chance), {name: part.value for name, part in parts.items()},
        {ORDER: by_chance, BEYOND: 0.0, LEAD: 0.0}, {name: (part.low, part.high) for name, part in parts.items()},
        {"first step": table, "geometry": geometry}, _figures(table, geometry),
        {"study": record["settings"], "interval": "Student's over seeds, each with a statement of its own", "null": f"the {B_E1B['tail']:.1%} quantile of random pairs of equal cosine"},
        sentence=_sentence(numbers, by_chance),
    )  # fmt: skip


def geometry_table(context: DisplacementContext, record: Mapping[str, Any]) -> pd.DataFrame:
    """Each pair's cosine, and its difference split along the preferred unembedding, beside what two vectors of equal norm would give."""
    rows = []
    for pair in record["answers"]:
        split = difference_of(context.pair.base.unembedding, *pair_tokens(pair))
        rows.append({
            "pair": f"{pair['preferred']} over {pair['dispreferred']}", "cosine": split.cosine, "cosine, mean subtracted": split.centred,
            "norm of preferred": split.preferred_norm, "norm of dispreferred": split.dispreferred_norm, "along": split.along,
            "orthogonal": split.orthogonal, "along / orthogonal": split.along / split.orthogonal, "expected of equal norms": split.expected,
        })  # fmt: skip
    return pd.DataFrame(rows)


def first_steps_table(steps: Sequence[Mapping[str, Any]], pairs: Mapping[str, str]) -> pd.DataFrame:
    """Means over seeds of what the first step shows, one row for each stage and pair."""
    rows = []
    for key, part in pd.DataFrame(steps, columns=["stage", "role", "seed", *COLUMNS]).groupby(["stage", "role"], sort=False):
        row = {"stage": key[0], "pair": pairs[key[1]], "seeds": len(part)}
        order = repeats_mean(part["order"].to_numpy())
        rows.append(
            row
            | {shown: float(part[name].astype(float).mean()) for name, shown in COLUMNS.items()}
            | {"low": order.low, "high": order.high}
        )
    return pd.DataFrame(rows, columns=["stage", "pair", "seeds", *COLUMNS.values(), "low", "high"])


def _summary(numbers: Ordered, table: pd.DataFrame, geometry: pd.DataFrame, by_chance: float) -> str:
    longer = int((geometry["orthogonal"] > geometry["along"]).sum())
    shares = table[[COLUMNS[name] for name in ("share", "share_squeezing", "share_chance")]].mean()
    return (
        f"At the first SGD step the rank correlation of the change of log-probability with ⟨W_z, W+ − W−⟩ is {numbers.order} over {numbers.order.n} seeds; random pairs of equal cosine reach {by_chance:.3g} in one of 40 "
        f"cases (beyond that: {numbers.beyond}). Of the 20 tokens that gain most probability {shares.iloc[0]:.1%} are among the 20 that Theorem 5 puts first, {shares.iloc[1]:.1%} among the 20 that were most probable before, and {shares.iloc[2]:.2%} would be "
        f"by chance (difference {numbers.lead}). The orthogonal part of W+ − W− is the longer one for {longer} of {len(geometry)} pairs, whose cosines are {', '.join(f'{value:.2f}' for value in geometry['cosine'])}."
    )  # fmt: skip


def _sentence(numbers: Ordered, by_chance: float) -> str:
    return (
        f"At the first step tokens gain in the order that Theorem 5 gives with a rank correlation of {numbers.order}, where random pairs of tokens reach {by_chance:.3g}; among the tokens that gain most probability the share that it names "
        f"minus the share that were most probable before is {numbers.lead}."
    )  # fmt: skip


def _figures(table: pd.DataFrame, geometry: pd.DataFrame) -> tuple[Figure, ...]:
    labelled = table.assign(case=table["pair"] + ", " + table["stage"])
    kinds = {"order": "Theorem 5", "order_squeezing": "squeezing", "order_random": "random pairs"}
    long = pd.concat([labelled[["case"]].assign(by=label, correlation=labelled[COLUMNS[name]]) for name, label in kinds.items()])
    split = geometry.melt(id_vars="pair", value_vars=["along", "orthogonal"], var_name="part", value_name="norm")
    return (
        figures.bars(
            "order of gains", long, x="case", y="correlation", colour="by", horizontal=True, title="What tells the order in which tokens gain?",
            x_title="pair, stage", y_title="rank correlation with the change of log-probability",
            caption="Theorem 5: the product with W+ − W−; squeezing: the log-probability before the step; random pairs: what one of 40 pairs of tokens of equal cosine reaches.",
        ),
        figures.bars(
            "difference split", split, x="pair", y="norm", colour="part", title="The difference of the unembeddings, along the preferred one and orthogonal to it",
            caption="For vectors of equal norm the orthogonal part is the longer one wherever the cosine is positive, so this alone says nothing about tuning.",
        ),
    )  # fmt: skip
