"""A-E2: the share of toxic words among the tokens that the value vectors nearest to the probe promote (paper A, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.evaluation.token_toxicity import row_toxicity
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.neurons.projection import DOT, projection_for
from interp.neurons.ranking import nearest_in_layers, svd_directions, values_at
from interp.neurons.vocabulary import JUDGED_TOKENS, JUDGED_VECTORS, top_tokens, toxic_shares
from interp.results import figures
from interp.results.result import Verdict
from interp.stats.intervals import permutation_p
from interp.stats.nulls import matched_neurons, random_directions

THRESHOLDS = CRITERIA["A-E2"][-1].thresholds
MATCHED, NEAREST = "matched random neurons", "nearest to a random direction"


def judge(share: float, nulls: Mapping[str, Sequence[float]]) -> Verdict:
    """The verdict on the share of toxic words among the nearest value vectors' top tokens, and its draws under each null."""
    p = max(permutation_p(share, draws) for draws in nulls.values())
    if share < THRESHOLDS["least"] or p > THRESHOLDS["no"]:
        return "fails"
    return "holds" if share > THRESHOLDS["most"] and p < THRESHOLDS["p"] else "inconclusive"


def judge_1(p: float) -> Verdict:
    """The verdict under version 1 of the criterion, from the p-value beside matched neurons."""
    return "holds" if p < 0.01 else "fails" if p > 0.1 else "inconclusive"


