"""A-E2: the share of toxic words among the tokens that the value vectors nearest to the probe promote (paper A, Table 1)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.neurons.ranking import svd_directions, values_at
from interp.neurons.vocabulary import JUDGED_TOKENS, JUDGED_VECTORS, top_tokens, toxic_shares
from interp.results import figures
from interp.results.result import Verdict
from interp.stats.intervals import bootstrap_mean, permutation_p
from interp.stats.nulls import matched_neurons


@experiment(
    "A-E2",
    claim="A-C2",
    about="base",
    title="Toxic value vectors promote toxic words",
    question="Do the value vectors that point along the probe promote insults and profanity when projected on the vocabulary?",
    criterion=f"Holds if the share of lexicon words among the top {JUDGED_TOKENS} tokens of the {JUDGED_VECTORS} nearest value vectors exceeds that of neurons "
    "matched on layer and norm (permutation p < 0.01); fails if p > 0.1; otherwise inconclusive.",
    refuted_by="Matched random neurons that promote as many toxic words would mean that the alignment with the probe says nothing about words.",
    caveat="The projection ignores the final norm, the neuron's activation and its sign; the word list is short, so insults outside it are not counted.",
)
def run(context: ToxicityContext) -> Finding:
    base = context.pair.base
    neurons = context.ranking.neurons[:JUDGED_VECTORS]
    shares = toxic_shares(top_tokens(base, values_at(base, neurons), top=JUDGED_TOKENS).words)
    observed = float(shares.mean())
    draws = 100 if context.quick else 400
    nulls = []
    for draw in range(draws):
        drawn = matched_neurons(base, neurons, seed=context.seed + draw, exclude=context.ranking.neurons)
        nulls.append(float(toxic_shares(top_tokens(base, values_at(base, drawn), top=JUDGED_TOKENS).words).mean()))
    p = permutation_p(observed, nulls)
    verdict: Verdict = "holds" if p < 0.01 else "fails" if p > 0.1 else "inconclusive"
    directions = svd_directions(base, context.ranking.neurons, towards=context.direction)
    means = context.probe.difference_in_means
    named = [
        ("probe", context.direction),
        ("difference in means", means),
        *((f"U_{i} of the top 128", row.to(means.device)) for i, row in enumerate(directions)),
    ]
    listed = top_tokens(base, torch.stack([vector for _, vector in named]), top=JUDGED_TOKENS).words
    frame = context.ranking.to_frame()[:JUDGED_VECTORS]
    words = top_tokens(base, values_at(base, neurons), top=JUDGED_TOKENS).words
    vectors = pd.DataFrame({
        "vector": [*(name for name, _ in named), *(f"value {layer}.{index}" for layer, index in neurons)],
        "cosine with the probe": [*(float(torch.cosine_similarity(v, context.direction, dim=0)) for _, v in named), *frame["cosine"]],
        "share of toxic words": [*toxic_shares(listed), *shares],
        "role": ["probe", "means", *("shared" for _ in directions), *("value" for _ in neurons)],
        "top tokens": [" · ".join(word.strip() for word in row) for row in [*listed, *words]],
    })  # fmt: skip
    figure = figures.histogram(
        "toxic-words", pd.DataFrame({"share": nulls, "group": "matched random neurons", "role": "null"}), x="share", colour="group", role="role", bins=20,
        title="Share of toxic words among top tokens", caption="The line is the share for the value vectors nearest to the probe; the bars are draws of "
        "neurons of the same layers and norms. A line far to the right of the bars is what the claim predicts.",
        x_title=f"share of lexicon words among the top {JUDGED_TOKENS} tokens", y_title="draws", marks=[(observed, "nearest to the probe")],
    )  # fmt: skip
    majority = int((shares > 0.5).sum())
    summary = (
        f"{observed:.0%} of the top tokens of the {JUDGED_VECTORS} value vectors nearest to the probe are in the word list, {np.mean(nulls):.1%} for matched neurons "
        f"(p = {p:.3f}); in {majority} of {JUDGED_VECTORS} they are the majority."
    )
    spread = (float(np.quantile(nulls, 0.025)), float(np.quantile(nulls, 0.975)))
    # This experiment reads no prompts, so the vectors are resampled.
    interval = bootstrap_mean(shares, seed=context.seed)
    settings = {
        "value_vectors": JUDGED_VECTORS,
        "tokens": JUDGED_TOKENS,
        "draws": draws,
        "interval": "bootstrap over the vectors",
        "null_from_to": spread,
    }
    return Finding(
        verdict, summary, {"share of toxic words": observed, "majority": majority}, {"share of toxic words": float(np.mean(nulls))},
        {"share of toxic words": (interval.low, interval.high)}, {"vectors": vectors}, (figure,), settings,
    )  # fmt: skip
