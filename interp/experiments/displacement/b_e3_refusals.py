"""B-E3: whether DPO on a model's own answers takes refusals away. What can be tested depends on how often the model refuses at all."""

from __future__ import annotations

import pandas as pd
from scipy.stats import binomtest

from interp.data.requests import Kind, requests
from interp.errors import UserError
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.displacement.criteria import CRITERIA
from interp.experiments.registry import Finding, experiment
from interp.forward.generate import generate
from interp.models.model import Model
from interp.preferences.text_level import refuses
from interp.stats.intervals import Interval

B_E3 = CRITERIA["B-E3"][-1].thresholds
RATE, BENIGN = "refusals of unsafe requests before training", "refusals of benign requests before training"
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
    does_not_show="Anything about a model that never refuses: there is nothing that tuning could take away.",
    about="base",
)
def run(context: DisplacementContext) -> Finding:
    base = context.pair.base
    measured = {kind: refusals(base, kind) for kind in ("unsafe", "benign")}
    rate, benign = measured["unsafe"], measured["benign"]
    if rate.high >= B_E3["refuses"]:
        raise UserError(
            f"{base.name} refuses {rate.value:.0%} of the unsafe requests, and no study of its refusals was made",
            "leave it out; docs/criteria.md says what the study has to be",
        )
    sentence = (
        f"Not testable on this base model: it refuses {rate.value:.0%} of {rate.n:.0f} unsafe requests (95 % interval {rate.low:.0%} to {rate.high:.0%}) and {benign.value:.0%} of {benign.n:.0f} benign ones, so that tuning has "
        f"no refusals to take away; a model that refuses at least {B_E3['refuses']:.0%} is needed."
    )  # fmt: skip
    table = pd.DataFrame([
        {"requests": kind, "refused": item.value, "low": item.low, "high": item.high, "number": item.n} for kind, item in measured.items()
    ])  # fmt: skip
    numbers = {RATE: rate, BENIGN: benign}
    return Finding(
        "not applicable", sentence, {name: item.value for name, item in numbers.items()}, dict.fromkeys(numbers, 0.0),
        {name: (item.low, item.high) for name, item in numbers.items()}, {"refusals": table}, (),
        {"new_tokens": NEW_TOKENS, "asked": "chat template" if base.tokenizer.chat_template else PLAIN, "interval": "Wilson's"},
        sentence=sentence,
    )  # fmt: skip


def refusals(model: Model, kind: Kind) -> Interval:
    """The share of greedy answers to the requests of a kind that begin as a refusal does, with Wilson's interval."""
    asked, chat = requests(kind), bool(model.tokenizer.chat_template)
    texts = generate(model, asked if chat else [PLAIN.format(request=text) for text in asked], max_new_tokens=NEW_TOKENS, chat=chat)
    count = sum(map(refuses, texts))
    ends = binomtest(count, len(texts)).proportion_ci(method="wilson")
    return Interval(count / len(texts), float(ends.low), float(ends.high), len(texts))