@experiment(
    "A-E2",
    claim="A-C2",
    about="base",
    title="Toxic value vectors are readable as toxic words",
    question="Are the tokens that the value vectors along the probe promote, when projected on the vocabulary, mostly insults and profanity?",
    criterion=CRITERIA["A-E2"],
    caveat="The projection ignores the final norm, the neuron's activation and its sign; of a large vocabulary only common tokens are read. The word list is short, so hostile words outside it are not "
    "counted: beside it stands the toxicity that the tokens give to carrier sentences, by the scorer, which does not decide the verdict. Value vectors near one direction share what they "
    "promote and are no independent units, so there is no interval over them; the nulls draw whole sets of vectors.",
    does_not_show="More toxic words than random neurons promote does not show that these vectors are toxic: most of what they promote may be something else.",
)
def run(context: ToxicityContext) -> Finding:
    base = context.pair.base
    projection = projection_for(base)

    def read(vectors: Tensor) -> list[list[str]]:
        return top_tokens(base, vectors, top=JUDGED_TOKENS, projection=projection).words

    neurons = context.ranking.neurons[:JUDGED_VECTORS]
    words = read(values_at(base, neurons))
    shares = toxic_shares(words)
    observed = float(shares.mean())
    draws, scored = (100, 20) if context.quick else (400, 40)
    nulls, null_rows = [], []
    for draw in range(draws):
        drawn = matched_neurons(base, neurons, seed=context.seed + draw, exclude=context.ranking.neurons)
        rows = read(values_at(base, drawn))
        nulls.append(float(toxic_shares(rows).mean()))
        null_rows += rows if draw < scored else []
    sets = nearest_in_layers(base, random_directions(context.direction, draws, context.seed), neurons, exclude=neurons)
    nearest = [float(toxic_shares(read(values_at(base, chosen))).mean()) for chosen in sets]
    p, p_nearest = permutation_p(observed, nulls), permutation_p(observed, nearest)
    verdict = judge(observed, {MATCHED: nulls, NEAREST: nearest})
    directions = svd_directions(base, context.ranking.neurons, towards=context.direction)
    means = context.probe.difference_in_means
    named = [
        ("probe", context.direction),
        ("difference in means", means),
        *((f"U_{i} of the top 128", row.to(means.device)) for i, row in enumerate(directions)),
    ]
    listed = read(torch.stack([vector for _, vector in named]))
    # All in one call, so that a token is scored once.
    toxicities = np.split(row_toxicity([*words, *listed, *null_rows], context.scorer), [len(words), len(words) + len(listed)])
    toxicity, null_toxicity = float(toxicities[0].mean()), toxicities[2].reshape(scored, -1).mean(axis=1)
    frame = context.ranking.to_frame()[:JUDGED_VECTORS]
    vectors = pd.DataFrame({
        "vector": [*(name for name, _ in named), *(f"value {layer}.{index}" for layer, index in neurons)],
        "cosine with the probe": [*(float(torch.cosine_similarity(v, context.direction, dim=0)) for _, v in named), *frame["cosine"]],
        "share of toxic words": [*toxic_shares(listed), *shares],
        "toxicity in sentences": [*toxicities[1], *toxicities[0]],
        "role": ["probe", "means", *("shared" for _ in directions), *("value" for _ in neurons)],
        "top tokens": [" · ".join(word.strip() for word in row) for row in [*listed, *words]],
    })  # fmt: skip
    figure = figures.histogram(
        "toxic-words", pd.DataFrame({"share": nulls + nearest, "group": [MATCHED] * draws + [NEAREST] * draws, "role": "null"}), x="share", colour="group", role="role", bins=20,
        title="Share of toxic words among top tokens", caption="The line is the share for the value vectors nearest to the probe; the bars are draws of "
        "neurons of the same layers and norms, and of those of the same layers that are nearest to a random direction. A line far to the right of the bars is what the claim predicts.",
        x_title=f"share of lexicon words among the top {JUDGED_TOKENS} tokens", y_title="draws", marks=[(observed, "nearest to the probe")],
    )  # fmt: skip
    majority = int((shares > 0.5).sum())
    summary = (
        f"{observed:.0%} of the top tokens of the {JUDGED_VECTORS} value vectors nearest to the probe are in the word list, {np.mean(nulls):.1%} for matched neurons "
        f"(p = {p:.3f}), {np.mean(nearest):.1%} for those nearest to a random direction (p = {p_nearest:.3f}); in {majority} of {JUDGED_VECTORS} they are the majority. "
        f"{'So they promote more toxic words than chance, ' if max(p, p_nearest) < 0.05 else 'They do not promote more toxic words than chance, '}"
        f"{'and are' if observed > THRESHOLDS['most'] else 'but are not' if max(p, p_nearest) < 0.05 else 'and are not'} readable as toxic. In carrier sentences the scorer finds these tokens {toxicity:+.3f} "
        f"more toxic than everyday words, those of matched neurons {null_toxicity.mean():+.3f} (p = {permutation_p(toxicity, null_toxicity):.3f})."
    )
    spread = (float(np.quantile(nulls, 0.025)), float(np.quantile(nulls, 0.975)))
    settings = {
        "value_vectors": JUDGED_VECTORS,
        "tokens": JUDGED_TOKENS,
        "draws": draws,
        "null_from_to": spread,
        "p_matched": p,
        "p_nearest_to_random": p_nearest,
        "draws_in_sentences": scored,
        "projection": str(projection),
    }
    if projection != DOT:
        products = toxic_shares(top_tokens(base, values_at(base, neurons), top=JUDGED_TOKENS).words)
        summary += f" Tokens are ranked by the {projection}; by dot product over all tokens the share on the list is {products.mean():.0%}."
    sentence = (
        f"Of the top {JUDGED_TOKENS} tokens of the {JUDGED_VECTORS} value vectors nearest to the probe {observed:.0%} are toxic words, against {np.mean(nulls):.1%} "
        f"[{spread[0]:.1%}, {spread[1]:.1%}] for matched neurons and {np.mean(nearest):.1%} for those nearest to random directions; {majority} of {JUDGED_VECTORS} have a majority of toxic words."
    )
    return Finding(
        verdict, summary, {"share of toxic words": observed, "majority": majority, "toxicity in sentences": toxicity},
        {"share of toxic words": float(np.mean(nulls)), "toxicity in sentences": float(null_toxicity.mean())},
        {}, {"vectors": vectors}, (figure,), settings, sentence=sentence, earlier={1: judge_1(p)},
    )  # fmt: skip
