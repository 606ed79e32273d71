"""The data of a probe: features, splits, the solver and the controls.

Separate from `probe`, so that fitting one probe and sweeping over many share one pass of the model over the texts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.directions.probe_metrics import SHUFFLES, bag_scores, natural_metrics
from interp.errors import UserError
from interp.forward.capture import capture
from interp.models.positions import MEAN, MEAN_AFTER_FIRST
from interp.models.tokens import token_rows
from interp.stats.intervals import auc, bootstrap_auc, bootstrap_auc_difference

if TYPE_CHECKING:
    from interp.models.model import Model

FEWEST_TEXTS = 20
# The L2 strength of what is compared with words is one of these parts of the probe's, chosen on this many folds of the training texts.
PARTS, FOLDS = (1, 10, 100, 1000), 3


@dataclass(frozen=True, eq=False)
class ProbeData:
    """Features and labels of all texts, and which of them are trained on."""

    features: np.ndarray
    embeddings: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    capitals: np.ndarray
    lengths: np.ndarray
    with_bias: bool = True
    standardise: bool = True
    # The token ids of each text that the features were read from, and the size of the vocabulary; without them words are no control.
    rows: tuple[tuple[int, ...], ...] = ()
    vocabulary: int = 0

    @cached_property
    def test(self) -> np.ndarray:
        """The rows that are held out."""
        return np.setdiff1d(np.arange(len(self.labels)), self.train)

    def fit(
        self, features: np.ndarray, l2: float | int, rows: np.ndarray | None = None, labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, float]:
        """`w` and `b` of the objective in `fit_probe`."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        if not 0 < l2 < float("inf"):
            raise UserError(f"the L2 strength is {l2}", "give a number above 0, for example 0.1")
        rows = self.train if rows is None else rows
        x, y = features[rows], (self.labels if labels is None else labels)[rows]
        scale = self.scales(features, rows)
        # With a bias, centring leaves the optimum where it is and brings the solver there sooner.
        centre = x.mean(axis=0) if self.with_bias else np.zeros(x.shape[1])
        # Scikit-learn minimises C * (sum of losses) + |w|^2 / 2, hence C = 1 / (n l2) for a mean of losses.
        strength = 1 / (len(y) * float(l2))
        solver = LogisticRegression(C=strength, fit_intercept=self.with_bias, class_weight="balanced", tol=1e-6, max_iter=3000)
        with warnings.catch_warnings():
            # With next to no penalty separable texts have no finite optimum; the direction has settled long before.
            warnings.simplefilter("ignore", ConvergenceWarning)
            solver.fit((x - centre) / scale, y)
        w = np.asarray(solver.coef_[0]) / scale
        return w, float(np.ravel(solver.intercept_)[0] - w @ centre) if self.with_bias else 0.0

    def scales(self, features: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """What each coordinate is divided by before the fit: its standard deviation, or without `standardise` the median of all of them.

        A coordinate that does not vary is divided by 1.
        """
        deviations = features[self.train if rows is None else rows].std(axis=0)
        if not self.standardise:
            deviations = np.full_like(deviations, np.median(deviations))
        return np.where(deviations > 0, deviations, 1.0)

    def difference(self, features: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Mean toxic minus mean other feature."""
        rows = self.train if rows is None else rows
        x, y = features[rows], self.labels[rows]
        return np.asarray(x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0))

    def quality(self, w: np.ndarray, b: float = 0.0) -> dict[str, float]:
        """Held-out accuracies, with the threshold where both classes are equally likely, and AUC."""
        truth, scores = self.labels[self.test], self.features[self.test] @ w + b
        right = (scores > 0) == truth
        interval = bootstrap_auc(truth, scores)
        balanced = float(np.mean([right[truth == kind].mean() for kind in (0, 1)]))
        return {
            "accuracy": float(right.mean()), "balanced_accuracy": balanced,
            "auc": interval.value, "auc_low": interval.low, "auc_high": interval.high, **natural_metrics(truth, scores),
        }  # fmt: skip

    def best_l2(self, features: np.ndarray, l2: float | int, seed: int) -> float:
        """The strength among `l2 / PARTS` with the largest mean AUC over folds of the training texts; no held-out text is read."""
        from sklearn.model_selection import StratifiedKFold

        truth = self.labels[self.train]
        folds = StratifiedKFold(min(FOLDS, int(np.bincount(truth, minlength=2).min())), shuffle=True, random_state=seed)
        cut = [(self.train[fit], self.train[rest]) for fit, rest in folds.split(truth, truth)]

        def mean_auc(strength: float) -> float:
            return float(np.mean([auc(self.labels[rest], features[rest] @ self.fit(features, strength, fit)[0]) for fit, rest in cut]))

        return max((float(l2) / part for part in PARTS), key=mean_auc)

    def against_words(self, l2: float | int, seed: int) -> dict[str, float]:
        """Held-out AUC of the features, of mean embeddings and of token frequencies, and how far the first exceeds the others.

        Each has the L2 strength that is best on folds of the training texts, so no kind is favoured on the held-out ones.
        """
        truth, chosen = self.labels[self.test], self.best_l2(self.features, l2, seed)
        own = self.features[self.test] @ self.fit(self.features, chosen)[0]
        others = {"embeddings": self.embeddings[self.test] @ self.fit(self.embeddings, self.best_l2(self.embeddings, l2, seed))[0]}
        if self.rows:
            train, test = ([self.rows[i] for i in part] for part in (self.train, self.test))
            others["words"] = bag_scores(train, self.labels[self.train], test, self.vocabulary, seed)
        metrics: dict[str, float] = {"chosen_auc": auc(truth, own), "chosen_l2": chosen}
        for name, scores in others.items():
            over = bootstrap_auc_difference(truth, own, scores, seed=seed)
            metrics |= {
                f"{name}_auc": auc(truth, scores),
                f"over_{name}": over.value,
                f"over_{name}_low": over.low,
                f"over_{name}_high": over.high,
            }
        return metrics

    def controls(self, w: np.ndarray, l2: float | int, seed: int) -> dict[str, float | int]:
        """Held-out AUCs of the controls (shuffled labels, embeddings, difference, capitals, length), and the direction's stability."""
        truth, rng = self.labels[self.test], np.random.default_rng(seed)

        def held_out_auc(features: np.ndarray, direction: np.ndarray) -> float:
            return auc(truth, features[self.test] @ direction)

        shuffled = []
        for _ in range(SHUFFLES):
            labels = self.labels.copy()
            labels[self.train] = rng.permutation(labels[self.train])
            shuffled.append(held_out_auc(self.features, self.fit(self.features, l2, labels=labels)[0]))
        return {
            "shuffled_auc": float(np.mean(shuffled)), "shuffled_auc_most": max(max(a, 1 - a) for a in shuffled),
            **self.against_words(l2, seed),
            "difference_auc": held_out_auc(self.features, self.difference(self.features) / self.scales(self.features) ** 2),
            "capitals_auc": auc(truth, self.capitals[self.test]), "length_auc": auc(truth, self.lengths[self.test]),
            "capitals_correlation": self.capitals_correlation(w), "stability": self.stability(l2, seed),
            "share_toxic": float(self.labels.mean()), "train": len(self.train), "held_out": len(self.test),
        }  # fmt: skip

    def capitals_correlation(self, w: np.ndarray) -> float:
        """The correlation of held-out scores with the share of capitals; 0 where either does not vary."""
        scores, capitals = self.features[self.test] @ w, self.capitals[self.test]
        if scores.std() == 0 or capitals.std() == 0:
            return 0.0
        return float(np.corrcoef(scores, capitals)[0, 1])

    def stability(self, l2: float | int, seed: int) -> float:
        """Cosine between the directions of two halves of the training texts; infinite `l2` stands for the difference in means.

        The directions are those of the features as they were fitted.
        """
        scales, halves = self.scales(self.features), split(self.labels, self.train, 0.5, seed + 1)
        if l2 == float("inf"):
            first, second = (self.difference(self.features, half) / scales for half in halves)
        else:
            first, second = (self.fit(self.features, l2, half)[0] * scales for half in halves)
        return cosine(first, second)


def read_data(
    model: Model, texts: Sequence[str], labels: Any, held_out: float, seed: int, max_tokens: int, batch_size: int, batch_tokens: int,
    bias: bool = True, standardise: bool = True, skip_first: bool = False,
) -> ProbeData:  # fmt: skip
    """The features of these texts, checked and split, from one pass of the model.

    Raises `UserError` as `interp.directions.probe.fit_probe` says.
    """
    if len(texts) != len(labels):
        raise UserError(f"{len(texts)} texts and {len(labels)} labels were given", "give one label per text")
    if len(texts) < FEWEST_TEXTS:
        raise UserError(f"{len(texts)} texts are too few for a probe", f"give at least {FEWEST_TEXTS}")
    wrong = next((label for label in labels if label not in (0, 1)), None)
    if wrong is not None:
        raise UserError(f"the label {wrong!r} is neither 0 nor 1", "label toxic texts 1 and others 0")
    truth = np.array([int(label) for label in labels])
    counts = np.bincount(truth, minlength=2)
    if counts.min() < 4:
        kind = ("not toxic", "toxic")[int(counts.argmin())]
        raise UserError(f"{counts.min()} of the {len(truth)} texts are labelled {kind}", "give at least 4 texts of each class")
    held_out_counts = [round(held_out * int(count)) if 0 < held_out < 1 else 0 for count in counts]
    # Two training texts of each class are the fewest that can be cut in halves.
    if min(held_out_counts) < 1 or min(int(count) - out for count, out in zip(counts, held_out_counts, strict=True)) < 2:
        raise UserError(f"a held-out share of {held_out} leaves a class without texts on one side", "give 0.2, or more texts")
    rows = token_rows(model, list(texts), max_tokens=max_tokens)
    table = model.hf.get_input_embeddings().weight.detach()
    embeddings = torch.stack([table[torch.tensor(row, device=table.device)].float().mean(dim=0).cpu() for row in rows])
    features = features_of(model, rows, batch_size, batch_tokens, skip_first)
    train, _ = split(truth, np.arange(len(truth)), 1 - held_out, seed)
    letters = [[c for c in text if c.isalpha()] for text in texts]
    capitals = np.array([sum(c.isupper() for c in chars) / len(chars) if chars else 0.0 for chars in letters])
    lengths = np.array([len(text) for text in texts], dtype=np.float64)
    return ProbeData(
        features.double().numpy(), embeddings.double().numpy(), truth, train, capitals, lengths, bias, standardise,
        tuple(tuple(row) for row in rows), model.d_vocab,
    )  # fmt: skip


def features_of(
    model: Model, rows: Sequence[Sequence[int]], batch_size: int, batch_tokens: int, skip_first: bool = False
) -> Float[Tensor, "batch d_model"]:
    """Mean over each text's positions, or all but the first, of the last residual stream, before the final norm."""
    site, positions = f"resid_post.{model.n_layers - 1}", MEAN_AFTER_FIRST if skip_first else MEAN
    return capture(model, rows, [site], positions=positions, batch_size=batch_size, batch_tokens=batch_tokens)[site]


def split(labels: np.ndarray, rows: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two parts of `rows`, the first with this share of each class."""
    rng = np.random.default_rng(seed)
    first = []
    for kind in (0, 1):
        shuffled = rng.permutation(rows[labels[rows] == kind])
        first.append(shuffled[: len(shuffled) - round((1 - share) * len(shuffled))])
    chosen = np.sort(np.concatenate(first))
    return chosen, np.setdiff1d(rows, chosen)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """The cosine between two vectors; 0 where one is zero."""
    return float(first @ second / max(float(np.linalg.norm(first) * np.linalg.norm(second)), np.finfo(np.float64).tiny))
