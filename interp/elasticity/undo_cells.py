"""The runs of an arm and attack as arrays by seed and dose, with shares undone and the return of the distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.elasticity.curves import area_over_log_steps, distribution_return, initial_slope, overshoot
from interp.elasticity.fluency import speaks
from interp.elasticity.return_dose import LEVELS, UndoScores, resampled_shares, return_dose, share_interval, shares_undone
from interp.elasticity.undo import Attack, Point, UndoRecord
from interp.stats.intervals import Interval

# Bootstrap draws of every interval of a page.
DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Cell:
    """The runs of one arm and attack, at the doses that all of its seeds reached while the model still spoke.

    Attributes:
        points: by seed, then by dose.
        silent_from: the first step at which the model of some seed no longer spoke, which ends the curve; None where all spoke.
    """

    arm: str
    attack: Attack
    points: tuple[tuple[Point, ...], ...]
    scores: UndoScores
    kl_before: Float[np.ndarray, " text"]
    silent_from: int | None

    @property
    def steps(self) -> list[int]:
        """The steps of the doses."""
        return [point.step for point in self.points[0]]

    @property
    def shares(self) -> Float[np.ndarray, " dose"]:
        """The share undone at each dose."""
        return shares_undone(self.scores)

    def resampled(self, seed: int) -> Float[np.ndarray, "draw dose"]:
        """The shares undone in bootstrap draws over prompts and seeds."""
        return resampled_shares(self.scores, draws=DRAWS, seed=seed)

    def kl(self, name: str = "kl_base") -> Float[np.ndarray, "seed dose text"]:
        """A KL of every text, by seed and dose."""
        return np.array([[getattr(point.measurement, name) for point in row] for row in self.points])

    def returned(self, dose: int, *, seed: int = 0, level: float = 0.95) -> Interval | None:
        """`1 - KL_n / KL_0` at a dose, on held-out text; None where tuned does not differ from base there."""
        if not self.kl_before.mean() > 0:
            return None
        return distribution_return(self.kl_before, self.kl()[:, dose], draws=DRAWS, seed=seed, level=level)

    def share_at(self, dose: int, *, seed: int = 0, level: float = 0.95) -> Interval:
        """The share undone at a dose with its interval."""
        return share_interval(self.resampled(seed)[:, dose], float(self.shares[dose]), len(self.scores.base), level)


def cell_of(record: UndoRecord, arm: str, attack: Attack) -> Cell | None:
    """The cell of an arm and attack; None where no dose is reached by all of its seeds.

    Where some seeds ran to the last dose, only these count.
    """
    runs = record.of(arm, attack)
    runs = [run for run in runs if run.is_whole] or [run for run in runs if run.points]
    if not runs:
        return None
    # Runs that ended early share their first doses.
    common = min(len(run.points) for run in runs)
    spoke = [
        all(speaks(run.points[dose].measurement.fluency, (record.base.fluency, record.tuned.fluency)) for run in runs)
        for dose in range(common)
    ]
    last = spoke.index(False) if False in spoke else common
    silent = runs[0].points[last].step if last < common else None
    if not last:
        return None
    points = tuple(run.points[:last] for run in runs)
    scores = UndoScores(
        record.base.score, record.tuned.score, np.array([[point.measurement.score for point in row] for row in points])
    )  # fmt: skip
    return Cell(arm, attack, points, scores, record.tuned.kl_base, silent)


def cells_of(record: UndoRecord) -> list[Cell]:
    """Every cell of the record that has a dose."""
    cells = (cell_of(record, arm, attack) for arm in record.arms for attack in record.attacks)
    return [cell for cell in cells if cell is not None]


def dose_frame(cells: list[Cell], *, seed: int = 0) -> pd.DataFrame:
    """One row per arm, attack and dose: behaviour and distribution side by side, means over seeds with their intervals."""
    rows = []
    for cell in cells:
        resampled = cell.resampled(seed)
        for dose, step in enumerate(cell.steps):
            points = [row[dose] for row in cell.points]
            share = share_interval(resampled[:, dose], float(cell.shares[dose]), len(cell.scores.base))
            returned = cell.returned(dose, seed=seed)
            seconds = [point.measurement.second for point in points if point.measurement.second is not None]
            rows.append({
                "arm": cell.arm, "attack": cell.attack.name, "steps": step, "samples": points[0].samples, "tokens": points[0].tokens,
                "texts": points[0].texts, "seeds": len(points), "score": float(cell.scores.runs[:, dose].mean()),
                "second score": float(np.mean(seconds)) if seconds else None, "share undone": share.value, "share low": share.low,
                "share high": share.high, "KL to base": float(cell.kl()[:, dose].mean()),
                "KL to tuned": float(cell.kl("kl_tuned")[:, dose].mean()),
                "KL to base on prompts": float(cell.kl("kl_base_prompts")[:, dose].mean()),
                "distribution return": None if returned is None else returned.value,
                "return low": None if returned is None else returned.low, "return high": None if returned is None else returned.high,
                **{f"bits per byte of {name}": float(np.mean([point.measurement.bits_per_byte[name] for point in points]))
                   for name in points[0].measurement.bits_per_byte},
                "perplexity under base": float(np.mean([point.measurement.fluency.perplexity for point in points])),
                "distinct-2": float(np.mean([point.measurement.fluency.distinct_2 for point in points])),
                "share empty": float(np.mean([point.measurement.fluency.share_empty for point in points])),
                "weight distance": float(np.mean([point.distance for point in points])),
                "path length": float(np.mean([math.nan if point.path is None else point.path for point in points])),
            })  # fmt: skip
    return pd.DataFrame(rows)


def arm_frame(cells: list[Cell], *, seed: int = 0) -> pd.DataFrame:
    """One row per arm and attack: return doses in steps, the share undone at the last dose, slope, area, overshoot, distribution."""
    rows = []
    for cell in cells:
        last = len(cell.steps) - 1
        share, returned = cell.share_at(last, seed=seed), cell.returned(last, seed=seed)
        doses = {level: return_dose(cell.steps, cell.scores, level, draws=DRAWS // 4, seed=seed) for level in LEVELS}
        rows.append({
            "arm": cell.arm, "attack": cell.attack.name, "seeds": len(cell.points), "last step": cell.steps[-1],
            **{f"steps to {level:.0%} undone": f"{dose} ({dose.low:.3g} to {dose.high:.3g})" for level, dose in doses.items()},
            "share undone": share.value, "low": share.low, "high": share.high,
            "share a step at first": initial_slope(cell.steps, cell.shares),
            "mean share over log steps": area_over_log_steps(cell.steps, cell.shares),
            "overshoot": overshoot(cell.shares), "distribution return": None if returned is None else returned.value,
            "return low": None if returned is None else returned.low, "return high": None if returned is None else returned.high,
            "no longer speaks from step": cell.silent_from,
        })  # fmt: skip
    return pd.DataFrame(rows)
