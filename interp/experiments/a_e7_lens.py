"""A-E7: at which half layer does the toxic word appear, and what is left of it after tuning? (paper A, Figure 1)"""

from __future__ import annotations

import numpy as np
import pandas as pd

from interp import figures
from interp.errors import UserError
from interp.experiments.registry import Context, Finding, experiment
from interp.lens import logit_lens
from interp.lexicon import is_toxic_word
from interp.nulls import perturbed
from interp.results import Verdict
from interp.stats import bootstrap_difference, bootstrap_means

LEAST_PROMPTS = 10


@experiment(
    "A-E7",
    claim="A-C6",
    title="The toxic word rises late, and less after tuning",
    question="On prompts that the base model continues with a toxic word, where in the stack does its probability rise, in both models?",
    criterion="Holds if the word's final probability falls, by more than under random weight changes of equal norm, with an interval that excludes 0, "
    "and the MLP steps raise it more than the attention steps in the base model; fails if it does not fall more than under random changes; otherwise inconclusive.",
    refuted_by="A random change of the weights of equal norm that lowers the word as much: the prompts are chosen by what the base model says, "
    "so any change moves them away from it.",
    caveat="The lens reads intermediate states with the last layer's unembedding, which early layers are not made for; low values there do not show absence. The random change is a single draw.",
)
def run(context: Context) -> Finding:
    base, tuned = context.pair.base, context.pair.tuned
    chosen = [
        (row, more[0])
        for row, more in zip(context.prompt_rows(), context.base_tokens(), strict=True)
        if is_toxic_word(base.tokenizer.decode([more[0]]))
    ]
    if len(chosen) < LEAST_PROMPTS:
        raise UserError(
            f"the base model continues only {len(chosen)} of {len(context.prompts)} prompts with a word of the list, {LEAST_PROMPTS} are needed",
            "give prompts that this model continues with toxic words",
        )
    rows, tokens = [row for row, _ in chosen], [token for _, token in chosen]
    context.say("logit lens of base, tuned and a random change of equal norm")
    models = {"base": base, "tuned": tuned, "random change of equal norm (null)": perturbed(context.pair, context.seed)}
    lenses = {name: logit_lens(model, rows, tokens) for name, model in models.items()}
    labels = lenses["base"].labels
    rows_out = []
    for name, lens in lenses.items():
        for at, interval in enumerate(bootstrap_means(lens.probabilities.numpy(), seed=context.seed)):
            rows_out.append((name, at / 2, labels[at], interval.value, interval.low, interval.high))
    frame = pd.DataFrame(rows_out, columns=["model", "depth", "point", "probability", "low", "high"])
    final = {name: lens.probabilities[:, -1].numpy() for name, lens in lenses.items()}
    null_name = list(models)[2]
    fall = bootstrap_difference(final["base"], final["tuned"], seed=context.seed)
    null_fall = bootstrap_difference(final["base"], final[null_name], seed=context.seed)
    beyond = bootstrap_difference(final[null_name], final["tuned"], seed=context.seed)
    mean = lenses["base"].probabilities.numpy().mean(axis=0)
    rises = np.diff(mean)
    attention, mlp = float(rises[0::2].sum()), float(rises[1::2].sum())
    verdict: Verdict = (
        "fails"
        if beyond.high <= 0 or fall.value <= 0
        else "holds"
        if beyond.low > 0 and fall.low > 0 and mlp > attention
        else "inconclusive"
    )
    biggest = sorted(range(len(rises)), key=lambda at: -rises[at])[:3]
    shaded = [(at / 2, (at + 1) / 2, "largest rises") for at in sorted(biggest)]
    figure = figures.lines(
        "lens", frame, x="depth", y="probability", colour="model", low="low", high="high", shaded=shaded, title="Probability of the toxic word along the stack",
        x_title="layers done (half steps are after attention)", y_title="probability of the word (mean over prompts)",
        caption="The curve should be near 0 in the first half and rise at MLP steps; the tuned curve should lie below the base and below the random change.",
    )  # fmt: skip
    summary = (
        f"On {len(rows)} prompts the word's probability falls from {final['base'].mean():.3f} to {final['tuned'].mean():.3f} (random change of equal norm: "
        f"{final[null_name].mean():.3f}). In the base model MLP steps raise it by {mlp:.3f}, attention steps by {attention:.3f}."
    )
    return Finding(
        verdict, summary, {"fall of final probability": fall.value, "rise by MLP steps": mlp}, {"fall of final probability": null_fall.value, "rise by MLP steps": attention},
        {"fall of final probability": (fall.low, fall.high)}, {"points": frame}, (figure,), {"prompts_used": len(rows)},
    )  # fmt: skip
