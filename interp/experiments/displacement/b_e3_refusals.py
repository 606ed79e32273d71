"""B-E3: whether DPO on a model's own answers takes refusals away. What can be tested depends on how often the model refuses at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from interp.data.requests import Kind, requests
from interp.errors import UserError
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.displacement.criteria import CRITERIA
from interp.experiments.displacement.refusal_rules import ARMS, B_E3, BEFORE, KINDS, Refusals, decided_by, is_own, judge, share
from interp.experiments.displacement.refusal_rules import refusals as refusals_of
from interp.experiments.registry import Finding, experiment
from interp.forward.generate import generate
from interp.models.model import Model
from interp.preferences.text_level import refuses
from interp.results import figures
from interp.results.result import number
from interp.stats.intervals import Interval
from interp.stats.repeats import repeats_mean

RATE, BENIGN_RATE = "refusals of unsafe requests before training", "refusals of benign requests before training"
LOST, FILTERED = "change of refusals by DPO on all pairs", "refusals after lowest ln-CHES, minus random pairs"
OVER = "change of refusals of benign requests by DPO on lowest ln-CHES"
NEW_TOKENS = 32
# How a model without a chat template is asked.
PLAIN = "Human: {request}\n\nAssistant:"


@experiment(
    "B-E3",
    claim="B-C6",
    title="DPO for refusals takes refusals away",
    question="Does DPO on pairs of a model's own answers, the refusal preferred, make it refuse fewer unsafe requests, and does it keep them on the pairs of lowest ln-CHES?",
    criterion=CRITERIA["B-E3"],
    caveat="Refusals are told by how an answer begins. The claim is about models that are moderately aligned, so that it is first asked whether the model refuses at all.",
    does_not_show="Anything about a larger model that refuses most unsafe requests. The toy task's refusals are a few fixed sentences.",
    reads="refusals",
    about="base",
)
def run(context: DisplacementContext) -> Finding:
    base = context.pair.base
    measured: dict[Kind, Interval] = {kind: refusals(base, kind) for kind in KINDS}
    rate, benign = measured["unsafe"], measured["benign"]
    record = context.refusals()
    refuses_by_itself = rate.high >= B_E3["refuses"]
    if record is not None and is_own(record) == refuses_by_itself:
        return _of_study(record, measured)
    if refuses_by_itself:
        raise UserError(
            f"{base.name} refuses {rate.value:.0%} of the unsafe requests, and no study of its refusals was made",
            "python -m training.studies.refusals --model makes it of a chat model; name its folder with --logs",
        )
    sentence = (
        f"Not testable on this base model: it refuses {rate.value:.0%} of {rate.n:.0f} unsafe requests (95 % interval {rate.low:.0%} to {rate.high:.0%}) and {benign.value:.0%} of {benign.n:.0f} benign ones, so that tuning has "
        f"no refusals to take away; a model that refuses at least {B_E3['refuses']:.0%} is needed, or the toy task (python -m training.studies.refusals)."
    )  # fmt: skip
    table = pd.DataFrame([
        {"requests": kind, "refused": item.value, "low": item.low, "high": item.high, "number": item.n} for kind, item in measured.items()
    ])  # fmt: skip
    numbers = {RATE: rate, BENIGN_RATE: benign}
    return Finding(
        "not applicable", sentence, {name: item.value for name, item in numbers.items()}, dict.fromkeys(numbers, 0.0),
        {name: (item.low, item.high) for name, item in numbers.items()}, {"refusals": table}, (),
        {"new_tokens": NEW_TOKENS, "asked": "chat template" if base.tokenizer.chat_template else PLAIN, "interval": "Wilson's"},
        sentence=sentence,
    )  # fmt: skip


def _of_study(record: Mapping[str, Any], asked: Mapping[Kind, Interval]) -> Finding:
    """The finding on the toy task, or on a chat model as it is; `asked` is how often the base refuses by itself, by kind."""
    own = is_own(record)
    numbers = refusals_of(record, 1 if own else 3)
    verdict = judge(numbers)
    parts = {LOST: numbers.lost, FILTERED: numbers.filtered, OVER: numbers.over}
    table = arms_table(record)
    few = "Requests that no way of tuning reads; means over runs with Student's intervals. All ways but the first two read a fifth of the pairs."
    if not own:
        few = "The toy task; means over runs with Student's intervals. The last five ways read a tenth of the pairs."
    return Finding(
        verdict, _summary(record, numbers), {name: part.value for name, part in parts.items()}, dict.fromkeys(parts, 0.0),
        {name: (part.low, part.high) for name, part in parts.items()}, {"refusals": table, "pairs": pairs_table(record)},
        (figures.bars(
            "refusals by way of tuning", table, x="tuned on", y="unsafe, refused", low="low", high="high", reference=(float(table["unsafe, refused"].iloc[0]), "before"),
            title="Unsafe requests that are refused", x_title="", y_title="share refused", caption=few,
        ),),
        {"study": record["settings"], "interval": f"Student's over runs, each with {'answers' if own else 'an SFT'} of its own", "null": "random pairs, as many steps",
         "asked as it is": "; ".join(f"refuses {item.value:.0%} of {item.n:.0f} {kind} requests" for kind, item in asked.items())},
        # The versions differ in the toy task alone; a model that refuses by itself is judged as in the first.
        sentence=_sentence(numbers), earlier={1: verdict if own else "not applicable", 2: verdict if own else judge(refusals_of(record, 2))},
    )  # fmt: skip


def arms_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """By way of tuning: the shares that are refused by kind, means over runs, and the change of log π(chosen) over all pairs.

    The shares are of the requests that decide; of the toy task those of held-out requests stand beside them.
    """
    rows, own = record["rows"], is_own(record)
    table = []
    for arm in ARMS:
        some = [one for row in rows for one in row["arms"] if one["arm"] == arm]
        if not some:
            continue
        unsafe, benign = (repeats_mean([share(row, arm, requests) for row in rows]) for requests in decided_by(1 if own else 3))
        held_out = {f"{kind}, held out": float(np.mean([share(row, arm, f"{kind} held-out") for row in rows])) for kind in KINDS}
        moved = [number(one["chosen"]) for one in some if "chosen" in one and arm != BEFORE]
        table.append({
            "tuned on": arm, "unsafe, refused": unsafe.value, "low": unsafe.low, "high": unsafe.high, "benign, refused": benign.value,
            "benign low": benign.low, "benign high": benign.high, **({} if own else held_out),
            "log π(chosen), change": float(np.mean(moved)) if moved else None,
            "pairs": float(np.mean([one["pairs"] for one in some])), "steps": float(np.mean([one["steps"] for one in some])), "runs": unsafe.n,
        })  # fmt: skip
    return pd.DataFrame(table)


def pairs_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """By run: the pairs by type, and how often a pair of which one side refuses has a lower ln-CHES than another."""
    return pd.DataFrame([
        {"run": row["seed"], **row["types"], "mixed pairs are lower (AUC)": number(row["mixed_lower"]), "learning rate": row["rate"]} for row in record["rows"]
    ])  # fmt: skip


def _sentence(numbers: Refusals) -> str:
    if not numbers.is_testable:
        return (
            f"The study decides nothing: {numbers.before} of the unsafe and {numbers.before_benign} of the benign requests are refused before tuning, in {numbers.before.n} runs."
        )  # fmt: skip
    where = "The model refuses" if numbers.version == 1 else "On a toy task the model refuses"
    return (
        f"{where} {numbers.before.value:.0%} of the unsafe requests; DPO on its own answers, refusals preferred, changes that by {numbers.lost}, and the pairs of lowest ln-CHES leave {numbers.filtered} more refusals than random pairs with as many "
        f"steps (0 is no effect; benign requests {numbers.over})."
    )  # fmt: skip


def _summary(record: Mapping[str, Any], numbers: Refusals) -> str:
    table = arms_table(record).set_index("tuned on")
    shares = ", ".join(f"{arm} {row['unsafe, refused']:.0%} ({row['benign, refused']:.0%} of benign ones)" for arm, row in table.iterrows())
    auc = np.nanmean([number(row["mixed_lower"]) for row in record["rows"]])
    labelled = record.get("labelled") or {"agree": 0, "answers": 0}
    told = (
        f"The rule that tells refusals by their beginnings agrees with labels by hand on {labelled['agree']} of {labelled['answers']} of the model's answers."
        if numbers.version == 1 else f"At least {numbers.told_apart:.0%} of the answers begin in the fixed words."
    )  # fmt: skip
    return f"Unsafe requests that are refused: {shares}. A pair of which one side refuses has a lower ln-CHES than another with probability {auc:.2f}. {told}"


def refusals(model: Model, kind: Kind) -> Interval:
    """The share of greedy answers to the requests of a kind that begin as a refusal does, with Wilson's interval."""
    asked, chat = requests(kind), bool(model.tokenizer.chat_template)
    texts = generate(model, asked if chat else [PLAIN.format(request=text) for text in asked], max_new_tokens=NEW_TOKENS, chat=chat)
    count = sum(map(refuses, texts))
    ends = binomtest(count, len(texts)).proportion_ci(method="wilson")
    return Interval(count / len(texts), float(ends.low), float(ends.high), len(texts))
