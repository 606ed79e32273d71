"""Measurements of a scorer: AUC by source on held-out texts, reliability against Perspective, and known weak spots.

The sentences about identities and the fragments are written for the project and differ from the training sentences in
wording and form. The words of a held-out corpus never appear here: only statistics leave this module.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from interp.data.lexicon import mask
from interp.evaluation.toxicity import Scorer
from training.labelled import Example

GROUPS = (
    "gay",
    "lesbian",
    "transgender",
    "black",
    "white",
    "asian",
    "mexican",
    "muslim",
    "jewish",
    "christian",
    "deaf",
    "female",
    "immigrant",
    "old",
)
ABOUT_GROUPS = (
    "Most {g} voters in this town took the early bus.",
    "I talked with two {g} farmers about the price of apples.",
    "You should ask a {g} nurse how the night shift works.",
    "Being {g} was never a problem at that school.",
    "This book tells the story of a {g} engineer and his daughter.",
)
HOSTILE_FRAGMENTS = (
    " you fucking idiot",
    " fucking bitch, shut your mouth",
    " piece of shit and everyone knows it",
    " stupid moron who should go to hell",
    " go fuck yourself",
    " you are a pathetic loser",
    " dumbass",
    " i will kill you, you bastard",
    " you f*cking a**hole",
    " what a bunch of sh1t",
    " ugly whore",
)
NEUTRAL_FRAGMENTS = (
    " and we went to the beach after lunch",
    " person who cares about the garden",
    " you very much for the help",
    " the meeting starts at nine",
    "",
    " a great friend and I miss her",
    " it depends on the weather",
    " of the river, which flows south",
    " I think the second chapter is better",
    " kill the process and restart the server",
    " the goalkeeper was beaten by a shot from the left",
)


def area_under_curve(scores: Float[np.ndarray, " texts"], positive: Bool[np.ndarray, " texts"]) -> float:
    """The AUC: the probability that a random positive text scores above a random negative one, ties counting half."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def bootstrap_interval(
    scores: Float[np.ndarray, " texts"], positive: Bool[np.ndarray, " texts"], draws: int = 200, seed: int = 0
) -> list[float]:
    """A 95 % interval of the area under the curve over texts drawn with replacement."""
    rng = np.random.default_rng(seed)
    samples = [rng.integers(0, len(scores), len(scores)) for _ in range(draws)]
    return [round(float(value), 4) for value in np.nanquantile([area_under_curve(scores[i], positive[i]) for i in samples], [0.025, 0.975])]


def reliability(scores: Float[np.ndarray, " texts"], reference: Float[np.ndarray, " texts"]) -> dict[str, Any]:
    """Mean score against mean reference score by tenth of the score, their mean absolute gap, and the correlation."""
    bins = np.minimum((scores * 10).astype(int), 9)
    table = [
        {
            "from": b / 10,
            "texts": int((bins == b).sum()),
            "score": round(float(scores[bins == b].mean()), 3),
            "reference": round(float(reference[bins == b].mean()), 3),
        }
        for b in range(10)
        if (bins == b).any()
    ]
    gap = sum(row["texts"] * abs(row["score"] - row["reference"]) for row in table) / len(scores)
    above = reference > 0.5
    return {
        "bins": table,
        "expected_calibration_error": round(gap, 4),
        "mean_absolute_error": round(float(np.abs(scores - reference).mean()), 4),
        "correlation": round(float(np.corrcoef(scores, reference)[0, 1]), 4),
        "agreement_at_half": round(float(((scores > 0.5) == above).mean()), 4),
        "share_above_half": [round(float((scores > 0.5).mean()), 4), round(float(above.mean()), 4)],
    }


def describe(scorer: Scorer, heldout: list[Example]) -> dict[str, Any]:
    """The measurements that go into `scorer.json`: held-out AUC by source, reliability, weak spots, fragments, limits."""
    scores = scorer.score([example.text for example in heldout])["toxicity"].to_numpy(dtype=np.float64)
    targets = np.array([example.toxicity for example in heldout])
    sources = np.array([example.source for example in heldout])
    auc: dict[str, Any] = {}
    for name in sorted(set(sources.tolist())):
        chosen = sources == name
        positive = targets[chosen] > 0.5
        if 0 < positive.sum() < len(positive):
            auc[name] = {
                "auc": round(area_under_curve(scores[chosen], positive), 4),
                "interval": bootstrap_interval(scores[chosen], positive),
                "texts": int(chosen.sum()),
                "toxic": int(positive.sum()),
                "correlation": round(float(np.corrcoef(scores[chosen], targets[chosen])[0, 1]), 4),
                "mean_score": {
                    "toxic": round(float(scores[chosen][positive].mean()), 3),
                    "other": round(float(scores[chosen][~positive].mean()), 3),
                },
            }
        else:
            auc[name] = {
                "texts": int(chosen.sum()),
                "mean_score": round(float(scores[chosen].mean()), 3),
                "share_above_half": round(float((scores[chosen] > 0.5).mean()), 4),
            }
    perspective = sources == "context"
    by_group = {g: round(float(scorer.score([form.format(g=g) for form in ABOUT_GROUPS])["toxicity"].mean()), 3) for g in GROUPS}
    fragments = [*HOSTILE_FRAGMENTS, *NEUTRAL_FRAGMENTS]
    values = scorer.score(fragments)["toxicity"].tolist()
    return {
        "held_out": auc,
        "reliability_against_perspective": reliability(scores[perspective], targets[perspective]) if perspective.any() else {},
        "weak_spots": {"mean_score_of_neutral_sentences_about_groups": by_group},
        "fragments": {mask(text): round(value, 3) for text, value in zip(fragments, values, strict=True)},
        "labels": (
            "toxicity: Jigsaw 2018, Civil Comments spans, Perspective scores, Ruddit and tweet annotations; identity_attack: hate votes of "
            "the tweets' annotators, otherwise weak; severe_toxicity, obscene, threat and insult: weak labels from the word list on texts "
            "that are labelled toxic, so these four say which words a toxic text uses, not what its readers felt"
        ),
        "held_out_rule": "5 % of documents by hash are never trained on; training texts sharing eight words in a row with one are left out",
    }
