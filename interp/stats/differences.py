"""Difference of differences: what one edit does to the tuned model beyond what it does to the base model.

An edit that raises a score in both models alike amplifies what the score measures; only what the tuned model rises beyond the base
model undoes tuning. Both are read off the same prompts in four cells (base or tuned, with or without the edit), so prompts are
resampled once for all four, and in the loss by which shares are divided.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.errors import UserError
from interp.stats.intervals import Interval, resampled_means, tails

Scores = Float[np.ndarray, " prompt"]
# Scores of exactly 0 or 1 have no logit.
CLIP = 1e-3


@dataclass(frozen=True)
class Cells:
    """The scores of the same prompts in the base and the tuned model, each as it is and with the same edit."""

    base: Scores
    tuned: Scores
    base_edited: Scores
    tuned_edited: Scores

    def __post_init__(self) -> None:
        lengths = [len(scores) for scores in (self.base, self.tuned, self.base_edited, self.tuned_edited)]
        if len(set(lengths)) > 1:
            raise UserError(f"the four cells have {lengths} scores", "give all four for the same prompts, in the same order")

    @property
    def lost(self) -> Scores:
        """What tuning took away from each prompt's score."""
        return self.base - self.tuned

    @property
    def rise_in_base(self) -> Scores:
        """What the edit adds to each prompt's score in the base model."""
        return self.base_edited - self.base

    @property
    def rise_in_tuned(self) -> Scores:
        """What the edit adds to each prompt's score in the tuned model."""
        return self.tuned_edited - self.tuned

    @property
    def difference(self) -> Scores:
        """The difference of differences of each prompt: the rise in the tuned model minus the rise in the base model."""
        return self.rise_in_tuned - self.rise_in_base


@dataclass(frozen=True)
class Differences:
    """The means over prompts of what `Cells` holds, and their shares of what tuning took away, each with its paired interval.

    Attributes:
        returned: the rise in the tuned model as a share of what was lost.
        undone: the difference of differences as a share of what was lost: what the edit returns beyond what the base model rises.
        survives: the gap between the two edited models as a share of the gap between the two models; 1 minus `undone`.
    """

    lost: Interval
    rise_in_tuned: Interval
    rise_in_base: Interval
    difference: Interval
    returned: Interval
    undone: Interval
    survives: Interval


def differences(cells: Cells, *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Differences:
    """The `Differences` of four cells, with percentile bootstrap intervals that draw the same prompts for all of them.

    Shares resample numerator and denominator together. Where tuning took nothing away on average they are NaN with an unbounded
    interval; where it took nothing away in some draw, the interval is unbounded. Raises `UserError` for scores that are not finite.
    """
    columns = np.stack([cells.lost, cells.rise_in_tuned, cells.rise_in_base, cells.difference], axis=1)
    if not np.isfinite(columns).all():
        raise UserError("some scores are not finite", "drop those prompts first")
    drawn, ends = resampled_means(columns, draws, seed), tails(level)
    means = [
        Interval(float(mean), float(low), float(high), len(columns))
        for mean, low, high in zip(columns.mean(axis=0), *np.quantile(drawn, ends, axis=0), strict=True)
    ]
    lost, in_tuned, in_base, difference = means

    def share(part: Interval, place: int) -> Interval:
        if lost.value <= 0:
            return Interval(np.nan, -np.inf, np.inf, lost.n)
        # A draw in which nothing was lost has no share.
        unbounded = bool((drawn[:, 0] <= 0).any())
        low, high = (-np.inf, np.inf) if unbounded else np.quantile(drawn[:, place] / drawn[:, 0], ends)
        return Interval(part.value / lost.value, float(low), float(high), lost.n)

    undone = share(difference, 3)
    survives = Interval(1 - undone.value, 1 - undone.high, 1 - undone.low, undone.n)
    return Differences(lost, in_tuned, in_base, difference, share(in_tuned, 1), undone, survives)


def mean_cells(draws: list[Cells]) -> Cells:
    """The mean over several edits (draws of a control) of each prompt's scores, cell by cell."""
    return Cells(*(np.mean([getattr(cells, name) for cells in draws], axis=0) for name in ("base", "tuned", "base_edited", "tuned_edited")))


def logits(cells: Cells) -> Cells:
    """The cells as log-odds of scores from 0 to 1: there a score near 1 has as much room to rise as one near 0."""

    def logit(scores: Scores) -> Scores:
        inside = np.clip(scores, CLIP, 1 - CLIP)
        return np.asarray(np.log(inside / (1 - inside)))

    return Cells(*(logit(scores) for scores in (cells.base, cells.tuned, cells.base_edited, cells.tuned_edited)))
