"""The theory of paper C on models of which everything is known, for experiment C-E8: `python -m training.studies.elasticity theory`.

Bigram models of low rank are fitted to a source P and a source A. In the regime `joint` a model stands at the optimum of `k γ_P + γ_A`,
as the theory has it. In `sequential` it is trained on P and then on A with Adam, as the experiments of paper C train; the ratio k of the
two amounts of training is varied by more pre-training and by shorter alignment. In `reversed` it is trained on A first.
Measured is dγ_A/dγ_P under data like P, like A, from a third source, and along random directions. Every row is one seed, with sources and
starting weights of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.elasticity.stationarity import rate_ratio, stationarity
from interp.experiments.elasticity.theory_rules import ALIGNMENT, PRETRAINING
from interp.preferences.influence import dot
from training.bigrams import OUTCOMES, Source, adam_course, copy_of, fit, gradient, sources, start

KS = (1, 3, 10, 30, 100)
SEEDS = 6
# Steps of Adam of the shortest alignment and of the shortest pre-training, and of the longest of either.
SHORT, LONG = 20, 2000
# Random directions, the sizes of a move, and how near -k a ratio has to be.
DIRECTIONS, SIZES, NEAR = 8, tuple(10 ** (place / 6) for place in range(-30, 4)), 0.1
# How much further data a joint model is fitted again with, beside 1 of A.
FURTHER = 0.02


def settings() -> dict[str, Any]:
    """Everything that a row depends on apart from its seed."""
    return {"k": list(KS), "short": SHORT, "long": LONG, "directions": DIRECTIONS, "near": NEAR, "further": FURTHER, "outcomes": OUTCOMES}


def row_of(seed: int) -> dict[str, Any]:
    """The row of one seed: a list of cells for each regime, and those of a model whose sources have contexts of their own."""
    large, small, third = sources(seed, 3)
    by_name = {"like P": large, "like A": small, "third": third}
    joint = []
    for k in KS:
        parameters = start(seed)
        fit(parameters, [(k, large), (1, small)])
        cell = {"k": k} | ratios_of(parameters, by_name, k, seed)
        joint.append(cell | {"retrained": retrained(parameters, by_name, k), "radius": radius(parameters, large, small, k, seed)})
    return {
        "seed": seed, "joint": joint, "sequential": sequential(by_name, seed), "reversed": backwards(by_name, seed),
        "separate": [separate(k, seed) for k in KS[1:]],
    }  # fmt: skip


def sequential(by_name: Mapping[str, Source], seed: int) -> list[dict[str, Any]]:
    """Cells of models that are trained on P and then on A: k times as many steps on the first, by more of these or fewer of the other."""
    large, small = by_name["like P"], by_name["like A"]
    cells = []
    pretrained = adam_course(start(seed), large, [SHORT * k for k in KS])
    for k, parameters in zip(KS, pretrained, strict=True):
        (aligned,) = adam_course(parameters, small, [SHORT])
        cells.append({"varied": PRETRAINING, "k": k, "steps": [SHORT * k, SHORT]} | ratios_of(aligned, by_name, k, seed))
    # The longest pre-training of the other way is where this one begins.
    (parameters,) = adam_course(start(seed), large, [LONG])
    lengths = sorted(round(LONG / k) for k in KS)
    for k, length, aligned in zip(KS[::-1], lengths, adam_course(parameters, small, lengths), strict=True):
        cells.append({"varied": ALIGNMENT, "k": k, "steps": [LONG, length]} | ratios_of(aligned, by_name, k, seed))
    return cells


def backwards(by_name: Mapping[str, Source], seed: int) -> list[dict[str, Any]]:
    """Cells of models that are trained on A first, and then for k times as many steps on P."""
    (parameters,) = adam_course(start(seed), by_name["like A"], [SHORT])
    trained = adam_course(parameters, by_name["like P"], [SHORT * k for k in KS])
    return [
        {"varied": PRETRAINING, "k": k, "steps": [SHORT, SHORT * k]} | ratios_of(moved, by_name, k, seed)
        for k, moved in zip(KS, trained, strict=True)
    ]


def ratios_of(parameters: Sequence[Tensor], by_name: Mapping[str, Source], k: int, seed: int) -> dict[str, Any]:
    """dγ_A/dγ_P for a first step on each source and along random directions, with the stationarity residual."""
    slopes = {name: gradient(source, parameters) for name, source in by_name.items()}
    large, small = slopes["like P"], slopes["like A"]
    ratios: dict[str, Any] = {name: rate_ratio(large, small, [-part for part in slope]) for name, slope in slopes.items()}
    ratios["random"] = [rate_ratio(large, small, direction) for direction in directions(parameters, seed)]
    return {"residual": stationarity(large, small, k).residual, "ratios": ratios}


def directions(parameters: Sequence[Tensor], seed: int) -> list[list[Tensor]]:
    """Random directions of length 1."""
    generator = torch.Generator().manual_seed(1000 + seed)
    drawn = []
    for _ in range(DIRECTIONS):
        parts = [torch.randn(part.shape, generator=generator, dtype=part.dtype) for part in parameters]
        norm = math.sqrt(dot(parts, parts))
        drawn.append([part / norm for part in parts])
    return drawn


def retrained(parameters: Sequence[Tensor], by_name: Mapping[str, Source], k: int) -> dict[str, float]:
    """The ratio of the changes of both losses where the joint model is fitted again with a little further data."""
    large, small = by_name["like P"], by_name["like A"]
    ratios = {}
    for name, source in by_name.items():
        moved = copy_of(parameters)
        fit(moved, [(k, large), (1, small), (FURTHER, source)])
        ratios[name] = _ratio_of_changes(parameters, moved, large, small)
    return ratios


def radius(parameters: Sequence[Tensor], large: Source, small: Source, k: int, seed: int) -> float:
    """The median over random directions of the size of a move up to which the ratio of the changes is -k to within a tenth."""
    reached = []
    for direction in directions(parameters, seed):
        largest = 0.0
        for size in SIZES:
            moved = [part.detach() + size * step for part, step in zip(parameters, direction, strict=True)]
            if not abs(_ratio_of_changes(parameters, moved, large, small) / -k - 1) <= NEAR:
                break
            largest = size
        reached.append(largest)
    return float(np.median(reached))


def separate(k: int, seed: int) -> dict[str, float]:
    """A model of full rank whose two sources have contexts of their own: its gradients, beside those at its start, and a finite ratio."""
    large, small = sources(seed, separate=True)
    parameters = start(seed, OUTCOMES)
    before = max(_norm(gradient(source, parameters)) for source in (large, small))
    fit(parameters, [(k, large), (1, small)])
    after = max(_norm(gradient(source, parameters)) for source in (large, small))
    moved = [part.detach() + 0.1 * step for part, step in zip(parameters, directions(parameters, seed)[0], strict=True)]
    return {"k": k, "gradients": after / before, "ratio": _ratio_of_changes(parameters, moved, large, small)}


def rows(stored: Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all seeds, each through `stored`, which computes what is not there yet."""
    return [stored(f"theory/{seed}", lambda seed=seed: row_of(seed)) for seed in range(SEEDS)]  # type: ignore[misc]


def _ratio_of_changes(before: Sequence[Tensor], after: Sequence[Tensor], large: Source, small: Source) -> float:
    with torch.no_grad():
        changes = [float(source.loss(after) - source.loss(before)) for source in (large, small)]
    return changes[1] / changes[0] if changes[0] else math.nan


def _norm(slope: Sequence[Tensor]) -> float:
    return math.sqrt(dot(slope, slope))
