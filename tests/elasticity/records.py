"""Records of runs that never were, with shares undone and KL that are chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.elasticity.fluency import Fluency
from interp.elasticity.measurement import Measurement
from interp.elasticity.undo import Attack, Point, Run, UndoRecord

ATTACK, STEPS, PROMPTS, TEXTS = Attack(1e-4), (1, 5, 10), 60, 12
SPEAKS, SILENT = Fluency(20.0, 0.8, 0.0), Fluency(300.0, 0.1, 0.0)
BEFORE = 0.1


def measurement(score: float, kl: float, *, seed: int = 0, fluency: Fluency = SPEAKS, noise: float = 0.05) -> Measurement:
    """A measurement with this mean score and this KL to the base, the same noise by prompt for each seed."""
    rng = np.random.default_rng(seed)
    texts = kl * np.linspace(0.8, 1.2, TEXTS)
    scores = score + noise * rng.normal(0, 1, PROMPTS)
    return Measurement(scores, scores, texts, texts, texts[:4], texts[:4], np.full(16, kl), np.full(16, kl), {"neutral": 1.5}, fluency)


def run(
    arm: str, shares: Sequence[float], kls: Sequence[float], *, attack: Attack = ATTACK, seed: int = 0, silent_from: int | None = None
) -> Run:  # fmt: skip
    """A run of an arm whose behaviour goes from 0 (tuned) to 1 (base) by these shares."""
    points = tuple(
        Point(step, 8 * step, 768 * step, 10 * step, 3.0, 0.1 * step, 0.2 * step,
              measurement(share, kl, seed=100 + seed, fluency=SILENT if silent_from is not None and step >= silent_from else SPEAKS))
        for step, share, kl in zip(STEPS, shares, kls, strict=False)
    )  # fmt: skip
    return Run(arm, attack, seed, points, len(points) == len(STEPS))


def record(*runs: Run, tuned: float = 0.0, left_out: Sequence[str] = ()) -> UndoRecord:
    """A record of these runs; base scores 1, and tuned 0 unless said otherwise."""
    about = {"pair": "invented", "arms": {one.arm: "invented texts" for one in runs}}
    return UndoRecord(about, measurement(1.0, 0.0), measurement(tuned, BEFORE), runs, left_out)


def arms(
    opposite: Sequence[float], neutral: Sequence[float], same: Sequence[float], kl_neutral: float, kl_opposite: float
) -> list[Run]:  # fmt: skip
    """Three seeds of three arms; KL goes from its start to these values."""
    return [
        run(arm, [share + 0.01 * seed for share in shares], np.linspace(BEFORE, kl, 4)[1:].tolist(), seed=seed)
        for seed in range(3)
        for arm, shares, kl in (("opposite", opposite, kl_opposite), ("neutral", neutral, kl_neutral), ("same", same, BEFORE))
    ]  # fmt: skip
