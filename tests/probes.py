"""Probes that tests share: fitting one takes a second, and many tests need the same."""

from __future__ import annotations

from collections.abc import Sequence

from interp import Model
from interp.directions.probe import Probe, fit_probe
from interp.models.digests import model_key

_FITTED: dict[tuple[str, tuple[str, ...], tuple[int, ...]], Probe] = {}


def shared_probe(model: Model, texts: Sequence[str], labels: Sequence[int]) -> Probe:
    """`fit_probe` with seed 0, fitted once for these weights, texts and labels: use `dataclasses.replace` to have another."""
    key = (model_key(model), tuple(texts), tuple(labels))
    if key not in _FITTED:
        _FITTED[key] = fit_probe(model, list(texts), list(labels), seed=0)
    return _FITTED[key]
