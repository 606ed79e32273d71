"""Metrics at the natural share of toxic texts against a set of texts of that share."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, precision_score, recall_score

from interp.directions.probe_metrics import MEANINGS, NATURAL_SHARE, natural_metrics


@pytest.mark.oracle
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_reweighting_equals_texts_of_that_share(share: float) -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 300)
    odds = 2.0 * (2 * truth - 1) + rng.normal(0, 1.5, 600)
    metrics = natural_metrics(truth, odds, share)
    # The same texts, each harmless one so often that the share is right.
    often = round((1 - share) / share)
    texts = np.concatenate([np.tile(np.flatnonzero(truth == 0), often), np.flatnonzero(truth == 1)])
    called = (odds[texts] > np.log((1 - share) / share)).astype(int)
    assert metrics["natural_accuracy"] == pytest.approx(accuracy_score(truth[texts], called))
    assert metrics["natural_precision"] == pytest.approx(precision_score(truth[texts], called))
    assert metrics["natural_recall"] == pytest.approx(recall_score(truth[texts], called))
    assert metrics["natural_balanced"] == pytest.approx(balanced_accuracy_score(truth[texts], called))
    assert metrics["natural_nothing"] == 1 - share
    assert metrics.keys() <= MEANINGS.keys()


def test_the_share_is_that_of_the_texts_that_the_labelled_ones_come_from() -> None:
    truth, odds = np.array([0, 0, 1, 1]), np.array([-9.0, -9.0, 9.0, 9.0])
    assert natural_metrics(truth, odds) == natural_metrics(truth, odds, NATURAL_SHARE)
    assert natural_metrics(truth, odds)["natural_accuracy"] == pytest.approx(1.0)
    assert np.isnan(natural_metrics(truth, np.full(4, -9.0))["natural_precision"])
