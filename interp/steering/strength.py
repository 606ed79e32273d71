"""The strength of an edit at which the loss on given texts has a given value, and what a factor does, in words.

A stronger change lowers toxicity more and raises the loss more, so changes can only be compared at equal loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from interp.errors import UserError

TRIALS = 16


@dataclass(frozen=True)
class Matched:
    """A strength, the loss there (nats per token), and whether the loss asked for lies within the range of strengths."""

    strength: float
    loss: float
    reached: bool


def match_loss(
    loss: Callable[[float], float], goal: float | int, *, most: float | int, first: float | int | None = None,
    tolerance: float | int = 1e-3, start: float | int | None = None,
) -> Matched:  # fmt: skip
    """The strength between 0 and `most` at which the loss reaches `goal`.

    The strength is doubled from `first` (an eighth of `most`) until the loss is too large, then the bracket is narrowed by
    bisection, helped by the square law that a loss near its minimum follows. Where the loss at `most` is still below the goal,
    `most` is returned and `reached` is false.

    Args:
        goal: the loss wanted, in nats per token; met within `tolerance` (0.001 nats is 0.1 % of perplexity).
        start: the loss at strength 0, where it is known already.

    Raises `UserError` where the loss at strength 0 is beyond the goal already, or the range is empty.
    """
    if not 0 < most < math.inf:
        raise UserError(f"strengths from 0 to {most} were asked for", "give a largest strength above 0")
    zero = float(loss(0.0) if start is None else start)
    if zero > goal + tolerance:
        raise UserError(f"the loss is {zero:.4f} before anything is changed, above the {goal:.4f} asked for", "ask for a larger loss")
    low, at_low = 0.0, zero
    high = min(float(most), float(first) if first is not None else float(most) / 8)
    at_high = _finite(loss(high))
    while at_high < goal - tolerance:
        if high >= most:
            return Matched(high, at_high, False)
        low, at_low, high = high, at_high, min(float(most), 2 * high)
        at_high = _finite(loss(high))
    if abs(at_high - goal) <= tolerance:
        return Matched(high, at_high, True)
    for trial in range(TRIALS):
        middle = (low + high) / 2
        if trial % 3 != 2 and math.isfinite(at_high) and at_high > at_low:
            share = (goal - at_low) / (at_high - at_low)
            middle = min(
                max(math.sqrt(low**2 + max(share, 0.0) * (high**2 - low**2)), low + 0.02 * (high - low)), high - 0.02 * (high - low)
            )
        at_middle = _finite(loss(middle))
        if abs(at_middle - goal) <= tolerance:
            return Matched(middle, at_middle, True)
        if at_middle < goal:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    # A loss that jumps has no strength at the goal; on the lower side of the jump it stays below.
    return Matched(low, at_low, True)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def effect_of(factor: float | int) -> str:
    """What multiplying an activation by this factor does, with the factor: "switched off (×0)", "halved (×0.5)", "inverted (×−3)"."""
    if factor < 0:
        word = "inverted"
    elif factor <= 1:
        word = {0: "switched off", 0.5: "halved", 1: "left as they are"}.get(float(factor), "turned down")
    else:
        word = "amplified"
    return f"{word} (×{factor:.3g})".replace("-", "−")
