"""What the metrics of a probe mean, and those that need no features: at the natural share of toxic texts, and of words alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

# Of the texts of Jigsaw's challenge, from which the labelled texts come, about one in ten is toxic; the labelled texts are balanced.
NATURAL_SHARE = 0.1
SHUFFLES = 5
MEANINGS = {
    "accuracy": "share of held-out texts classified rightly", "balanced_accuracy": "mean of the two classes' accuracies",
    "auc": "chance that a toxic text scores above one that is not", "auc_low": "lower end of its 95 % interval",
    "auc_high": "upper end of its 95 % interval", "shuffled_auc": f"null: mean over {SHUFFLES} probes trained on shuffled labels",
    "shuffled_auc_most": "null: farthest from 1/2 among these, mirrored to above 1/2",
    "embeddings_auc": "control: probe on mean token embeddings, its L2 strength chosen on folds of the training texts",
    "words_auc": "control: linear classifier on token frequencies, its L2 strength chosen on folds of the training texts",
    "chosen_auc": "AUC of the same features at the L2 strength chosen on folds of the training texts, as for the controls",
    "chosen_l2": "that strength",
    "over_embeddings": "chosen_auc minus embeddings_auc", "over_embeddings_low": "lower end of its 95 % interval, paired by text",
    "over_embeddings_high": "upper end of it",
    "over_words": "chosen_auc minus words_auc", "over_words_low": "lower end of its 95 % interval, paired by text",
    "over_words_high": "upper end of it",
    "natural_accuracy": f"accuracy where {NATURAL_SHARE:.0%} of texts are toxic, at the threshold for that share (texts reweighted)",
    "natural_nothing": "accuracy there of calling no text toxic",
    "natural_precision": "share of toxic texts among those called toxic there",
    "natural_recall": "share of toxic texts that are called toxic there",
    "natural_balanced": "mean of the two classes' accuracies at that threshold",
    "difference_auc": "control: difference in means of the same features", "capitals_auc": "confound: share of capitals alone",
    "length_auc": "confound: length in characters alone (1/2 is none, either side counts)",
    "capitals_correlation": "confound: correlation of the probe's score with the share of capitals",
    "stability": "cosine between the probes of two halves of the training texts",
    "cosine_difference": "cosine of probe and difference in means, both as they act on the features that the probe was fitted on",
    "unstandardised_auc": "the same fit without standardising each coordinate", "unstandardised_auc_low": "lower end of its 95 % interval",
    "unstandardised_auc_high": "upper end of its 95 % interval",
    "share_toxic": "share of toxic texts", "train": "texts trained on", "held_out": "texts measured on",
    "unseen_auc": "AUC on documents that no stage of the training has seen", "unseen_low": "lower end of its 95 % interval",
    "unseen_high": "upper end of its 95 % interval", "unseen": "such documents",
    "unseen_words_auc": "control: linear classifier on token frequencies, on these documents",
}  # fmt: skip


def natural_metrics(
    truth: Int[np.ndarray, " text"], log_odds: Float[np.ndarray, " text"], share: float = NATURAL_SHARE
) -> dict[str, float]:
    """Accuracy, precision and recall where this share of the texts is toxic, by weighting the two classes of the texts.

    The log-odds are those of a fit in which both classes weigh the same, so the threshold is where they equal the log-odds of `share`.
    """
    called = log_odds + np.log(share / (1 - share)) > 0
    recall, wrongly = float(called[truth == 1].mean()), float(called[truth == 0].mean())
    called_share = share * recall + (1 - share) * wrongly
    return {
        "natural_accuracy": share * recall + (1 - share) * (1 - wrongly), "natural_nothing": 1 - share,
        "natural_precision": share * recall / called_share if called_share else float("nan"), "natural_recall": recall,
        "natural_balanced": (recall + 1 - wrongly) / 2,
    }  # fmt: skip


def bag_scores(
    rows: Sequence[Sequence[int]], labels: Sequence[int] | Int[np.ndarray, " text"], others: Sequence[Sequence[int]], vocabulary: int,
    seed: int = 0,
) -> Float[np.ndarray, " other"]:  # fmt: skip
    """Toxicity scores of the other texts by a linear classifier on words alone, fitted on the labelled texts (all as token ids).

    Its features are the shares of each token of the vocabulary among the tokens of the text; its regularisation is the best of five
    by AUC in cross-validation on the labelled texts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegressionCV

    def words(some: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[str(token) for token in row] for row in some]

    counting = TfidfVectorizer(analyzer=list, vocabulary=[str(token) for token in range(vocabulary)], use_idf=False, norm="l1")
    truth = np.asarray(labels)
    # No fold may lack a class.
    folds = min(5, min(Counter(truth.tolist()).values()))
    solver = LogisticRegressionCV(
        Cs=[1, 10, 100, 1000, 10_000], l1_ratios=(0,), cv=folds, scoring="roc_auc", class_weight="balanced", random_state=seed,
        max_iter=1000, use_legacy_attributes=False,
    )  # fmt: skip
    solver.fit(counting.fit_transform(words(rows)), truth)
    return np.asarray(solver.decision_function(counting.transform(words(others))))
