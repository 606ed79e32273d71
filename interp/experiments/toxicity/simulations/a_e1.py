"""Simulated studies for A-E1: two classifiers of the same texts, whose AUCs differ or do not."""

from __future__ import annotations

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.a_e1_probe import judge
from interp.results.result import Verdict

# As many held-out texts of each class as for the probe that ships.
TEXTS = 1000
# How alike two classifiers score the texts of one class.
CORRELATION = 0.7
# Distances of the two classes in standard deviations, for AUCs of 0.89, 0.92 and 0.95.
AUCS = {0.89: 1.735, 0.92: 1.987, 0.95: 2.326}


def _over(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the difference of two AUCs on the same texts (DeLong et al., 1988); the first half of the texts is toxic."""
    wins, losses = [], []
    for scores in (first, second):
        positive, negative = scores[:TEXTS], scores[TEXTS:]
        wins.append(np.searchsorted(np.sort(negative), positive) / TEXTS)
        losses.append(1 - np.searchsorted(np.sort(positive), negative) / TEXTS)
    difference = float(wins[0].mean() - wins[1].mean())
    half = 1.96 * float(np.sqrt((wins[0] - wins[1]).var() / TEXTS + (losses[0] - losses[1]).var() / TEXTS))
    return difference - half, difference + half


def _study(generator: np.random.Generator, probe: float, embeddings: float, words: float) -> Verdict:
    toxic = np.repeat([1.0, 0.0], TEXTS)
    shared = generator.normal(size=2 * TEXTS)
    scores = [
        AUCS[auc] * toxic + np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * generator.normal(size=2 * TEXTS)
        for auc in (probe, embeddings, words)
    ]
    return judge(probe, [_over(scores[0], scores[1]), _over(scores[0], scores[2])])


@simulation("A-E1", "the probe reads words: AUC 0.92 as for embeddings, words 0.89; 2,000 texts", "false")
def reads_words(generator: np.random.Generator) -> Verdict:
    """The verdict where embeddings tell as much as the residual stream."""
    return _study(generator, 0.92, 0.92, 0.89)


@simulation("A-E1", "the probe is worse than embeddings, as on the pair that ships: 0.89 beside 0.92", "false")
def worse(generator: np.random.Generator) -> Verdict:
    """The verdict where embeddings tell more."""
    return _study(generator, 0.89, 0.92, 0.89)


@simulation("A-E1", "the probe reads more than words: AUC 0.95 beside 0.92 and 0.89; 2,000 texts", "true")
def reads_more(generator: np.random.Generator) -> Verdict:
    """The verdict where the residual stream tells more than the words."""
    return _study(generator, 0.95, 0.92, 0.89)
