"""Compression rates under the ideal mixture of several data sets, and how they move when more data is added: the theory of paper C.

A model that fits the union of data sets perfectly assigns to each outcome the mixture of their distributions, weighted by size. The rate
of a set is the cross-entropy of its distribution with that mixture, in nats. With a large set P (size k), a small set A (size 1) and
further data T (size l), theorem 4.2 of paper C states that the rate of A moves k times as fast as that of P, with the opposite sign. That
holds exactly as l goes to 0 where T follows P or A. For a T that is disjoint from both the two rates rise alike, and for a T that is
mixed as the training data both stand still.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.errors import UserError

Distribution = Float[np.ndarray, " outcome"]


@dataclass(frozen=True)
class Rates:
    """The rates of the large and of the small set, or their changes, in nats."""

    large: float
    small: float

    @property
    def ratio(self) -> float:
        """The small set's number by the large set's; NaN where the latter is zero."""
        return self.small / self.large if self.large else float("nan")


def mixture(large: Distribution, small: Distribution, further: Distribution, k: float | int, amount: float | int) -> Distribution:
    """The ideal model of all three sets, of the sizes `k`, 1 and `amount`. Raises `UserError` for what is no distribution or no size."""
    for part in (large, small, further):
        if (part < 0).any() or not np.isclose(part.sum(), 1):
            raise UserError("a distribution has negative entries or does not add up to 1", "divide it by its sum")
    if not (k > 0 and amount >= 0):
        raise UserError(f"the sizes {k} and {amount} are not usable", "give a positive ratio and an amount of at least 0")
    return np.asarray((k * large + small + amount * further) / (k + 1 + amount))


def mixture_rates(large: Distribution, small: Distribution, further: Distribution, k: float | int, amount: float | int) -> Rates:
    """The rates of both sets under the ideal model of all three."""
    model = mixture(large, small, further, k, amount)
    return Rates(*(-float((part[part > 0] * np.log(model[part > 0])).sum()) for part in (large, small)))


def rate_slopes(large: Distribution, small: Distribution, further: Distribution, k: float | int) -> Rates:
    """The derivatives of both rates by the amount of further data, at none of it."""
    model = mixture(large, small, further, k, 0)
    slopes = []
    for part in (large, small):
        seen = part > 0
        slopes.append(-float((part[seen] * (further[seen] / model[seen] - 1)).sum()) / (k + 1))
    return Rates(*slopes)
